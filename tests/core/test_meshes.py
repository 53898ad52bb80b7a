# SPDX-License-Identifier: Apache-2.0
"""Meshes over slices, and every preset laid out on several meshes."""

import functools
import importlib.util
import inspect
import math
import types

import numpy as np
import pytest

from cc_jax.core import hardware, sharding, tree
from cc_jax.models import kinds

# Arrays of more scalars than this (4 MiB in float32) are split over `fsdp` on
# every mesh below; all others together are less than this share of a network.
LARGE, SHARE = 2**20, 0.02
# Of pods up to v4-512: data, fsdp, tensor.
MESHES = [(2, 2, 1), (16, 4, 1), (1, 64, 1), (8, 8, 4), (64, 4, 1), (2, 16, 8)]
PRESETS = [(kind, one) for kind in kinds.KINDS for one in kinds.presets(kind)]


class Device:
  """What `make_mesh` looks at, of a device that is not there."""

  platform = "gpu"
  device_kind = "none"

  def __init__(self, number, slices, each):
    self.id = number
    self.slice_index = number // each % slices
    self.process_index = number // 4

  def __repr__(self):
    return f"{self.id} of slice {self.slice_index}"


def over_slices(slices, each, monkeypatch, **axes):
  """The mesh of devices in some order, as an array of them."""
  devices = [Device(i, slices, each) for i in range(slices * each)]
  devices = [
    devices[i] for i in np.random.default_rng(0).permutation(len(devices))
  ]
  monkeypatch.setattr(sharding, "Mesh", lambda grid, *rest, **more: grid)
  # Without the check of types, which these devices would not pass.
  return inspect.unwrap(sharding.make_mesh)(devices=devices, **axes)


@pytest.mark.parametrize(
  ("slices", "axes", "shape"),
  [
    (2, {}, (16, 1, 1)),
    (2, {"fsdp": 4}, (4, 4, 1)),
    (4, {"fsdp": 2, "tensor": 4}, (4, 2, 4)),
    (4, {"data": 4, "fsdp": -1}, (4, 8, 1)),
  ],
)
def test_only_data_crosses_the_network_between_slices(
  slices, axes, shape, monkeypatch
):
  grid = over_slices(slices, 8, monkeypatch, **axes)
  assert grid.shape == shape
  index = np.vectorize(lambda device: device.slice_index)(grid)
  # Along fsdp and tensor all are of one slice, and slices follow one another.
  assert np.all(index == index[:, :1, :1])
  np.testing.assert_array_equal(
    index[:, 0, 0], np.repeat(np.arange(slices), shape[0] // slices)
  )
  assert len({device.id for device in grid.flat}) == grid.size


def test_weights_are_not_split_over_slices(monkeypatch):
  with pytest.raises(ValueError, match="data=1 does not divide over 2 slices"):
    over_slices(2, 4, monkeypatch, data=1, fsdp=8)


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no libtpu"
)
def test_real_slices_are_joined_by_data_alone():
  devices = hardware.aot_devices(hardware.slice_of("v4-16"), 2)
  mesh = sharding.make_mesh(fsdp=4, devices=devices)
  assert dict(mesh.shape) == {"data": 4, "fsdp": 4, "tensor": 1}
  index = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert np.all(index == index[:, :1, :1])


@functools.cache
def shapes(kind, preset):
  return kinds.structure(kind, kinds.preset(kind, preset))[1]


def ways(path, shape, mesh):
  """Into how many parts an array is split; they must be equal."""
  spec = inspect.unwrap(sharding.spec)(path, shape, mesh)
  sizes = [mesh.shape[name] if name else 1 for name in spec]
  assert all(side % n == 0 for side, n in zip(shape, sizes, strict=True)), path
  return math.prod(sizes)


@pytest.mark.parametrize(("kind", "preset"), PRESETS)
def test_every_preset_is_split_on_every_mesh(kind, preset):
  leaves = tree.flatten(shapes(kind, preset))
  total = sum(leaf.size for leaf in leaves.values())
  for sizes in MESHES:
    # A layout asks a mesh for nothing but the sizes of its axes.
    axes = dict(zip(sharding.AXES, sizes, strict=True))
    mesh, whole = types.SimpleNamespace(shape=axes), 0
    for path, leaf in leaves.items():
      parts = ways(path, leaf.shape, mesh)
      if parts < axes["fsdp"]:
        whole += leaf.size
        assert leaf.size <= LARGE, f"{path} {leaf.shape} is whole on {axes}"
      # The average and the moments lie as their weights.
      for place in ("ema.{}", "opt.adam.mu.{}", "opt.adam.nu.{}"):
        assert ways(place.format(path), leaf.shape, mesh) == parts
    if total > 64 * LARGE:
      assert whole < SHARE * total, f"{whole / total:.1%} is whole on {axes}"
