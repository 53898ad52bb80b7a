# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import pytest

from cc_jax.core import flops, tree
from cc_jax.models import autoencoder, clip, kinds, unet


def shape(*axes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(axes, dtype)


def test_a_product_in_a_scan_counts_as_often_as_it_runs():
  def f(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, weights)[0]

  assert flops.count(f, shape(2, 3), shape(7, 3, 3)) == 7 * 2 * 2 * 3 * 3


def test_gradients_of_a_product_are_two_products_more():
  f = lambda a, b: jnp.sum((a @ b) ** 2)
  shapes = shape(2, 3), shape(3, 5)
  assert flops.count(f, *shapes) == 60
  assert flops.count(jax.grad(f, argnums=(0, 1)), *shapes) == 3 * 60
  again = jax.grad(jax.checkpoint(f), argnums=(0, 1))
  assert flops.count(again, *shapes) == 4 * 60


def convolve(x, kernel, stride=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def test_a_convolution_is_a_window_of_products_for_each_output():
  x, kernel = shape(2, 8, 8, 3), shape(3, 3, 3, 5)
  assert flops.count(convolve, x, kernel) == 2 * 2 * 64 * 5 * 27


def test_gradients_of_a_convolution_with_a_stride_cost_as_much_as_it_does():
  x, kernel = shape(2, 8, 8, 3), shape(3, 3, 3, 5)
  once = flops.count(lambda *args: convolve(*args, stride=2), x, kernel)
  f = lambda *args: jnp.sum(convolve(*args, stride=2) ** 2)
  three = flops.count(jax.grad(f, argnums=(0, 1)), x, kernel)
  assert three == pytest.approx(3 * once, rel=0.3)


def test_the_dearer_branch_of_a_condition_counts():
  def f(x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert flops.count(f, shape(4, 4)) == 2 * 2 * 4**3


# TFLOP of one forward pass, counted in torch on diffusers' and transformers'
# own modules.
@pytest.mark.parametrize(
  ("kind", "config", "run", "inputs", "expected"),
  [
    (
      "unet",
      unet.SD2,
      lambda model, *inputs: model(*inputs),
      (shape(1, 32, 32, 4), shape(1), shape(1, 77, 1024)),
      0.181,
    ),
    (
      "unet",
      unet.SD2,
      lambda model, *inputs: model(*inputs),
      (shape(1, 64, 64, 4), shape(1), shape(1, 77, 1024)),
      0.804,
    ),
    (
      "autoencoder",
      autoencoder.SD,
      lambda model, x: model.encode(x)[0],
      (shape(1, 256, 256, 3),),
      0.273,
    ),
    (
      "clip_text",
      clip.SD2,
      lambda model, tokens: model(tokens).hidden,
      (shape(1, 77, dtype=jnp.int32),),
      0.045,
    ),
  ],
)
def test_networks_cost_what_others_count(kind, config, run, inputs, expected):
  structure, shapes = kinds.structure(kind, config)
  f = lambda params, *args: run(tree.merge(structure, params), *args)
  found = flops.count(f, shapes, *inputs) / 1e12
  assert found == pytest.approx(expected, abs=0.0006)
