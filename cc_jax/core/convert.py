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

What holds for all models is not in tables: kernel, scale and embedding are
"weight" there, [I O] is [O I], and [H W I O] is [O I H W]. Import is complete
in both directions: each of our leaves is filled and each of their tensors is
used once, else all that differs is in one error.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import re
from typing import Any, NamedTuple

from etils import epath
import numpy as np
import safetensors
import safetensors.numpy

from cc_jax.core import tree

Names = Sequence[tuple[str, str]]

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

# Spellings of files written by early releases of the libraries. None drops a
# buffer that holds no weight.
LEGACY: tuple[tuple[re.Pattern, str | None], ...] = (
  (re.compile(r"(attentions\.\d+)\.query\."), r"\1.to_q."),
  (re.compile(r"(attentions\.\d+)\.key\."), r"\1.to_k."),
  (re.compile(r"(attentions\.\d+)\.value\."), r"\1.to_v."),
  (re.compile(r"(attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
  (
    re.compile(r"^(?=(embeddings|encoder\.layers|final_layer_norm)\.)"),
    "text_model.",
  ),
  (re.compile(r".*\.position_ids$"), None),
)


class Tensor(NamedTuple):
  """A tensor in a file, not read yet: its shape, and what reads it."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def _read(file: str, name: str) -> np.ndarray:
  with safetensors.safe_open(file, "numpy") as tensors:
    return tensors.get_tensor(name)


def open_tensors(folder: str, stem: str = "*") -> dict[str, Tensor]:
  """The tensors of a folder's safetensors files, by name, without reading.

  Args:
    folder: of one model, as diffusers and transformers save it: one file, or
      several of which each tensor is in one.
    stem: the file name up to ".safetensors", where a folder holds variants.

  Raises:
    ValueError: the folder or the files are missing.
  """
  files = sorted(epath.Path(folder).glob(f"{stem}.safetensors"))
  if not files:
    raise ValueError(f"no {stem}.safetensors in {folder}")
  found = {}
  for file in files:
    with safetensors.safe_open(str(file), "numpy") as tensors:
      for name in tensors.keys():
        shape = tuple(tensors.get_slice(name).get_shape())
        read = functools.partial(_read, str(file), name)
        found[name] = Tensor(shape, read)
  return found


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
    config: of such files, which come without a config.json; or a function
      that reads it off their tensors.
    unused: how names begin of tensors that the model has no use for.
    keys: the way to the weights within a torch file.
  """

  names: Names
  marker: str
  config: Any = None
  unused: tuple[str, ...] = ()
  keys: tuple[str, ...] = ()


def place(path: str, names: Names) -> Place:
  """Translates one of our paths.

  >>> place("blocks.attn.q.kernel", [("blocks", "h.{l}"), ("q", "qkv[0/3]")])
  Place(name='h.{l}.attn.qkv.weight', part=0, parts=3, stacked=True, \
transposed=False, copied=False)
  """
  body, _, leaf = path.rpartition(".")
  theirs = ".".join(filter(None, (body, LEAVES.get(leaf, leaf))))
  for ours, replacement in names:
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
  """The inverse; a 1x1 convolution there may be a linear layer here."""
  if path.endswith("kernel"):
    if array.ndim == 4 and rank == 2 and array.shape[2:] == (1, 1):
      array = array[:, :, 0, 0]
    if array.ndim == 2:
      return array.T
    if array.ndim == 4:
      return array.transpose(2, 3, 1, 0)
  return array


def _normalised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  result = {}
  for name, tensor in tensors.items():
    for pattern, new in LEGACY:
      if pattern.search(name):
        name = None if new is None else pattern.sub(new, name)
      if name is None:
        break
    else:
      result[name] = tensor
  return result


def import_weights(
  tensors: Mapping[str, Tensor], shapes: Any, names: Names
) -> dict[str, Any]:
  """Their tensors as our weights, in float32.

  Args:
    tensors: by their name, from `open_tensors` here or in core/pickles.py.
    shapes: our tree of shapes (`tree.split` of an abstract module).
    names: the model's table.

  Returns:
    Nested dicts of numpy arrays with the paths of `shapes`.

  Raises:
    ValueError: a tensor is missing, left over or of another shape; all in
      one message.
  """
  tensors = _normalised(tensors)
  wrong, used, parts, result = [], {}, {}, {}
  flat = tree.flatten(shapes)
  for path, (where, spelled) in _places(flat, names).items():
    leaf = flat[path]
    rank = len(leaf.shape) - where.stacked
    arrays = []
    for name in spelled:
      if name not in tensors:
        wrong.append(f"missing {name} (our {path})")
        break
      seen = used.setdefault(name, set())
      parts[name] = where.parts
      if where.part in seen:
        wrong.append(f"{name} is asked for twice (again by {path})")
      seen.add(where.part)
      whole = tensors[name].read()
      whole = whole.T if where.transposed else whole
      if whole.shape[0] % where.parts:
        wrong.append(f"{name} {whole.shape} has no {where.parts} parts")
        break
      array = np.split(whole, where.parts)[where.part]
      arrays.append(_to_ours(path, array, rank).astype(np.float32))
      if where.copied:
        if not np.array_equal(arrays[0], arrays[-1]):
          wrong.append(f"{name} differs from {spelled[0]}; expected copies")
        del arrays[1:]
    else:
      array = np.stack(arrays) if where.stacked else arrays[0]
      if array.shape != leaf.shape:
        wrong.append(f"{where.name}: expected {leaf.shape}, got {array.shape}")
      result[path] = np.ascontiguousarray(array)
  wrong += [f"left over {name}" for name in tensors if name not in used]
  for name, seen in used.items():
    rest = set(range(parts[name])) - seen
    if rest:
      numbers = ", ".join(map(str, sorted(rest)))
      wrong.append(f"parts {numbers} of {name} left over")
  if wrong:
    more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    raise ValueError("weights do not fit: " + "; ".join(wrong[:8]) + more)
  return tree.unflatten(result)


def export_weights(params: Any, names: Names) -> dict[str, np.ndarray]:
  """Our weights under their names: the inverse of `import_weights`."""
  parts: dict[str, dict[int, np.ndarray]] = {}
  places: dict[str, Place] = {}
  flat = tree.flatten(params)
  for path, (where, spelled) in _places(flat, names).items():
    array = np.asarray(flat[path])
    layers = array if where.stacked else [array] * len(spelled)
    for name, one in zip(spelled, layers, strict=True):
      places[name] = where
      if where.part in parts.setdefault(name, {}):
        raise ValueError(f"two of our arrays are {name}; second is {path}")
      parts[name][where.part] = _to_theirs(path, one)
  result = {}
  for name, found in parts.items():
    where = places[name]
    if len(found) != where.parts:
      raise ValueError(f"{name} has {len(found)} of its {where.parts} parts")
    whole = np.concatenate([found[part] for part in sorted(found)])
    whole = whole.T if where.transposed else whole
    result[name] = np.ascontiguousarray(whole)
  return result


def export_shapes(shapes: Any, names: Names) -> dict[str, tuple[int, ...]]:
  """Names and shapes of what `export_weights` would write, without arrays.

  Args:
    shapes: our tree of arrays or shapes.
    names: the model's table.
  """
  result = {}
  flat = tree.flatten(shapes)
  for path, (where, spelled) in _places(flat, names).items():
    # A view of one zero, for its axes only.
    one = np.broadcast_to(np.float32(0), flat[path].shape[where.stacked :])
    first, *rest = _to_theirs(path, one).shape
    shape = (first * where.parts, *rest)
    for name in spelled:
      result[name] = shape[::-1] if where.transposed else shape
  return result


def save_folder(
  folder: str,
  tensors: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  *,
  stem: str,
) -> None:
  """Writes config.json and `stem`.safetensors, as libraries open them."""
  path = epath.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  # "format" is what diffusers and transformers look at before they read.
  # safetensors writes memory as it lies, whatever the strides say.
  dense = {name: np.ascontiguousarray(tensors[name]) for name in tensors}
  data = safetensors.numpy.save(dense, metadata={"format": "pt"})
  (path / f"{stem}.safetensors").write_bytes(data)
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  (path / "config.json").write_text(text)
