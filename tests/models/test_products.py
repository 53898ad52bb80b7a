# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import flops, sharding
from cc_jax.models import layers, products


def normal(*shape, seed=0):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("rows", [(5,), (2, 3), ()])
def test_gradients_are_those_of_the_product(rows):
  x, kernel = normal(*rows, 4), normal(4, 6, seed=1)
  found, ours = jax.vjp(products.product, x, kernel)
  expected, theirs = jax.vjp(jnp.matmul, x, kernel)
  parity.check(found, expected, parity.LAYER)
  dy = normal(*rows, 6, seed=2)
  for one, other in zip(ours(dy), theirs(dy), strict=True):
    parity.check(one, other, parity.LAYER)


def slope(width, out):
  layer = layers.linear(width, out, dtype=jnp.float32, rngs=layers.keys(0))
  # A function of its own, since JAX keeps what it has traced of one.
  return lambda x: jax.grad(lambda layer, x: layer(x).sum(), (0, 1))(layer, x)


def test_layers_do_so_on_cpus_where_they_read_no_more_than_they_give(
  monkeypatch,
):
  columns = lambda width, out: (
    "optimization_barrier"
    in str(jax.make_jaxpr(slope(width, out))(normal(3, width)))
  )
  assert columns(4, 4)
  assert columns(4, 8)
  assert not columns(8, 4)
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert not columns(4, 8)


def test_operations_are_counted_as_before():
  assert flops.count(slope(4, 8), normal(3, 4)) == 3 * 2 * 3 * 4 * 8
