# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import flops
from cc_jax.models import convolution, layers

NUMBERS = ("NHWC", "HWIO", "NHWC")
KERNEL = (3, 3, 192, 200)


def arrays(shape, kernel=KERNEL, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.standard_normal(shape), dtype),
    jnp.asarray(rng.standard_normal(kernel), dtype),
  )


def ours(x, kernel):
  ones = (1, 1)
  return convolution.convolve(
    x, kernel, ones, (ones, ones), dimension_numbers=NUMBERS
  )


def theirs(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS
  )


def gradients(f):
  return lambda *args: jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1))(*args)


@pytest.mark.parametrize(
  ("shape", "kernel"),
  [
    ((1, 32, 32), KERNEL),
    ((2, 15, 36), KERNEL),
    ((3, 1, 400), KERNEL),
    ((65, 4, 4), KERNEL),
    # The kernel is large for the map.
    ((2, 8, 8), KERNEL),
    ((2, 8, 8), (3, 3, 200, 192)),
    ((5, 3, 12), KERNEL),
    ((1, 32, 32), (3, 3, 128, 136)),
  ],
)
def test_values_and_gradients_are_those_of_xla(shape, kernel):
  x, kernel = arrays((*shape, kernel[2]), kernel)
  y, pull = jax.vjp(jax.jit(ours), x, kernel)
  wanted, expected = jax.vjp(theirs, x, kernel)
  parity.check(y, wanted, parity.LAYER)
  dy = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), "f4")
  for one, other in zip(pull(dy), expected(dy), strict=True):
    parity.check(one, other, parity.LAYER)


def operations(program):
  """How many convolutions and products of matrices a program has."""
  names = ("stablehlo.convolution", "stablehlo.dot_general")
  return tuple(program.count(name) for name in names)


@pytest.mark.parametrize(
  ("shape", "kernel", "dtype"),
  [
    ((1, 32, 34, 192), KERNEL, "float32"),
    ((1, 15, 8, 192), KERNEL, "float32"),
    ((1, 32, 32, 8), (3, 3, 8, 192), "float32"),
    ((1, 32, 32, 192), (3, 3, 192, 8), "float32"),
    ((1, 32, 32, 192), KERNEL, "bfloat16"),
  ],
)
def test_the_rest_is_left_to_xla(shape, kernel, dtype):
  program = jax.jit(ours).lower(*arrays(shape, kernel, dtype)).as_text()
  assert operations(program) == (1, 0)


def test_accelerators_are_given_convolutions():
  traced = jax.jit(gradients(ours)).trace(*arrays((1, 32, 32, 192)))
  program = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert operations(program) == (3, 0)
  program = traced.lower(lowering_platforms=("cpu",)).as_text()
  # The gradient of a kernel is none there.
  assert operations(program)[0] == 6 + 6


def test_operations_are_counted_as_of_the_plain_sum():
  """So that figures of different devices can be compared."""
  args = arrays((1, 32, 32, 192))
  once = 2 * 32 * 32 * 9 * KERNEL[2] * KERNEL[3]
  for f in (ours, theirs):
    assert flops.count(f, *args) == once
    assert flops.count(gradients(f), *args) == 3 * once


def test_layers_compute_so():
  x, _ = arrays((1, 32, 32, 192))
  for stride, found in ((1, 6), (2, 1)):
    made = layers.conv(
      192, 200, stride=stride, dtype=jnp.float32, rngs=layers.keys(0)
    )
    program = jax.jit(lambda x, made=made: made(x)).lower(x).as_text()
    assert operations(program) == (found, 0)
