# SPDX-License-Identifier: Apache-2.0
import jax
from jax.experimental import pallas
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import pytest

from cc_jax.core import flops, sharding, tree
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


def test_operations_are_told_apart_by_the_outermost_scope():
  def f(x):
    with jax.named_scope("up"):
      x = x @ x
    with jax.named_scope("down"):
      with jax.named_scope("up"):
        x = jnp.tanh(x) @ x
    return jnp.sum(jax.lax.while_loop(jnp.all, lambda x: x @ x, x))

  jaxpr = jax.make_jaxpr(f)(shape(4, 4)).jaxpr
  assert flops.by_scope(jaxpr, 5) == {"up": 128, "down": 128, "while": 640}
  assert flops.of_jaxpr(jaxpr, 5) == 896


def test_gradients_are_of_the_scope_that_they_come_from():
  def f(x):
    with jax.named_scope("up"):
      return jnp.sum((x @ x) ** 2)

  jaxpr = jax.make_jaxpr(jax.grad(f))(shape(4, 4)).jaxpr
  assert flops.by_scope(jaxpr) == {"up": 3 * 128}


def kernel(x_ref, y_ref, o_ref):
  o_ref[...] = jnp.dot(x_ref[...], y_ref[...])


def tiled(x, y):
  """A product by a kernel, in tiles of 8 rows."""
  rows, width = x.shape[0], y.shape[1]
  return pallas.pallas_call(
    kernel,
    grid=(rows // 8,),
    in_specs=[
      pallas.BlockSpec((8, x.shape[1]), lambda i: (i, 0)),
      pallas.BlockSpec(y.shape, lambda i: (0, 0)),
    ],
    out_specs=pallas.BlockSpec((8, width), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((rows, width), x.dtype),
    name="tiled",
  )(x, y)


def test_a_kernel_counts_at_all_of_its_grid_on_all_devices():
  shapes = shape(32, 16), shape(16, 4)
  assert flops.count(tiled, *shapes) == 2 * 32 * 16 * 4
  mesh = sharding.make_mesh()
  split = jax.shard_map(
    tiled,
    mesh=mesh,
    in_specs=(PartitionSpec("data"), PartitionSpec()),
    out_specs=PartitionSpec("data"),
    check_vma=False,
  )
  large = shape(8 * 32, 16), shape(16, 4)
  assert flops.count(split, *large) == 8 * 2 * 32 * 16 * 4
  jaxpr = jax.make_jaxpr(split)(*large).jaxpr
  key = flops.Kernel("tiled", ((32, 16), (16, 4), (32, 4)))
  assert flops.kernels(jaxpr) == {key: flops.Work(2 * 32 * 16 * 4, steps=4)}


def test_steps_of_a_kernel_with_a_loop_say_nothing():
  def body(x_ref, o_ref):
    add = lambda i, x: x + x_ref[i]
    o_ref[0] = jax.lax.fori_loop(0, 8, add, jnp.float32(0))

  f = lambda x: pallas.pallas_call(
    body, out_shape=shape(1), grid=(3,), name="looped"
  )(x)
  (work,) = flops.kernels(jax.make_jaxpr(f)(shape(8)).jaxpr).values()
  assert work.steps == 0


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
