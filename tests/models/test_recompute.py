# SPDX-License-Identifier: Apache-2.0
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.core import sharding
from cc_jax.models import recompute


def twice(x):
  x = recompute.summed_once(x)
  return jnp.sin(x) * x


def barriers():
  # A function of its own, since JAX keeps what it has traced of one.
  f = lambda x: jax.grad(lambda x: twice(x))(x)
  return str(jax.make_jaxpr(f)(1.0)).count("optimization_barrier")


def test_what_is_summed_once_is_what_it_was():
  value, slope = jax.value_and_grad(twice)(0.5)
  assert value == pytest.approx(0.5 * jnp.sin(0.5))
  assert slope == pytest.approx(jnp.sin(0.5) + 0.5 * jnp.cos(0.5))


def test_gradients_are_summed_once_on_cpus_alone(monkeypatch):
  assert barriers() == 1
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert barriers() == 0


def reads(f):
  """How many operations of the compiled f(a, b, kernel) read a."""
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  arrays = shape(16, 8), shape(16, 8), shape(8, 8)
  text = jax.jit(f).lower(*arrays).compile().as_text()
  lines = text[text.index("\nENTRY") :].splitlines()[2:]
  return sum("%a.1," in line or "%a.1)" in line for line in lines)


def test_what_is_written_is_computed_once():
  def products(a, b, kernel, written):
    x = written(a * b)
    return [x[n : n + 8] @ kernel for n in range(4)]

  plain = partial(products, written=lambda x: x)
  ours = partial(products, written=recompute.written)
  assert reads(plain) == 4
  assert reads(ours) == 1
  rng = np.random.default_rng(0)
  arrays = [
    jnp.asarray(rng.normal(size=size)) for size in ((16, 8), (16, 8), (8, 8))
  ]
  for one, other in zip(plain(*arrays), ours(*arrays), strict=True):
    np.testing.assert_array_equal(one, other)
