# SPDX-License-Identifier: Apache-2.0
"""The mesh and the one table of layouts.

Three axes: `data` repeats weights (and may span slices), `fsdp` splits them,
`tensor` splits the matrices of attention and MLP. Batches are split over
`data` and `fsdp`. No other file names an axis.
"""

from collections.abc import Iterator, Sequence
import contextlib
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from cc_jax.core import tree

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Which axis, counted from the end, `tensor` splits. One set of rules serves
# every model because all use these names for their layers.
TENSOR = (
  (re.compile(r"attn\d?\.[qkv]\.(kernel|bias)$"), -1),
  (re.compile(r"attn\d?\.out\.kernel$"), -2),
  (re.compile(r"mlp\.(up|gate)\.(kernel|bias)$"), -1),
  (re.compile(r"mlp\.down\.kernel$"), -2),
  (re.compile(r"token\.embedding$"), -1),
)

# Below this many scalars a copy on each device costs less than gathering it.
SMALL = 2**14


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh of all devices; one axis may be -1 and takes what is left.

  Slices joined by a data-centre network each hold a part of `data`.

  Raises:
    ValueError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
  free = [axis for axis, size in sizes.items() if size == -1]
  known = math.prod(size for size in sizes.values() if size != -1)
  if len(free) > 1:
    raise ValueError(f"mesh axes {' and '.join(free)} are both -1; leave one")
  if free and known and len(devices) % known == 0:
    sizes[free[0]] = len(devices) // known
  shape = tuple(sizes.values())
  if math.prod(shape) != len(devices) or min(shape) < 1:
    raise ValueError(
      f"mesh {sizes} does not match {len(devices)} devices; the axes must "
      "multiply to that number (-1 takes what is left)"
    )
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices > 1:
    if sizes["data"] % slices:
      raise ValueError(
        f"mesh axis data={sizes['data']} does not divide over {slices} slices"
      )
    inner = (sizes["data"] // slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
      inner, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
  elif devices[0].platform == "tpu":
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    grid = np.array(devices).reshape(shape)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
  """The layout of one array: `tensor` by its path, `fsdp` by its size.

  The same function places weights, their averages and moments, frozen
  encoders and restored checkpoints, since their paths end alike.
  """
  axes: list[str | None] = [None] * len(shape)
  if math.prod(shape) < SMALL:
    return PartitionSpec(*axes)
  for pattern, axis in TENSOR:
    if pattern.search(path) and shape[axis] % mesh.shape["tensor"] == 0:
      axes[axis] = "tensor"
  free = [
    axis
    for axis, size in enumerate(shape)
    if axes[axis] is None and size % mesh.shape["fsdp"] == 0
  ]
  if free:
    axes[max(free, key=lambda axis: shape[axis])] = "fsdp"
  return PartitionSpec(*axes)


def layouts(params: Any, mesh: Mesh) -> Any:
  """A sharding for each leaf of a tree of arrays or shapes."""
  return jax.tree_util.tree_map_with_path(
    lambda keys, leaf: NamedSharding(
      mesh, spec(tree.path(keys), leaf.shape, mesh)
    ),
    params,
  )


def with_layouts(shapes: Any, mesh: Mesh) -> Any:
  """Shapes that carry the layout in which arrays are to be made."""
  return jax.tree.map(
    lambda leaf, layout: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=layout
    ),
    shapes,
    layouts(shapes, mesh),
  )


def make_array(leaf: Any, mesh: Mesh) -> jax.Array:
  """An array on the devices of a mesh, of which each process reads its own.

  Args:
    leaf: has the `path`, `shape` and `dtype`, and `read(index)` for a part, as
      those of core/convert.py.
    mesh: on which it is laid out by its path.
  """
  layout = NamedSharding(mesh, spec(leaf.path, leaf.shape, mesh))
  found: dict[str, np.ndarray] = {}

  def read(index: tuple[slice, ...]) -> np.ndarray:
    # Devices along `data` hold the same part.
    key = str(index)
    if key not in found:
      found[key] = leaf.read(index)
    return found[key]

  return jax.make_array_from_callback(
    leaf.shape, layout, read, dtype=leaf.dtype
  )


def current_mesh() -> Mesh | None:
  """The mesh that `jax.set_mesh` has set, if one is."""
  mesh = jax.sharding.get_mesh()
  return None if mesh.empty else mesh


def batch_layout(mesh: Mesh) -> NamedSharding:
  """Examples split over all devices that hold different ones."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """A global batch on the devices, from the rows that this host has read."""
  layout = batch_layout(mesh)
  return jax.tree.map(
    lambda rows: jax.make_array_from_process_local_data(layout, rows), batch
  )


def constrain(x: Any) -> Any:
  """Keeps activations split by example, when a mesh is set.

  The only thing models call here. A batch that does not divide (one image at
  a time, say) is left to the compiler.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or set(BATCH) - set(mesh.axis_names):
    return x
  if x.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH):
    return x
  layout = PartitionSpec(BATCH, *[None] * (x.ndim - 1))
  return jax.lax.with_sharding_constraint(x, layout)


def gather(x: Any) -> Any:
  """The whole array on every device, when a mesh is set: for results."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


@contextlib.contextmanager
def use_all_devices(batch_size: int) -> Iterator[Mesh]:
  """A mesh over all devices for work that is split by example only.

  Raises:
    ValueError: the batch does not divide over the devices.
  """
  mesh = make_mesh()
  if batch_size % batch_ways(mesh):
    raise ValueError(
      f"batch_size={batch_size} does not divide over {mesh.size} devices"
    )
  with jax.set_mesh(mesh):
    yield mesh
