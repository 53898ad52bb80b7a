# SPDX-License-Identifier: Apache-2.0
"""Networks by name: where their weights are, and how to read and write them.

A network is named by a preset ("SD2"), a row of models/published.py
("sd2/vae"), a folder in the layout of diffusers and transformers, or a group of
fields. Rows and folders bring their weights.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import hashlib
import json
import os
from typing import Any

from etils import epath
import huggingface_hub
import numpy as np

from cc_jax.core import config_json, convert, pickles, tree
from cc_jax.models import kinds, published


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network's config and weights; no weights where a name brings none."""

  config: Any
  params: dict[str, Any] | None = None

  @functools.cached_property
  def hash(self) -> str:
    """`weights_hash` of the weights."""
    return weights_hash(self.params)


def config(name: Any, kind: str) -> Any:
  """The config of a network, by any of its names. Nothing is downloaded.

  Args:
    name: a preset, a row of `published.TABLE`, a folder, or a mapping of
      fields.
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
  if not os.path.isdir(name):
    rows = _rows(kind)
    row = f"a row of models/published.py ({', '.join(rows)}), " if rows else ""
    presets = ", ".join(kinds.presets(kind))
    raise ValueError(
      f"no {kind} {name!r}; expected a preset ({presets}), {row}or a folder"
    )
  return _read_config(name, kind)


def load(name: str, kind: str, *, expect: Any = None) -> Loaded:
  """A network's config and its weights, in float32 numpy arrays.

  Args:
    name: a row of `published.TABLE`, which is downloaded unless it was
      before, a folder with a config.json and safetensors files, or one with
      `Kind.pickles`.
    kind: a key of `kinds.KINDS`.
    expect: the config that it must have, besides `Kind.free`; for a row its
      preset, when left out.

  Raises:
    ValueError: no such name, no weights there, or those of another network.
  """
  folder = name
  if isinstance(name, str) and name in published.TABLE:
    entry = _entry(name, kind)
    expect = kinds.preset(kind, entry.preset) if expect is None else expect
    folder = _download(name, entry)
  elif not isinstance(name, str) or name in kinds.presets(kind):
    raise ValueError(
      f"{kind} {name!r} has no weights; name a row of models/published.py or a "
      "folder"
    )
  elif not os.path.isdir(name):
    config(name, kind)
  found = _read_config(folder, kind)
  if expect is not None:
    _compare(found, expect, name, kind)
  tensors = _tensors(folder, kind)
  found = kinds.KINDS[kind].complete(found, tensors)
  _, shapes = kinds.structure(kind, found)
  try:
    params = convert.import_weights(
      tensors, shapes, kinds.KINDS[kind].source.NAMES
    )
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  return Loaded(found, params)


def open(
  name: Any, kind: str, defaults: Mapping[str, Any] | None = None
) -> Loaded:
  """A network by any of its names, with weights where the name brings them.

  Args:
    name: as of `config`.
    kind: a key of `kinds.KINDS`.
    defaults: for fields that a mapping of fields does not have.
  """
  if not isinstance(name, str):
    return Loaded(config({**(defaults or {}), **name}, kind))
  return (
    Loaded(config(name, kind))
    if name in kinds.presets(kind)
    else load(name, kind)
  )


def save(folder: str, kind: str, config: Any, params: Any) -> None:
  """Writes config.json and safetensors as diffusers and transformers do."""
  source = kinds.find(kind).source
  convert.save_folder(
    folder,
    convert.export_weights(params, source.NAMES),
    config_json.export_config(config, source.CONFIG),
    stem=kinds.KINDS[kind].stem,
  )


def weights_hash(params: Any) -> str:
  """A hash of weights: "sha256:" and 64 digits.

  Over the paths, shapes and little-endian float32 values of our arrays, in
  the order of paths; so it is the same before export and after import.
  """
  digest = hashlib.sha256()
  for path, leaf in sorted(tree.flatten(params).items()):
    array = np.ascontiguousarray(leaf, "<f4")
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


def _from_fields(fields: Any, kind: str) -> Any:
  """A config from a mapping, as groups of ml_collections are."""
  names = [field.name for field in dataclasses.fields(kinds.find(kind).config)]
  values = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in fields.items()
  }
  for name in values.keys() - set(names):
    near = difflib.get_close_matches(name, names, 1) or names
    raise ValueError(
      f"unknown field {name!r} of kind {kind}; did you mean {near[0]!r}?"
    )
  return kinds.KINDS[kind].config(**values)


def _read_config(folder: str, kind: str) -> Any:
  path = epath.Path(folder) / "config.json"
  if not path.exists():
    if _pickles(folder, kind):
      return kinds.KINDS[kind].config()
    raise ValueError(
      f"no config.json in {folder}; expected the folder of one network, as "
      "unet/ of a pipeline"
    )
  row = kinds.find(kind)
  try:
    theirs = json.loads(path.read_text())
    return config_json.import_config(theirs, row.config, row.source.CONFIG)
  except ValueError as error:
    raise ValueError(f"{path} as {kind}: {error}") from error


def _compare(found: Any, expect: Any, name: str, kind: str) -> None:
  differ = [
    f"{field.name}={getattr(found, field.name)!r} (expected "
    f"{getattr(expect, field.name)!r})"
    for field in dataclasses.fields(expect)
    if field.name not in kinds.KINDS[kind].free
    and getattr(found, field.name) != getattr(expect, field.name)
  ]
  if differ:
    raise ValueError(f"{name} is another {kind}: {', '.join(differ)}")


def _tensors(folder: str, kind: str) -> dict[str, convert.Tensor]:
  """Of safetensors files, or of the torch files that were published."""
  files = _pickles(folder, kind)
  if files:
    opened = [pickles.open_tensors(file) for file in files]
  else:
    opened = [convert.open_tensors(folder, _stem(folder, kind))]
  return {
    name: tensor
    for tensors in opened
    for name, tensor in tensors.items()
    if not name.startswith(kinds.KINDS[kind].unused)
  }


def _pickles(folder: str, kind: str) -> list[str]:
  """The torch files of a folder, where all of a kind's are there."""
  files = [epath.Path(folder) / name for name in kinds.find(kind).pickles]
  return list(map(str, files)) if all(file.exists() for file in files) else []


def _stems(kind: str) -> tuple[str, ...]:
  """File names of weights, up to the suffix, the preferred first."""
  stem = kinds.KINDS[kind].stem
  return stem, f"{stem}-*-of-*", f"{stem}.fp16"


def _stem(folder: str, kind: str) -> str:
  """Which weights to read where a folder holds several variants."""
  for stem in _stems(kind):
    if any(epath.Path(folder).glob(f"{stem}.safetensors")):
      return stem
  torch = " and ".join(kinds.KINDS[kind].pickles)
  choice = f", nor {torch}," if torch else ""
  raise ValueError(f"no {_stems(kind)[0]}.safetensors{choice} in {folder}")


def _download(name: str, entry: published.Entry) -> str:
  """The local folder of a row, fetched unless it is in the cache.

  Raises:
    ValueError: it cannot be fetched.
  """
  reason = "no weights in it"
  for stem in _stems(entry.kind):
    wanted = ("config.json", f"{stem}.safetensors")
    try:
      folder = huggingface_hub.snapshot_download(
        entry.repository,
        allow_patterns=[os.path.join(entry.subfolder, w) for w in wanted],
      )
    except (OSError, ValueError) as error:
      reason = str(error).strip().partition("\n")[0]
      break
    folder = os.path.join(folder, entry.subfolder)
    if all(any(epath.Path(folder).glob(pattern)) for pattern in wanted):
      return folder
  raise ValueError(
    f"cannot fetch {name} ({entry.repository}/{entry.subfolder}): {reason} "
    "Copy that folder here and name the copy, or allow the network."
  )
