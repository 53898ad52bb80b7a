# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import flops, sharding
from cc_jax.models import small_convolution, tiled_convolution


def normal(*shape, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 1, 5), (2, 8, 3)])
def test_gradients_are_those_of_the_convolution(shape, platform, monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  x, kernel = normal(*shape, 6), normal(3, 3, 6, 5, seed=1)
  found, ours = jax.vjp(small_convolution.convolve, x, kernel)
  expected, theirs = jax.vjp(tiled_convolution.plain, x, kernel)
  parity.check(found, expected, parity.LAYER)
  cotangent = normal(*shape, 5, seed=2)
  for a, b in zip(ours(cotangent), theirs(cotangent), strict=True):
    assert a.dtype == b.dtype
    parity.check(a, b, parity.LAYER)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_operations_are_counted_as_of_the_convolution(platform, monkeypatch):
  """So that figures of different devices can be compared."""
  monkeypatch.setattr(sharding, "platform", lambda: platform)

  def count(f):
    slopes = jax.grad(lambda x, kernel: f(x, kernel).sum(), (0, 1))
    return flops.count(slopes, normal(2, 4, 4, 6), normal(3, 3, 6, 5))

  assert count(small_convolution.convolve) == count(tiled_convolution.plain)


def test_a_map_is_moved():
  x = jnp.arange(1.0, 7).reshape(1, 2, 3, 1)
  moved = small_convolution.moved(x, 1, -1)[0, :, :, 0]
  np.testing.assert_array_equal(moved, [[0, 0, 0], [2, 3, 0]])
