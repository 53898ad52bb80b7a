# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import parity

from cc_jax.core import sharding
from cc_jax.models import convolution, layers, tiled_convolution


def normal(*shape, dtype=jnp.float32, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, dtype)


def test_on_tpus_only_small_maps_of_16_bits_are_treated_so(monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.bfloat16)
  x, kernel = shape(2, 8, 8, 256), shape(3, 3, 256, 128)
  assert convolution.suits(x, kernel)
  assert not convolution.suits(shape(2, 8, 9, 256), kernel)
  assert not convolution.suits(x, shape(3, 3, 256, 4))
  assert not convolution.suits(x.update(dtype=jnp.float32), kernel)
  wide = shape(2, 16, 16, 1920)
  assert convolution.suits(wide, shape(3, 3, 1920, 1280))
  assert not convolution.suits(wide, shape(3, 3, 1920, 640))
  assert not convolution.suits(shape(2, 16, 17, 1920), shape(3, 3, 1920, 1280))


def test_on_cpus_kernels_that_are_large_for_a_map_are(monkeypatch):
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  x, kernel = shape(2, 5, 7, 280), shape(3, 3, 280, 300)
  assert convolution.suits(x, kernel)
  assert not convolution.suits(shape(1, 6, 12, 280), kernel)
  assert not convolution.suits(shape(1, 1, 1, 127), shape(3, 3, 127, 300))
  assert not convolution.suits(x.update(dtype=jnp.bfloat16), kernel)
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  assert not convolution.suits(x, kernel)


def test_only_convolutions_to_the_same_size_are():
  kernel, same, ones = np.zeros((3, 3, 2, 2)), ((1, 1), (1, 1)), (1, 1)
  assert convolution.same(kernel, ones, same)
  assert not convolution.same(np.zeros((1, 1, 2, 2)), ones, same)
  assert not convolution.same(kernel, (2, 2), same)
  assert not convolution.same(kernel, ones, ((0, 1), (0, 1)))


def test_layers_do_so_on_tpus(monkeypatch):
  layer = layers.conv(128, 128, dtype=jnp.bfloat16, rngs=layers.keys(0))
  x = normal(2, 4, 4, 128, dtype=jnp.bfloat16)
  slope = lambda x: jax.grad(lambda layer: layer(x).sum())(layer)

  def products():
    # A function of its own, since JAX keeps what it has traced of one.
    return "dot_general" in str(jax.make_jaxpr(lambda x: slope(x))(x))

  assert not products()
  expected = jax.tree.leaves(slope(x))
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert products()
  for a, b in zip(jax.tree.leaves(slope(x)), expected, strict=True):
    # Both are rounded to bfloat16 once.
    np.testing.assert_allclose(a, b, rtol=2**-7, atol=2**-7)


def test_on_cpus_those_of_single_pixels_are_products(monkeypatch):
  x, kernel = normal(2, 3, 5, 6), normal(1, 1, 6, 4, seed=1)
  numbers = dict(dimension_numbers=tiled_convolution.NUMBERS)

  def run(f, stride=1):
    strides, none = (stride, stride), ((0, 0), (0, 0))
    given = lambda x, kernel: f(x, kernel, strides, none, **numbers)
    return given, str(jax.make_jaxpr(given)(x, kernel))

  ours, program = run(convolution.convolve)
  assert "conv_general_dilated" not in program
  theirs, _ = run(jax.lax.conv_general_dilated)
  parity.check(ours(x, kernel), theirs(x, kernel), parity.LAYER)
  assert "conv_general_dilated" in run(convolution.convolve, stride=2)[1]
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert "conv_general_dilated" in run(convolution.convolve)[1]


def test_our_ways_can_be_left_to_the_compiler():
  x = normal(1, 16, 16, 128)
  for size in (1, 3):
    layer = layers.conv(128, 128, size, dtype=jnp.float32, rngs=layers.keys(0))

    def ours(layer=layer):
      # A function of its own, since JAX keeps what it has traced of one.
      return "custom_vjp" in str(jax.make_jaxpr(lambda x: layer(x))(x))

    assert ours()
    expected = layer(x)
    with convolution.own(False):
      assert not ours()
      parity.check(layer(x), expected, parity.LAYER)
    assert ours()
