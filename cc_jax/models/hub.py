# SPDX-License-Identifier: Apache-2.0
"""Networks by name: where their weights are, and how to read and write them.

A network is named by a preset ("SD2"), a row of models/published.py
("sd2/vae"), a folder in the layout of diffusers and transformers, a file of
weights, or a group of fields. Rows, folders and files bring their weights.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import functools
import hashlib
import json
import os
import typing
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from cc_jax.core import (
  config_json,
  convert,
  files,
  sharding,
  spelling,
  tree,
  weight_files,
)
from cc_jax.models import download, kinds, published, unread

# Of weights in files.
DTYPES = ("float32", "bfloat16", "float16")

# The ways to the weights in torch files whose names are those of NAMES.
WAYS = ((), ("state_dict",), ("model",))


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network's config and weights; no weights where a name brings none.

  Attributes:
    config: of its kind.
    params: nested dicts of arrays.
    leaves: the same in the files that they come from.
  """

  config: Any
  params: dict[str, Any] | None = None
  leaves: tuple[convert.Leaf, ...] | None = None

  @functools.cached_property
  def hash(self) -> str:
    """`weights_hash` of the weights, as the files have them.

    So it does not depend on the type or the devices they were loaded for; ""
    for weights that are not read (models/unread.py).
    """
    if unread.are_weights():
      return ""
    if self.leaves is None:
      return weights_hash(self.params)
    whole = [leaf._replace(dtype=np.dtype("float32")) for leaf in self.leaves]
    return _digest({leaf.path: leaf.read for leaf in whole})


def config(name: Any, kind: str) -> Any:
  """The config of a network, by any of its names. Nothing is downloaded.

  Args:
    name: a preset, a row of `published.TABLE`, a folder or file of weights,
      or a mapping of fields.
    kind: a key of `kinds.KINDS`.

  Raises:
    ValueError: no such network, or fields that cannot be.
  """
  if not isinstance(name, str):
    return _from_fields(name, kind)
  if name in published.TABLE:
    return kinds.preset(kind, _entry(name, kind).preset)
  if name in kinds.presets(kind):
    return kinds.preset(kind, name)
  if not files.path(name).exists():
    rows = _rows(kind)
    row = f"a row of models/published.py ({', '.join(rows)}), " if rows else ""
    presets = ", ".join(kinds.presets(kind))
    raise ValueError(
      f"no {kind} {name!r}; expected a preset ({presets}), {row}or a folder"
    )
  # Only where nothing says it outright are weights looked at.
  plain = not weight_files.is_file(name) and _config_json(name).exists()
  source = None if plain else _source(name, kind, None)
  return _config_of(name, kind, source)


def load(
  name: Any,
  kind: str,
  *,
  expect: Any = None,
  variant: str | None = None,
  dtype: Any = np.float32,
  mesh: jax.sharding.Mesh | None = None,
) -> Loaded:
  """A network's config and its weights.

  Args:
    name: a row of `published.TABLE`, which is downloaded unless it was
      before; a folder with a config.json and weights, or with `Kind.pickles`;
      or a file of weights, beside a config.json or of one of `Kind.formats`.
      Where weights are not read (models/unread.py), any name of `config`.
    kind: a key of `kinds.KINDS`.
    expect: the config that it must have, besides `Kind.free`; for a row its
      preset, when left out.
    variant: of the files in a folder, such as "fp16"; None for the first of
      `weight_files.VARIANTS` that is there.
    dtype: of the arrays; what is stored otherwise is converted.
    mesh: on whose devices the arrays are made, in the layouts of
      core/sharding.py, each process reading what its devices hold; None for
      arrays of NumPy.

  Raises:
    ValueError: no such name, no weights there, or those of another network.
  """
  if unread.are_weights():
    known = config(name, kind)
    if expect is not None:
      _compare(known, expect, str(name), kind)
    return Loaded(known, unread.shapes(kind, known, dtype, mesh))
  place = name
  if isinstance(name, str) and name in published.TABLE:
    entry = _entry(name, kind)
    expect = kinds.preset(kind, entry.preset) if expect is None else expect
    place = download.fetch(name, entry, kinds.KINDS[kind].stem, variant)
  elif not isinstance(name, str) or name in kinds.presets(kind):
    raise ValueError(
      f"{kind} {name!r} has no weights; name a row of models/published.py or a "
      "folder"
    )
  elif not files.path(name).exists():
    config(name, kind)
  source = _source(place, kind, variant)
  found = _config_of(place, kind, source, expect)
  if expect is not None:
    _compare(found, expect, name, kind)
  if source is None:
    row = kinds.KINDS[kind]
    torch = f", nor {' and '.join(row.pickles)}," if row.pickles else ""
    single = next(weight_files.names(row.stem, variant)).single
    raise ValueError(f"no {single}{torch} in {place}")
  if source.format is None:
    found = kinds.KINDS[kind].complete(found, source.tensors)
  _, shapes = kinds.structure(kind, found)
  made = source.format
  table = made.names if made else kinds.KINDS[kind].source.NAMES
  put = convert.Leaf.read
  if mesh is not None:
    put = functools.partial(sharding.make_array, mesh=mesh)
  try:
    leaves = convert.match(source.tensors, shapes, table, jnp.dtype(dtype))
    params = convert.read(leaves, put)
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from error
  return Loaded(found, params, tuple(leaves))


def open(
  name: Any,
  kind: str,
  defaults: Mapping[str, Any] | None = None,
  **options: Any,
) -> Loaded:
  """A network by any of its names, with weights where the name brings them.

  Args:
    name: as of `config`.
    kind: a key of `kinds.KINDS`.
    defaults: for fields that a mapping of fields does not have.
    **options: of `load`.
  """
  if not isinstance(name, str):
    name = {**(defaults or {}), **name}
  if unread.are_weights():
    return load(name, kind, **options)
  if not isinstance(name, str) or name in kinds.presets(kind):
    return Loaded(config(name, kind))
  return load(name, kind, **options)


def save(
  folder: str,
  kind: str,
  config: Any,
  params: Any,
  *,
  dtype: Any = np.float32,
  shard_bytes: int = weight_files.LARGE,
) -> None:
  """Writes config.json and safetensors as diffusers and transformers do.

  Args:
    folder: is made when it is missing.
    kind: a key of `kinds.KINDS`.
    config: of that kind.
    params: its weights.
    dtype: float32, bfloat16 or float16, of the weights in the files.
    shard_bytes: the size of a file, above which there are several.

  Raises:
    ValueError: another type, or numbers that are too large for it.
  """
  source, dtype = kinds.find(kind).source, jnp.dtype(dtype)
  if dtype.name not in DTYPES:
    raise ValueError(f"dtype={dtype.name}; expected {', '.join(DTYPES)}")
  weight_files.save_folder(
    folder,
    convert.export_tensors(params, source.NAMES, dtype),
    config_json.export_config(config, source.CONFIG),
    stem=kinds.KINDS[kind].stem,
    shard_bytes=shard_bytes,
  )


def weights_hash(params: Any) -> str:
  """A hash of weights: "sha256:" and 64 digits.

  Over the paths, shapes and little-endian float32 values of our arrays, in
  the order of paths; so it is the same before export and after import.
  """
  flat = tree.flatten(params)
  return _digest({path: lambda leaf=flat[path]: leaf for path in flat})


def _digest(read: Mapping[str, Callable[[], Any]]) -> str:
  """Of arrays that are read one by one."""
  digest = hashlib.sha256()
  for path in sorted(read):
    array = np.ascontiguousarray(read[path](), "<f4")
    digest.update(f"{path} {array.shape}\n".encode())
    digest.update(array.data)
  return f"sha256:{digest.hexdigest()}"


def _rows(kind: str) -> list[str]:
  return [row for row, entry in published.TABLE.items() if entry.kind == kind]


def _entry(name: str, kind: str) -> published.Entry:
  kinds.find(kind)
  entry = published.TABLE[name]
  if entry.kind != kind:
    raise ValueError(
      f"{name!r} is of kind {entry.kind}; expected {kind}: "
      f"{', '.join(_rows(kind)) or 'of which there is none'}"
    )
  return entry


def _from_fields(fields: Any, kind: str, part: type | None = None) -> Any:
  """A config, or one of its parts, from a mapping, as ml_collections has it."""
  config = part or kinds.find(kind).config
  names = typing.get_type_hints(config)
  values = {}
  for name, value in fields.items():
    inner = names.get(name)
    if dataclasses.is_dataclass(inner) and not isinstance(value, inner):
      value = _from_fields(value, kind, inner)
    values[name] = tuple(value) if isinstance(value, list) else value
  for name in values.keys() - names.keys():
    near = difflib.get_close_matches(name, names, 1) or list(names)
    raise ValueError(
      f"unknown field {name!r} of kind {kind}; did you mean {near[0]!r}?"
    )
  return config(**values)


def _config_of(
  place: str, kind: str, source: "Source | None", expect: Any = None
) -> Any:
  """The config of a folder or a file.

  That of the format, where a file is named or no config.json is there.
  """
  row, alone = kinds.find(kind), weight_files.is_file(place)
  path = _config_json(place)
  if source is not None and source.format and (alone or not path.exists()):
    made = source.format.config
    made = made(source.everything) if callable(made) else made
    if made is not None:
      return made
  if path.exists():
    try:
      theirs = json.loads(path.read_text())
      return config_json.import_config(theirs, row.config, row.source.CONFIG)
    except ValueError as error:
      raise ValueError(f"{path} as {kind}: {error}") from error
  if not alone and _pickles(place, kind):
    return row.config()
  if alone and expect is not None:
    return expect
  raise ValueError(
    f"no config.json in {path.parent}; expected the folder of one network, as "
    "unet/ of a pipeline"
  )


def _config_json(place: str) -> epath.Path:
  folder = os.path.dirname(place) if weight_files.is_file(place) else place
  return files.path(os.path.join(folder, "config.json"))


def fields(config: Any, prefix: str = "") -> dict[str, Any]:
  """The fields of a config and of its parts, as "text.width"."""
  result = {}
  for field in dataclasses.fields(config):
    value, name = getattr(config, field.name), prefix + field.name
    parts = dataclasses.is_dataclass(value)
    result |= fields(value, f"{name}.") if parts else {name: value}
  return result


def _compare(found: Any, expect: Any, name: str, kind: str) -> None:
  ours, theirs = fields(expect), fields(found)
  differ = [
    f"{field}={theirs[field]!r} (expected {value!r})"
    for field, value in ours.items()
    if field not in kinds.KINDS[kind].free and theirs[field] != value
  ]
  if differ:
    raise ValueError(f"{name} is another {kind}: {', '.join(differ)}")


class Source(NamedTuple):
  """Weights that were found, and of which format (None: NAMES).

  `everything` has also what is of no use but may tell the config.
  """

  tensors: spelling.Tensors
  format: spelling.Format | None
  everything: spelling.Tensors


def _source(place: str, kind: str, variant: str | None) -> Source | None:
  """The weights in a folder or a file, not read; None where none are."""
  row = kinds.find(kind)
  if weight_files.is_file(place):
    opened = weight_files.open_files(place)
  elif torch := _pickles(place, kind):
    opened = weight_files.open_files(*torch)
  else:
    opened = weight_files.open_folder(place, row.stem, variant)
  if opened is None:
    return None
  for format in row.formats:
    keys = next((keys for keys in format.ways() if opened.has(*keys)), None)
    tensors = {} if keys is None else opened.tensors(*keys)
    if format.marker in tensors:
      return Source(_without(tensors, format.unused), format, tensors)
  keys = next((keys for keys in WAYS if opened.has(*keys)), ())
  tensors = opened.tensors(*keys)
  return Source(_without(tensors, row.unused), None, tensors)


def _without(
  tensors: spelling.Tensors, unused: tuple[str, ...]
) -> spelling.Tensors:
  """Of which no name begins in one of these ways."""
  return {n: tensors[n] for n in tensors if not n.startswith(unused)}


def _pickles(folder: str, kind: str) -> list[str]:
  """The torch files of a folder, where all of a kind's are there."""
  found = [os.path.join(folder, name) for name in kinds.find(kind).pickles]
  return found if all(files.path(name).exists() for name in found) else []
