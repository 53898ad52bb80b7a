# SPDX-License-Identifier: Apache-2.0
"""The weights of one network in a folder of the hub: which files, and writing.

diffusers and transformers keep them as STEM.safetensors; above 5 GB in several
such files, of which STEM.safetensors.index.json tells each tensor's; in half
precision or of other weights as a variant, STEM.fp16.safetensors; and before
safetensors in files of torch, STEM.bin.
"""

from collections.abc import Iterator, Mapping, Sequence
import fnmatch
import json
import os
from typing import Any, NamedTuple

import huggingface_hub

from cc_jax.core import files, pickles, safetensors_files

# The preferred first: all bits before half of them, averaged weights before
# those that were not.
VARIANTS = ("", "fp16", "bf16", "non_ema")
SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".bin", ".pth", ".pt", ".ckpt")

# Where transformers has another stem for files of torch.
TORCH = {"model": "pytorch_model"}

# Bytes a file, above which the libraries write several.
LARGE = 5_000_000_000


class Names(NamedTuple):
  """How the files of one variant are called, in one of the two formats.

  Attributes:
    single: the file that has all.
    index: the file that tells which of several has a tensor.
    parts: a pattern of these.
  """

  single: str
  index: str
  parts: str


def names(stem: str, variant: str | None = None) -> Iterator[Names]:
  """What weights may be called, the preferred first.

  Args:
    stem: of safetensors files.
    variant: the only one to be considered; "" for that without a name.
  """
  for found in VARIANTS if variant is None else (variant,):
    dot = f".{found}" if found else ""
    for suffix in (SAFETENSORS, ".bin"):
      part = TORCH.get(stem, stem) if suffix == ".bin" else stem
      yield Names(
        f"{part}{dot}{suffix}",
        f"{part}{suffix}.index{dot}.json",
        f"{part}{dot}-*-of-*{suffix}",
      )


class Opened(NamedTuple):
  """Files that are open together.

  Attributes:
    files: the name of each, and a `pickles.File` or the tensors of safetensors.
    index: the file that tells which of them has a tensor, if one does.
  """

  files: tuple[tuple[str, Any], ...]
  index: str = ""

  def has(self, *keys: str) -> bool:
    """Whether `keys` lead to tensors in all of the files."""
    return all(
      file.has(*keys) if isinstance(file, pickles.File) else not keys
      for _, file in self.files
    )

  def tensors(self, *keys: str) -> dict[str, safetensors_files.Tensor]:
    """The tensors of all files by name, in files of torch those at `keys`.

    Raises:
      ValueError: a tensor is in two files, or not where the index says.
    """
    found: dict[str, safetensors_files.Tensor] = {}
    origin: dict[str, str] = {}
    for name, file in self.files:
      is_pickle = isinstance(file, pickles.File)
      for tensor, value in (file.tensors(*keys) if is_pickle else file).items():
        if tensor in found:
          raise ValueError(f"{tensor} is in {origin[tensor]} and in {name}")
        found[tensor], origin[tensor] = value, name
    if self.index:
      told = _weight_map(self.index)
      for tensor in sorted(told.keys() | origin.keys()):
        if told.get(tensor) != os.path.basename(origin.get(tensor, "")):
          where = origin.get(tensor, "no file")
          raise ValueError(
            f"{self.index} has {tensor} in {told.get(tensor, 'no file')}; it "
            f"is in {where}"
          )
    return found


def is_file(name: str) -> bool:
  """Whether this names one file of weights, not a folder of them."""
  return name.endswith(SUFFIXES) and files.path(name).is_file()


def open_files(*paths: str, index: str = "") -> Opened:
  """Opens files of weights, of either format by their suffix."""
  return Opened(
    tuple(
      (
        path,
        safetensors_files.open_file(path)
        if path.endswith(SAFETENSORS)
        else pickles.open_file(path),
      )
      for path in paths
    ),
    index,
  )


def open_folder(
  folder: str, stem: str = "*", variant: str | None = None
) -> Opened | None:
  """Opens the weights of a folder; None where there are none.

  Args:
    folder: of one network.
    stem: of its files; "*" for all safetensors files that are there.
    variant: such as "fp16"; None for the first of `VARIANTS` that is there.

  Raises:
    ValueError: some are missing, or damaged.
  """
  there = files.listing(folder)
  for name in names(stem, variant):
    match = fnmatch.filter(there, name.single)
    if match:
      return open_files(*(os.path.join(folder, file) for file in match))
    index = os.path.join(folder, name.index)
    if name.index in there:
      wanted = sorted(set(_weight_map(index).values()))
      for file in wanted:
        if file not in there:
          raise ValueError(f"{index} names {file}, which is not there")
      return open_files(
        *(os.path.join(folder, file) for file in wanted), index=index
      )
    parts = fnmatch.filter(there, name.parts)
    if parts:
      _check_complete(folder, parts)
      return open_files(*(os.path.join(folder, file) for file in parts))
  return None


def open_tensors(
  folder: str, stem: str = "*", variant: str | None = None
) -> dict[str, safetensors_files.Tensor]:
  """The tensors of a folder by name, not read; see `open_folder`.

  Raises:
    ValueError: there are none besides.
  """
  opened = open_folder(folder, stem, variant)
  if opened is None:
    raise ValueError(f"no {stem}{SAFETENSORS} in {folder}")
  return opened.tensors()


def _weight_map(index: str) -> dict[str, str]:
  """Which file has each tensor."""
  told = files.read_json(index)
  found = told.get("weight_map") if isinstance(told, dict) else None
  if not isinstance(found, dict) or not found:
    raise ValueError(f"{index} has no weight_map")
  for tensor, file in found.items():
    if not isinstance(file, str) or os.path.basename(file) != file:
      raise ValueError(f"{index} has {tensor} in {file!r}, which is no file")
  return found


def _check_complete(folder: str, parts: Sequence[str]) -> None:
  """Without an index, their numbers are to tell that all are there."""
  total = parts[0].rpartition("-of-")[2].partition(".")[0]
  if not total.isdigit() or int(total) != len(parts):
    raise ValueError(
      f"{folder} has {len(parts)} of {total} files such as {parts[0]}, and no "
      "index of them; download all"
    )


def save_folder(
  folder: str,
  tensors: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  stem: str,
  shard_bytes: int = LARGE,
) -> None:
  """Writes config.json and weights, as the libraries do and open them.

  Files of an earlier save that are not of this one are removed.

  Args:
    folder: is made when it is missing.
    tensors: by name: arrays, or `Tensor`s, which are read one by one.
    config: for config.json.
    stem: of the files of weights.
    shard_bytes: the size above which there are several.
  """
  made = {
    name: tensor
    if isinstance(tensor, safetensors_files.Tensor)
    else safetensors_files.in_memory(tensor)
    for name, tensor in sorted(tensors.items())
  }
  split = huggingface_hub.split_state_dict_into_shards_factory(
    made,
    get_storage_size=lambda tensor: tensor.bytes,
    filename_pattern=stem + "{suffix}" + SAFETENSORS,
    max_shard_size=shard_bytes,
  )
  plain = next(names(stem, ""))
  # A network without weights is a file without tensors.
  parts = split.filename_to_tensors or {plain.single: []}
  several = len(parts) > 1
  # Old parts go first: with new ones, a save that is cut off would mix them.
  there = files.listing(folder)
  old = fnmatch.filter(there, plain.index) + fnmatch.filter(there, plain.parts)
  for file in old if several else ():
    files.path(os.path.join(folder, file)).unlink()
  for file, inside in parts.items():
    safetensors_files.write_file(
      os.path.join(folder, file), {name: made[name] for name in inside}
    )
  for file in [plain.single] if several else old:
    files.path(os.path.join(folder, file)).unlink(missing_ok=True)
  if several:
    index = {
      "metadata": split.metadata,
      "weight_map": dict(sorted(split.tensor_to_filename.items())),
    }
    files.write_json(os.path.join(folder, plain.index), index)
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  files.write_atomic(os.path.join(folder, "config.json"), text)
