# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import sharding
from cc_jax.models import convolution, layers


def normal(*shape, dtype=jnp.float32, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, dtype)


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 1, 5), (2, 8, 3)])
def test_gradients_are_those_of_the_convolution(shape):
  x, kernel = normal(*shape, 6), normal(3, 3, 6, 5, seed=1)
  found, ours = jax.vjp(convolution.small, x, kernel)
  expected, theirs = jax.vjp(convolution.plain, x, kernel)
  parity.check(found, expected, parity.LAYER)
  cotangent = normal(*shape, 5, seed=2)
  for a, b in zip(ours(cotangent), theirs(cotangent), strict=True):
    assert a.dtype == b.dtype
    parity.check(a, b, parity.LAYER)


def test_only_small_maps_of_16_bits_are_treated_so():
  same, ones = ((1, 1), (1, 1)), (1, 1)
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.bfloat16)
  x, kernel = shape(2, 8, 8, 256), shape(3, 3, 256, 128)
  assert convolution.suits(x, kernel, ones, same)
  refused = (
    (shape(2, 8, 9, 256), kernel, ones, same),
    (x, shape(1, 1, 256, 128), ones, same),
    (x, shape(3, 3, 256, 4), ones, same),
    (x, kernel, (2, 2), same),
    (x, kernel, ones, ((0, 1), (0, 1))),
    (x.update(dtype=jnp.float32), kernel, ones, same),
  )
  assert not any(convolution.suits(*one) for one in refused)


def test_layers_do_so_on_tpus_only(monkeypatch):
  layer = layers.conv(128, 128, dtype=jnp.bfloat16, rngs=layers.keys(0))
  x = normal(2, 4, 4, 128, dtype=jnp.bfloat16)
  slope = lambda x: jax.grad(lambda layer: layer(x).sum())(layer)
  products = lambda: "dot_general" in str(jax.make_jaxpr(slope)(x))
  assert not products()
  expected = jax.tree.leaves(slope(x))
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert products()
  for a, b in zip(jax.tree.leaves(slope(x)), expected, strict=True):
    # Both are rounded to bfloat16 once.
    np.testing.assert_allclose(a, b, rtol=2**-7, atol=2**-7)
