# SPDX-License-Identifier: Apache-2.0
"""Weights in the files of the Hugging Face hub, by one table a model.

Import and export both walk our leaves and ask for their names, so a table
says ours -> theirs only:

  ("attn.q", "self_attn.q_proj")   whole path segments, wherever they occur,
                                   row after row
  ("blocks", "layers.{l}")         {l} is our stacked first axis L
  ("attn.k", "attn.qkv[1/3]")      the second third of a fused tensor

What holds for all models is not in tables: kernel, scale and embedding are
"weight" there, [I O] is [O I], and [H W I O] is [O I H W]. Import is complete
in both directions: each of our leaves is filled and each of their tensors is
used once, else all that differs is in one error.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import inspect
import json
import re
import types
import typing
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


def place(path: str, names: Names) -> Place:
  """Translates one of our paths.

  >>> place("blocks.attn.q.kernel", [("blocks", "h.{l}"), ("q", "qkv[0/3]")])
  Place(name='h.{l}.attn.qkv.weight', part=0, parts=3, stacked=True)
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
  return Place(theirs, part, parts, "{l}" in theirs)


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
  for path, leaf in tree.flatten(shapes).items():
    where = place(path, names)
    layers = leaf.shape[0] if where.stacked else 1
    rank = len(leaf.shape) - where.stacked
    arrays = []
    for layer in range(layers):
      name = where.name.replace("{l}", str(layer))
      if name not in tensors:
        wrong.append(f"missing {name} (our {path})")
        break
      seen = used.setdefault(name, set())
      parts[name] = where.parts
      if where.part in seen:
        wrong.append(f"{name} is asked for twice (again by {path})")
      seen.add(where.part)
      whole = tensors[name].read()
      if whole.shape[0] % where.parts:
        wrong.append(f"{name} {whole.shape} has no {where.parts} parts")
        break
      array = np.split(whole, where.parts)[where.part]
      arrays.append(_to_ours(path, array, rank).astype(np.float32))
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
  counts: dict[str, int] = {}
  for path, leaf in tree.flatten(params).items():
    array, where = np.asarray(leaf), place(path, names)
    layers = array if where.stacked else [array]
    for layer, one in enumerate(layers):
      name = where.name.replace("{l}", str(layer))
      counts[name] = where.parts
      if where.part in parts.setdefault(name, {}):
        raise ValueError(f"two of our arrays are {name}; second is {path}")
      parts[name][where.part] = _to_theirs(path, one)
  result = {}
  for name, found in parts.items():
    if len(found) != counts[name]:
      raise ValueError(f"{name} has {len(found)} of its {counts[name]} parts")
    whole = np.concatenate([found[part] for part in sorted(found)])
    result[name] = np.ascontiguousarray(whole)
  return result


def export_shapes(shapes: Any, names: Names) -> dict[str, tuple[int, ...]]:
  """Names and shapes of what `export_weights` would write, without arrays.

  Args:
    shapes: our tree of arrays or shapes.
    names: the model's table.
  """
  result = {}
  for path, leaf in tree.flatten(shapes).items():
    where = place(path, names)
    layers = leaf.shape[0] if where.stacked else 1
    # A view of one zero, for its axes only.
    one = np.broadcast_to(np.float32(0), leaf.shape[where.stacked :])
    first, *rest = _to_theirs(path, one).shape
    for layer in range(layers):
      name = where.name.replace("{l}", str(layer))
      result[name] = (first * where.parts, *rest)
  return result


@dataclasses.dataclass(frozen=True)
class ConfigTable:
  """How a `Config` is written as the config.json of the hub.

  Attributes:
    renamed: our field -> their key; a field that is not named keeps its name.
    coded: their key -> our value -> their value; of a tuple, its elements.
    fixed: their key -> the one value that we support, also when it is absent.
    derived: from a config, their keys and values that follow from others;
      they must agree on import.
    ignored: their keys that do not change the computation.
    written: further keys and values that export adds (class names).
  """

  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  coded: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  derived: Callable[[Any], Mapping[str, Any]] = lambda config: {}
  ignored: Sequence[str] = ()
  written: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _tuples(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return tuple(map(_tuples, value))
  return value


def _coded(value: Any, codes: Mapping) -> Any:
  """A value by a table of `coded`, a tuple element by element."""
  if isinstance(value, tuple):
    return tuple(codes[element] for element in value)
  return codes[value]


def _fits(value: Any, hint: Any) -> bool:
  """Whether a value from JSON is of a field's type."""
  if isinstance(hint, types.UnionType):
    return any(_fits(value, choice) for choice in typing.get_args(hint))
  kind = typing.get_origin(hint) or hint
  if kind is float:
    return type(value) in (int, float)
  if kind is tuple and isinstance(value, tuple):
    element, *rest = typing.get_args(hint)
    same = rest == [...] or len(rest) + 1 == len(value)
    return same and all(_fits(one, element) for one in value)
  return type(value) is kind


def import_config(
  theirs: Mapping[str, Any], config: type, table: ConfigTable
) -> Any:
  """A `config` instance from a config.json.

  A key that is absent has the default of our field, which is to be theirs.

  Raises:
    ValueError: a key that we do not know, or a value that we do not support;
      all in one message.
  """
  theirs = {key: _tuples(value) for key, value in theirs.items()}
  fields = {
    table.renamed.get(field.name, field.name): field.name
    for field in dataclasses.fields(config)
  }
  hints = typing.get_type_hints(config)
  wrong, values, rest = [], {}, {}
  for key, value in theirs.items():
    if key in table.coded:
      codes = {new: old for old, new in table.coded[key].items()}
      known = set(value if isinstance(value, tuple) else [value]) <= set(codes)
      ours = _coded(value, codes) if known else None
      values[fields[key]] = ours
      if not known or not _fits(ours, hints[fields[key]]):
        wrong.append(f"{key}={value!r} (supported: {', '.join(codes)})")
    elif key in fields:
      values[fields[key]] = value
      if not _fits(value, hints[fields[key]]):
        kind = inspect.formatannotation(hints[fields[key]])
        wrong.append(f"{key}={value!r} (supported: {kind})")
    elif key in table.fixed:
      if value != _tuples(table.fixed[key]):
        wrong.append(f"{key}={value!r} (supported: {table.fixed[key]!r})")
    elif key not in table.ignored and key not in table.written:
      rest[key] = value
  if wrong:
    raise ValueError("config.json has " + ", ".join(wrong))
  result = config(**values)
  derived = table.derived(result)
  for key, value in rest.items():
    if key in derived:
      if value != _tuples(derived[key]):
        wrong.append(f"{key}={value!r} (expected: {derived[key]!r})")
    elif not key.startswith("_"):
      wrong.append(f"{key}={value!r} (unknown)")
  if wrong:
    raise ValueError("config.json has " + ", ".join(wrong))
  return result


def export_config(config: Any, table: ConfigTable) -> dict[str, Any]:
  """The config.json of a `Config`: the inverse of `import_config`."""
  ours = {}
  for name, value in dataclasses.asdict(config).items():
    key = table.renamed.get(name, name)
    codes = table.coded.get(key)
    ours[key] = value if codes is None else _coded(value, codes)
  return {**table.written, **table.fixed, **table.derived(config), **ours}


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
