# SPDX-License-Identifier: Apache-2.0
"""The mesh and the one table of layouts.

Three axes: `data` repeats weights (and may span slices), `fsdp` splits them,
`tensor` splits the matrices of attention and MLP. Batches are split over
`data` and `fsdp`. No other file names an axis.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)
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

# What of the state of training only the update of the weights reads.
SPREAD = ("ema.", "opt.")

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


def spec(
  path: str,
  shape: Sequence[int],
  mesh: Mesh | AbstractMesh,
  spread: bool = False,
) -> PartitionSpec:
  """The layout of one array: `tensor` by its path, `fsdp` by its size.

  The same function places weights, their averages and moments, frozen
  encoders and restored checkpoints, since their paths end alike.

  Args:
    path: of the array.
    shape: of the array.
    mesh: over whose axes it is laid out.
    spread: over `data`, too, where the axis that `fsdp` splits divides.
  """
  axes: list[str | None] = [None] * len(shape)
  if math.prod(shape) < SMALL:
    return PartitionSpec(*axes)
  for pattern, axis in TENSOR:
    ways = mesh.shape["tensor"]
    # Of one device it would only take the axis away from `fsdp`.
    if ways > 1 and pattern.search(path) and shape[axis] % ways == 0:
      axes[axis] = "tensor"
  free = [
    axis
    for axis, size in enumerate(shape)
    if axes[axis] is None and size % mesh.shape["fsdp"] == 0
  ]
  ways = math.prod(mesh.shape[axis] for axis in BATCH)
  whole = [axis for axis in free if shape[axis] % ways == 0] if spread else []
  if whole:
    axes[max(whole, key=lambda axis: shape[axis])] = BATCH
  elif free:
    axes[max(free, key=lambda axis: shape[axis])] = "fsdp"
  return PartitionSpec(*axes)


def layouts(params: Any, mesh: Mesh, spread: bool = False) -> Any:
  """A sharding for each leaf of a tree of arrays or shapes.

  With `spread`, what is below the names of `SPREAD` is so, see `spec`.
  """

  def layout(keys, leaf):
    path = tree.path(keys)
    wide = spread and path.startswith(SPREAD)
    return NamedSharding(mesh, spec(path, leaf.shape, mesh, wide))

  return jax.tree_util.tree_map_with_path(layout, params)


def with_layouts(shapes: Any, mesh: Mesh, spread: bool = False) -> Any:
  """Shapes that carry the layout in which arrays are to be made."""
  return jax.tree.map(
    lambda leaf, layout: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=layout
    ),
    shapes,
    layouts(shapes, mesh, spread),
  )


def spread(tree_: Any) -> Any:
  """Splits what an update works on over all devices, when a mesh is set.

  So that each updates its own part of the weights: arXiv 2004.13336.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or set(AXES) - set(mesh.axis_names):
    return tree_
  return jax.tree_util.tree_map_with_path(
    lambda keys, leaf: jax.lax.with_sharding_constraint(
      leaf, spec(tree.path(keys), leaf.shape, mesh, True)
    ),
    tree_,
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


def platform() -> str:
  """Of the devices that a trace is for: those of the mesh, if one is set.

  A plan traces for devices that this machine does not have.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def by_head(
  rows: int, heads: int, f: Callable[..., Any]
) -> Callable[..., Any] | None:
  """`f(q, k, v, mask, *args)`, on each device's rows and heads.

  Queries, keys and values are [B T N K], the mask [B T] or None.

  For kernels, which the compiler cannot split itself. Without a mesh it is `f`.

  Returns:
    None if rows or heads do not divide over the devices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or set(AXES) - set(mesh.axis_names):
    return f
  if rows % math.prod(mesh.shape[axis] for axis in BATCH):
    return None
  if heads % mesh.shape["tensor"]:
    return None
  layout = PartitionSpec(BATCH, None, "tensor")

  def split(q, k, v, mask, *args):
    return jax.shard_map(
      lambda q, k, v, mask: f(q, k, v, mask, *args),
      in_specs=(layout, layout, layout, PartitionSpec(BATCH)),
      out_specs=layout,
      # A kernel does not say over which axes its results differ.
      check_vma=False,
    )(q, k, v, mask)

  return split


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
