# SPDX-License-Identifier: Apache-2.0
import math
import types

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import parity
import pytest

from cc_jax.core import sharding, tree
from cc_jax.models import layers, unet


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
  ("path", "shape", "expected"),
  [
    ("mid.blocks.attn1.q.kernel", (4, 128, 256), (None, "fsdp", "tensor")),
    ("attn.out.kernel", (256, 128), ("tensor", "fsdp")),
    ("blocks.mlp.gate.kernel", (2, 128, 512), (None, "fsdp", "tensor")),
    ("blocks.mlp.down.kernel", (2, 512, 128), (None, "tensor", "fsdp")),
    ("token.embedding", (999, 128), (None, "tensor")),
    ("resnets.0.conv1.kernel", (3, 3, 64, 128), (None, None, None, "fsdp")),
    # Not a row of the table: nothing of it is an attention or an MLP.
    ("time_embedding.up.kernel", (128, 512), (None, "fsdp")),
    # Sizes that do not divide, and arrays too small to split.
    ("attn.q.kernel", (129, 255), (None, None)),
    ("attn.q.kernel", (64, 64), (None, None)),
    ("norm.scale", (1280,), (None,)),
  ],
)
def test_layouts_follow_path_and_size(path, shape, expected, mesh):
  assert sharding.spec(path, shape, mesh) == PartitionSpec(*expected)


def test_averages_and_moments_lie_as_their_weights(mesh):
  shape = (256, 512)
  expected = sharding.spec("blocks.attn.q.kernel", shape, mesh)
  for place in ("ema", "opt.0.mu", "opt.0.nu"):
    path = f"{place}.blocks.attn.q.kernel"
    assert sharding.spec(path, shape, mesh) == expected


def test_what_an_update_reads_may_be_spread_over_all_devices(mesh):
  whole = jax.ShapeDtypeStruct((256, 512), jnp.float32)
  state = {name: {"w.kernel": whole} for name in ("params", "ema", "opt")}
  found = {
    name: layout["w.kernel"].spec
    for name, layout in sharding.layouts(state, mesh, True).items()
  }
  spread = PartitionSpec(None, sharding.BATCH)
  assert found == {
    "params": PartitionSpec(None, "fsdp"),
    "ema": spread,
    "opt": spread,
  }
  # Where only `fsdp` divides an axis, it alone splits it.
  odd = sharding.spec("ema.w.kernel", (129, 2 * 129), mesh, True)
  assert odd == sharding.spec("ema.w.kernel", (129, 2 * 129), mesh)


def test_every_weight_of_sd2_has_a_valid_layout(mesh):
  _, shapes = parity.abstract(
    lambda: unet.UNet2DCondition(unet.SD2, rngs=layers.keys(0))
  )
  layouts = tree.flatten(sharding.layouts(shapes, mesh))
  local, split = 0, 0
  for path, leaf in tree.flatten(shapes).items():
    part = layouts[path].shard_shape(leaf.shape)  # raises if it is not even
    local += math.prod(part)
    by_tensor = "tensor" in layouts[path].spec
    matrix = ".attn" in path or ".mlp." in path
    assert by_tensor == (
      matrix
      and leaf.size >= sharding.SMALL
      and not path.endswith(("out.bias", "down.bias"))
    ), path
    split += by_tensor
  assert split > 100
  # fsdp halves nearly everything, tensor halves the matrices again.
  assert local < 0.45 * tree.count(shapes)


def test_a_free_axis_takes_what_is_left():
  assert dict(sharding.make_mesh(fsdp=4).shape) == {
    "data": 2,
    "fsdp": 4,
    "tensor": 1,
  }
  mesh = sharding.make_mesh(data=1, fsdp=-1, devices=jax.devices()[:3])
  assert mesh.shape["fsdp"] == 3


@pytest.mark.parametrize(
  ("axes", "message"),
  [
    ({"fsdp": 3}, "does not match 8 devices"),
    ({"data": 2, "fsdp": 2}, "does not match 8 devices"),
    ({"fsdp": 0}, "does not match 8 devices"),
    ({"fsdp": -1}, "data and fsdp are both -1"),
    ({"data": -4, "fsdp": -2}, "does not match 8 devices"),
  ],
)
def test_axes_that_do_not_multiply_to_the_devices_are_refused(axes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**axes)


def test_a_batch_is_split_over_data_and_fsdp(mesh):
  assert sharding.batch_ways(mesh) == 4
  rows = {"x": np.arange(16.0).reshape(8, 2)}
  batch = sharding.put_batch(rows, mesh)
  np.testing.assert_array_equal(batch["x"], rows["x"])
  assert batch["x"].addressable_shards[0].data.shape == (2, 2)


def test_shapes_carry_their_layouts(mesh):
  shapes = {"attn": {"q": {"kernel": jax.ShapeDtypeStruct((256, 256), float)}}}
  placed = sharding.with_layouts(shapes, mesh)["attn"]["q"]["kernel"]
  assert placed.sharding == NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))


def test_constrain_splits_by_example_when_it_can(mesh):
  constrain = jax.jit(sharding.constrain)
  x = jnp.zeros((8, 3))
  assert constrain(x).sharding.is_fully_replicated
  with jax.set_mesh(mesh):
    assert constrain(x).sharding.spec[0] == sharding.BATCH
    # One image at a time is left to the compiler.
    assert constrain(x[:1]).sharding.is_fully_replicated


def test_an_array_is_read_part_by_part_to_its_devices():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  whole = np.arange(256 * 128, dtype=np.float32).reshape(256, 128)
  asked = []

  def read(index):
    asked.append(whole[index].shape)
    return whole[index]

  leaf = types.SimpleNamespace(
    path="blocks.attn.q.kernel", shape=whole.shape, dtype=whole.dtype, read=read
  )
  array = sharding.make_array(leaf, mesh)
  layout = sharding.layouts({"blocks.attn.q.kernel": whole}, mesh)
  assert array.sharding == layout["blocks.attn.q.kernel"]
  np.testing.assert_array_equal(array, whole)
  # Four different parts, each on two devices.
  assert asked == [(128, 64)] * 4


def test_the_mesh_that_is_set_is_found():
  assert sharding.current_mesh() is None
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    assert sharding.current_mesh() == mesh
  assert sharding.current_mesh() is None
