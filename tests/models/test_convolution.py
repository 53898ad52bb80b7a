# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import flops
from cc_jax.models import convolution, layers, winograd

NUMBERS = ("NHWC", "HWIO", "NHWC")
# Map, kernel, stride, padding; the name of the way that the forward pass goes.
CASES = {
  "winograd": ((2, 12, 12, 64), (3, 3, 64, 72), 1, 1),
  "winograd_of_many_rows": ((1, 32, 16, 64), (3, 3, 64, 64), 1, 1),
  "odd": ((1, 17, 16, 64), (3, 3, 64, 64), 1, 1),
  "few_pixels": ((1, 4, 4, 64), (3, 3, 64, 64), 1, 1),
  "narrow": ((2, 6, 5, 3), (3, 3, 3, 8), 1, 1),
  "few_outputs": ((2, 6, 5, 24), (3, 3, 24, 4), 1, 1),
  "down": ((2, 8, 6, 12), (3, 3, 12, 10), 2, 1),
  "down_of_odd": ((2, 7, 9, 12), (3, 3, 12, 10), 2, 1),
  "down_beyond_one_edge": ((2, 8, 6, 12), (3, 3, 12, 10), 2, (0, 1)),
  "pixels": ((2, 5, 4, 7), (1, 1, 7, 6), 1, 0),
  "patches": ((2, 8, 12, 3), (4, 4, 3, 6), 4, 0),
  "patches_by_name": ((2, 9, 12, 3), (4, 4, 3, 6), 4, "VALID"),
  "patches_that_do_not_fit": ((2, 9, 12, 3), (4, 4, 3, 6), 4, 0),
  "large": ((2, 9, 8, 3), (5, 5, 3, 6), 1, 2),
  "no_padding": ((2, 9, 8, 12), (3, 3, 12, 6), 1, 0),
}


def arrays(shape, kernel):
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.standard_normal(shape), jnp.float32),
    jnp.asarray(rng.standard_normal(kernel), jnp.float32),
  )


def both(stride, padding):
  """Ours and XLA's, as functions of a map and a kernel."""
  if isinstance(padding, int):
    padding = (padding, padding)
  pads = padding if isinstance(padding, str) else (padding, padding)
  args = (stride, stride), pads
  return tuple(
    lambda x, k, f=f: f(x, k, *args, dimension_numbers=NUMBERS)
    for f in (convolution.convolution, jax.lax.conv_general_dilated)
  )


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_xla(case, monkeypatch):
  monkeypatch.setattr(winograd, "CHUNK", 2**17)
  *shapes, stride, padding = CASES[case]
  x, kernel = arrays(*shapes)
  ours, theirs = both(stride, padding)
  y, pull = jax.vjp(jax.jit(ours), x, kernel)
  wanted, expected = jax.vjp(theirs, x, kernel)
  parity.check(y, wanted, parity.LAYER)
  dy = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), "f4")
  for one, other in zip(pull(dy), expected(dy), strict=True):
    parity.check(one, other, parity.LAYER)


def test_rows_are_cut_into_parts_that_fit_a_cache():
  assert winograd.chunks((1, 32, 32, 320), 320) == 1
  count = winograd.chunks((1, 256, 256, 128), 128)
  assert 128 % count == 0
  assert 4 * 256 * 256 * 256 <= count * winograd.CHUNK
  # A row of tiles is the least.
  assert winograd.chunks((64, 6, 512, 512), 512) == 3


def primitives(f, *args):
  """Names of the operations that a CPU is given."""
  text = jax.jit(f).lower(*args).as_text()
  return {
    name
    for name in ("stablehlo.convolution", "stablehlo.dot_general")
    if name in text
  }


@pytest.mark.parametrize(
  ("case", "names"),
  [
    ("winograd", {"stablehlo.dot_general"}),
    ("pixels", {"stablehlo.dot_general"}),
    ("patches", {"stablehlo.dot_general"}),
    ("narrow", {"stablehlo.convolution"}),
    ("few_pixels", {"stablehlo.convolution"}),
  ],
)
def test_a_cpu_goes_the_way_that_is_fast(case, names):
  *shapes, stride, padding = CASES[case]
  ours, _ = both(stride, padding)
  assert primitives(ours, *arrays(*shapes)) == names


@pytest.mark.parametrize("case", ["winograd", "pixels", "down"])
def test_accelerators_are_given_a_convolution(case):
  *shapes, stride, padding = CASES[case]
  ours, theirs = both(stride, padding)

  def program(f):
    gradients = jax.grad(lambda *args: jnp.sum(f(*args) ** 2), (0, 1))
    traced = jax.jit(gradients).trace(*arrays(*shapes))
    return traced.lower(lowering_platforms=("tpu",)).as_text()

  for text in map(program, (ours, theirs)):
    assert text.count("stablehlo.convolution") == 3
    assert "stablehlo.dot_general" not in text
    assert "stablehlo.case" not in text


def test_bfloat16_and_groups_are_left_to_xla():
  x, kernel = arrays((2, 16, 16, 64), (3, 3, 64, 64))
  ours, _ = both(1, 1)
  half = lambda *args: ours(*(one.astype(jnp.bfloat16) for one in args))
  assert primitives(half, x, kernel) == {"stablehlo.convolution"}
  groups = functools.partial(
    convolution.convolution,
    strides=(1, 1),
    padding=((1, 1), (1, 1)),
    dimension_numbers=NUMBERS,
    feature_group_count=2,
  )
  assert groups(x, kernel[:, :, :32]).shape == x.shape


def test_operations_are_counted_as_of_the_plain_sum():
  """So that figures of different devices can be compared."""
  *shapes, stride, padding = CASES["winograd"]
  for f in both(stride, padding):
    gradients = jax.grad(lambda *args, f=f: jnp.sum(f(*args) ** 2), (0, 1))
    counted = flops.count(gradients, *arrays(*shapes))
    assert counted == 3 * 2 * 9 * 2 * 12 * 12 * 64 * 72


def test_layers_go_through_here():
  made = layers.conv(64, 64, dtype=jnp.float32, rngs=layers.keys(0))
  x, _ = arrays((1, 16, 16, 64), (1, 1, 1, 1))
  assert primitives(lambda x: made(x), x) == {"stablehlo.dot_general"}
