# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
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
