# SPDX-License-Identifier: Apache-2.0
"""Weights in the files of the Hugging Face hub, by one table a model.

Import and export both walk our leaves and ask for their names, so a table
says ours -> theirs only:

  ("attn.q", "self_attn.q_proj")   whole path segments, wherever they occur,
                                   row after row
  ("blocks", "layers.{l}")         {l} is our stacked first axis L
  ("attn.k", "attn.qkv[1/3]")      the second third of a fused tensor
  ("up", "mlp.c_fc^T")             a matrix that lies transposed there, [I O]
  ("time", "layers.{*}.time")      one array here, an equal copy there in each
                                   of the layers that are "layers.{l}"
  ("text", "model", names)         what is under "text", by a table of its own

What holds for all models is not in tables: kernel, scale and embedding are
"weight" there, [I O] is [O I], and [H W I O] is [O I H W]. Import is complete
in both directions: each of our leaves is filled and each of their tensors is
used once, else all that differs is in one error, before anything is read.
Then arrays are read and placed one by one, a layer at a time, so that no more
than one of them is in memory besides the result.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cc_jax.core import legacy, safetensors_files, tree

Names = Sequence[tuple[str, str] | tuple[str, str, Sequence]]
Tensors = Mapping[str, safetensors_files.Tensor]

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class Place(NamedTuple):
  """Where one of our leaves stands in their file."""

  name: str
  part: int = 0
  parts: int = 1
  stacked: bool = False
  transposed: bool = False
  copied: bool = False

  def spelled(self, layers: int) -> list[str]:
    """Its names, one a layer where it has several."""
    several = layers if self.stacked or self.copied else 1
    names = (self.name.replace("{l}", str(n)) for n in range(several))
    return [name.replace("{*}", str(n)) for n, name in enumerate(names)]


class Format(NamedTuple):
  """How the files of one origin spell the weights of a model.

  Attributes:
    names: the table.
    marker: a tensor that files of this origin have, and of no other.
    config: of such files, where they come without a config.json; or what makes
      it of their tensors by name, where their shapes tell.
    unused: how names begin of tensors that the model has no use for.
    keys: the way to the weights within a torch file, ("model", "ema"); or
      several ways, of which the first that is there is taken:
      (("state_dict_ema",), ("state_dict",)). Files without any of these are
      searched for the marker themselves.
  """

  names: Names
  marker: str
  config: Any = None
  unused: tuple[str, ...] = ()
  keys: tuple[str, ...] | tuple[tuple[str, ...], ...] = ()

  def ways(self) -> tuple[tuple[str, ...], ...]:
    """The ways in, the preferred first.

    >>> Format((), "w", keys=("model", "ema")).ways()
    (('model', 'ema'), ())
    """
    several = bool(self.keys) and not isinstance(self.keys[0], str)
    return (*(self.keys if several else (self.keys,)), ())


class Leaf(NamedTuple):
  """One of our arrays in their files, not read yet.

  Attributes:
    path: ours.
    shape: the same.
    dtype: of what `read` returns.
    where: it stands in the files.
    names: of their tensors, one a layer, or one.
    tensors: these.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  where: Place
  names: tuple[str, ...]
  tensors: tuple[safetensors_files.Tensor, ...]

  def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """The array, or the part of it that a device holds.

    Raises:
      ValueError: a number is too large for `dtype`, or the file is cut off.
    """
    index = (slice(None),) * len(self.shape) if index is None else index
    sizes = (
      len(range(size)[part])
      for size, part in zip(self.shape, index, strict=True)
    )
    result = np.empty(tuple(sizes), self.dtype)
    stacked = self.where.stacked
    layers = range(len(self.tensors))[index[0]] if stacked else (0,)
    for row, layer in enumerate(layers):
      target = result[row, ...] if stacked else result
      # A function, so that one tensor is let go before the next is read.
      self._fill(target, layer, index[stacked:])
    for name, tensor in zip(self.names[1:], self.tensors[1:], strict=True):
      if self.where.copied and not np.array_equal(
        self.tensors[0].read(), tensor.read()
      ):
        raise ValueError(
          f"{name} differs from {self.names[0]}; expected copies"
        )
    return result

  def _fill(
    self, target: np.ndarray, layer: int, index: tuple[slice, ...]
  ) -> None:
    array = _part(self.tensors[layer].read(), self.where)
    array = _to_ours(self.path, array, target.ndim)
    # The dots keep what is a scalar an array.
    _assign(target, array[(*index, ...)], self.names[layer])


def place(path: str, names: Names) -> Place:
  """Translates one of our paths.

  >>> place("blocks.attn.q.kernel", [("blocks", "h.{l}"), ("q", "qkv[0/3]")])
  Place(name='h.{l}.attn.qkv.weight', part=0, parts=3, stacked=True, \
transposed=False, copied=False)
  """
  for ours, replacement, *inner in names:
    if inner and path.startswith(f"{ours}."):
      found = place(path.removeprefix(f"{ours}."), *inner)
      return found._replace(name=f"{replacement}.{found.name}")
  body, _, leaf = path.rpartition(".")
  theirs = ".".join(filter(None, (body, LEAVES.get(leaf, leaf))))
  for ours, replacement, *_ in names:
    pattern = rf"(?<![^.]){re.escape(ours)}(?![^.])"
    theirs = re.sub(pattern, lambda _, new=replacement: new, theirs)
  fused = re.search(r"\[(\d+)/(\d+)\]", theirs)
  part, parts = (int(fused[1]), int(fused[2])) if fused else (0, 1)
  if fused:
    theirs = theirs.replace(fused[0], "")
  transposed = "^T" in theirs
  theirs = theirs.replace("^T", "")
  stacked, copied = "{l}" in theirs, "{*}" in theirs
  return Place(theirs, part, parts, stacked, transposed, copied)


def _places(
  flat: Mapping[str, Any], names: Names
) -> dict[str, tuple[Place, list[str]]]:
  """Where each leaf stands, and all its names there."""
  places = {path: place(path, names) for path in flat}
  depths = {
    where.name.partition("{l}")[0]: flat[path].shape[0]
    for path, where in places.items()
    if where.stacked
  }
  result = {}
  for path, where in places.items():
    ahead = re.split(r"{[l*]}", where.name)[0]
    result[path] = where, where.spelled(depths.get(ahead, 1))
  return result


def _to_theirs(path: str, array: np.ndarray) -> np.ndarray:
  """One layer's array in their order of axes."""
  if path.endswith("kernel"):
    if array.ndim == 2:
      return array.T
    if array.ndim == 4:
      return array.transpose(3, 2, 0, 1)
  return array


def _to_ours(path: str, array: np.ndarray, rank: int) -> np.ndarray:
  """The inverse; a 1x1 convolution there may be a linear layer here.

  A table that is added to each example of a batch may have an axis for it
  there.
  """
  if array.ndim == rank + 1 and array.shape[0] == 1:
    array = array[0]
  if path.endswith("kernel"):
    if array.ndim == 4 and rank == 2 and array.shape[2:] == (1, 1):
      array = array[:, :, 0, 0]
    if array.ndim == 2:
      return array.T
    if array.ndim == 4:
      return array.transpose(2, 3, 1, 0)
  return array


def _part(array: np.ndarray, where: Place) -> np.ndarray:
  """The view of one of our arrays in a tensor of theirs."""
  array = array.T if where.transposed else array
  if where.parts == 1:
    return array
  size = array.shape[0] // where.parts
  return array[where.part * size : (where.part + 1) * size]


def _assign(target: np.ndarray, source: np.ndarray, name: str) -> None:
  """Fills `target`; no finite number may become infinite by its type."""
  with np.errstate(over="ignore"):
    target[...] = source
  if target.dtype.itemsize < source.dtype.itemsize:
    lost = ~np.isfinite(target)
    if lost.any() and np.isfinite(source[lost]).any():
      raise ValueError(
        f"{name} has numbers too large for {target.dtype}; use bfloat16 or "
        "float32"
      )


def _floating(dtype: Any) -> bool:
  return jnp.issubdtype(dtype, jnp.floating)


def _their_shape(path: str, shape: Sequence[int], where: Place) -> tuple:
  """Of the tensor that holds one layer of our array."""
  # A view of one zero, for its axes only.
  one = np.broadcast_to(np.float32(0), tuple(shape))
  theirs = _to_theirs(path, one).shape
  if where.parts > 1:
    theirs = (theirs[0] * where.parts, *theirs[1:])
  return theirs[::-1] if where.transposed else theirs


def match(
  tensors: Mapping[str, safetensors_files.Tensor],
  shapes: Any,
  names: Names,
  dtype: Any = np.float32,
) -> list[Leaf]:
  """Finds our arrays in their tensors, of which none is read.

  Args:
    tensors: by their name, from core/weight_files.py.
    shapes: our tree of shapes (`tree.split` of an abstract module).
    names: the model's table.
    dtype: in which floating arrays are wanted; integers stay as they are.

  Raises:
    ValueError: a tensor is missing, left over, or of another shape or kind of
      type; all in one message.
  """
  tensors = legacy.normalised(tensors)
  wrong, used, parts, result = [], {}, {}, []
  flat = tree.flatten(shapes)
  for path, (where, spelled) in _places(flat, names).items():
    leaf = flat[path]
    expected = _their_shape(path, leaf.shape[where.stacked :], where)
    # A 1x1 convolution there may be a linear layer here, and a table that is
    # added to a batch may have an axis for it.
    fit = {expected, (1, *expected)}
    if len(expected) == 2 and not where.transposed:
      fit.add((*expected, 1, 1))
    found = []
    for name in spelled:
      if name not in tensors:
        wrong.append(f"missing {name} (our {path})")
        break
      seen = used.setdefault(name, set())
      parts[name] = where.parts
      if where.part in seen:
        wrong.append(f"{name} is asked for twice (again by {path})")
      seen.add(where.part)
      shape, kind = tensors[name].shape, tensors[name].dtype
      if shape not in fit:
        wrong.append(f"{name}: expected {expected}, got {shape}")
      if _floating(leaf.dtype) != _floating(kind):
        wrong.append(f"{name}: expected {leaf.dtype}, got {kind}")
      found.append(name)
    made = np.dtype(dtype if _floating(leaf.dtype) else leaf.dtype)
    read = tuple(tensors[name] for name in found)
    result.append(Leaf(path, leaf.shape, made, where, tuple(found), read))
  wrong += [f"left over {name}" for name in tensors if name not in used]
  for name, seen in used.items():
    rest = set(range(parts[name])) - seen
    if rest:
      numbers = ", ".join(map(str, sorted(rest)))
      wrong.append(f"parts {numbers} of {name} left over")
  if wrong:
    more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    raise ValueError("weights do not fit: " + "; ".join(wrong[:8]) + more)
  return result


def read(
  leaves: Iterable[Leaf], put: Callable[[Leaf], Any] = Leaf.read
) -> dict[str, Any]:
  """Our weights, in nested dicts.

  Args:
    leaves: from `match`.
    put: reads one, and places it where it is to stay.
  """
  return tree.unflatten({leaf.path: put(leaf) for leaf in leaves})


def import_weights(
  tensors: Mapping[str, safetensors_files.Tensor],
  shapes: Any,
  names: Names,
  *,
  dtype: Any = np.float32,
  put: Callable[[Leaf], Any] = Leaf.read,
) -> dict[str, Any]:
  """Their tensors as our weights: `match`, then `read`."""
  return read(match(tensors, shapes, names, dtype), put)


def export_tensors(
  params: Any, names: Names, dtype: Any = np.float32
) -> dict[str, safetensors_files.Tensor]:
  """Our weights under their names, each made when it is read.

  Args:
    params: our tree of arrays; of shapes, where nothing is to be read.
    names: the model's table.
    dtype: of floating arrays there; integers stay as they are.

  Raises:
    ValueError: two arrays are one tensor, or a tensor would not be whole.
  """
  pieces: dict[str, dict[int, Any]] = {}
  found: dict[str, tuple[Place, tuple[int, ...], np.dtype]] = {}
  flat = tree.flatten(params)
  for path, (where, spelled) in _places(flat, names).items():
    leaf = flat[path]
    shape = _their_shape(path, leaf.shape[where.stacked :], where)
    made = np.dtype(dtype if _floating(leaf.dtype) else leaf.dtype)
    for layer, name in enumerate(spelled):
      found[name] = where, shape, made
      index = (layer, ...) if where.stacked else ...
      if where.part in pieces.setdefault(name, {}):
        raise ValueError(f"two of our arrays are {name}; second is {path}")
      pieces[name][where.part] = path, leaf, index
  result = {}
  for name, (where, shape, made) in found.items():
    if len(pieces[name]) != where.parts:
      raise ValueError(
        f"{name} has {len(pieces[name])} of its {where.parts} parts"
      )
    make = functools.partial(_join, name, where, shape, made, pieces[name])
    result[name] = safetensors_files.Tensor(shape, made, make)
  return result


def _join(
  name: str,
  where: Place,
  shape: tuple[int, ...],
  dtype: np.dtype,
  pieces: Mapping[int, Any],
) -> np.ndarray:
  """One tensor of theirs, from the arrays of ours that are its parts."""
  result = np.empty(shape, dtype)
  for part, (path, leaf, index) in pieces.items():
    array = _to_theirs(path, _fetch(leaf, index))
    _assign(_part(result, where._replace(part=part)), array, name)
  return result


def _fetch(leaf: Any, index: Any) -> np.ndarray:
  """One layer of an array, or all of it, on the host."""
  if isinstance(leaf, jax.Array):
    platforms = [device.platform for device in leaf.devices()]
    if platforms != ["cpu"]:
      # What is fetched stays with the array that it is fetched of: not ours.
      return np.asarray(leaf[index].copy())
  return np.asarray(leaf)[index]


def export_weights(params: Any, names: Names) -> dict[str, np.ndarray]:
  """Our weights under their names: the inverse of `import_weights`."""
  tensors = export_tensors(params, names)
  return {name: tensor.read() for name, tensor in tensors.items()}


def export_shapes(shapes: Any, names: Names) -> dict[str, tuple[int, ...]]:
  """Names and shapes of what `export_weights` would write, without arrays.

  Args:
    shapes: our tree of arrays or shapes.
    names: the model's table.
  """
  tensors = export_tensors(shapes, names)
  return {name: tensor.shape for name, tensor in tensors.items()}
