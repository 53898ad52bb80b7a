# SPDX-License-Identifier: Apache-2.0
"""cc-jax deduplicate: a catalogue without copies, near ones included.

Three steps: a pass that writes signatures beside the images, one process that
finds copies among them (data/duplicates.py), and a pass that leaves them out.
"""

import collections
from collections.abc import Iterator
import json
from typing import Any

import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from cc_jax.core import files, log, versions
from cc_jax.data import catalogue, duplicates, passes, shards, tally

SIGNATURES = {
  "key": "text",
  "freedom": "int32",
  "pixels": "int64",
  "luminance": ("uint8", (duplicates.SIDE, duplicates.SIDE)),
}
"""The signatures' folder: 1.1 kB an image, so that images are read once."""

_BLOCK = 4096


def main(config: ml_collections.ConfigDict, workdir: str) -> tally.Counts:
  """Keeps of each image the copy that is freest, then largest.

  Raises:
    ValueError: no images, or a folder that was begun with other settings.
  """
  options = config.deduplicate
  images = shards.open(options.images)
  missing = catalogue.FEATURES.keys() - {field.name for field in images.fields}
  if missing:
    raise ValueError(
      f"{images.folder} has no feature {min(missing)!r}; name a folder that "
      "`cc-jax catalogue` wrote"
    )
  log.announce(
    "deduplicate", f"{len(images)} images of {images.folder} -> signatures"
  )
  signatures = _pass(
    options.signatures,
    images,
    "signatures",
    features=SIGNATURES,
    pieces=passes.pieces([images]),
    fn=lambda batch: [_sign(image, options.max_pixels) for image in batch],
    config={"max_pixels": options.max_pixels},
    inputs=passes.inputs([images]),
    keep_all=True,
  )
  # On several hosts the signatures of all are needed, and then the copies.
  _wait("signatures")
  if (
    not signatures.complete
    and not files.path(f"{options.signatures}/{shards.INFO}").exists()
  ):
    raise ValueError(f"{options.signatures} is unfinished; run this again")
  if log.is_first():
    _find(shards.open(options.signatures), options)
  _wait("copies")
  copies = _read_copies(options.duplicates)
  log.announce("deduplicate", f"{len(images)} images -> {options.folder}")
  counts = _pass(
    options.folder,
    images,
    "deduplicate",
    features=catalogue.FEATURES,
    pieces=[
      piece._replace(read=_without(piece, copies))
      for piece in passes.pieces([images])
    ],
    fn=lambda batch: batch,
    config={"threshold": options.threshold, "crops": options.crops},
    inputs=[
      *passes.inputs([images]),
      {"duplicates": files.sha256(files.path(options.duplicates))},
    ],
  )
  versions.record(workdir, "deduplicate", config)
  log.announce("deduplicate", f"{counts}")
  return counts


def _pass(
  folder: str, images: shards.Dataset, stage: str, **settings: Any
) -> tally.Counts:
  with log.progress(len(images), "deduplicate", "images") as progress:
    return passes.run(
      folder,
      name=images.name,
      stage=stage,
      batch_size=64,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=progress,
      **settings,
    )


def _wait(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"deduplicate: {what}")


def _sign(image: dict[str, Any], max_pixels: int) -> dict[str, Any]:
  return {
    "key": image["key"],
    "freedom": duplicates.freedom(image["licence"]),
    "pixels": int(image["width"]) * int(image["height"]),
    "luminance": duplicates.signature(image["image"], max_pixels=max_pixels),
  }


def _rows(dataset: shards.Dataset) -> Iterator[tuple[str, int, int]]:
  """(split, shard, record) of every record, in order."""
  for split, lengths in dataset.splits.items():
    for shard, length in enumerate(lengths):
      for record in range(length):
        yield split, shard, record


def _records(
  dataset: shards.Dataset, names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
  for split, lengths in dataset.splits.items():
    for shard in range(len(lengths)):
      yield from shards.read(dataset, split, shard, names)


def _find(dataset: shards.Dataset, options: ml_collections.ConfigDict) -> None:
  """Writes the copies, a line each, and then their counts beside them."""
  settings = {
    "inputs": passes.inputs([dataset]),
    "threshold": options.threshold,
    "crops": options.crops,
  }
  summary = f"{options.duplicates}.summary.json"
  if files.path(summary).exists():
    if files.read_json(summary)["settings"] == settings:
      return
  count = len(dataset)
  keys, rank = np.empty(count, "S64"), np.empty((2, count), np.int64)
  fields = ("key", "freedom", "pixels")
  for row, record in enumerate(_records(dataset, fields)):
    keys[row] = record["key"].encode()
    rank[:, row] = record["freedom"], -record["pixels"]
  # Where all is equal, the earlier record.
  order = np.lexsort((np.arange(count), keys, rank[1], rank[0]))
  place = np.empty(count, np.int64)
  place[order] = np.arange(count)

  def read() -> Iterator[np.ndarray]:
    block = []
    for record in _records(dataset, ("luminance",)):
      block.append(record["luminance"])
      if len(block) == _BLOCK:
        yield np.stack(block)
        block = []
    if block:
      yield np.stack(block)

  log.announce("deduplicate", f"comparing {count} signatures")
  pairs = duplicates.find(
    read, keys, place, threshold=options.threshold, crops=options.crops
  )
  lines, distances, exact = [], collections.Counter(), 0
  wanted = {pair.copy: pair for pair in pairs}
  for row, where in enumerate(_rows(dataset)):
    if (pair := wanted.get(row)) is None:
      continue
    key, kept = keys[row].decode(), keys[pair.kept].decode()
    exact += key == kept
    distances[pair.distance] += key != kept
    names = ("split", "shard", "record", "key", "kept", "distance")
    line = dict(zip(names, (*where, key, kept, pair.distance), strict=True))
    lines.append(json.dumps(line) + "\n")
  files.write_atomic(options.duplicates, "".join(lines))
  near = {str(d): distances[d] for d in sorted(distances) if distances[d]}
  files.write_json(
    summary,
    {"settings": settings, "read": count, "exact": exact, "near": near},
  )


def _read_copies(path: str) -> dict[tuple[str, int], dict[int, Any]]:
  """The lines of the copies, by shard and record."""
  copies: dict[tuple[str, int], dict[int, Any]] = {}
  with files.path(path).open("rb") as lines:
    for line in lines:
      copy = json.loads(line)
      shard = copies.setdefault((copy["split"], copy["shard"]), {})
      shard[copy["record"]] = copy
  return copies


def _without(piece: passes.Piece, copies: dict[tuple[str, int], Any]) -> Any:
  """What reads a piece with rejects in the place of copies."""
  own = copies.get((piece.split, piece.index), {})

  def read() -> Iterator[Any]:
    for record, example in enumerate(piece.read()):
      copy = own.get(record)
      if copy is None:
        yield example
        continue
      exact = copy["key"] == copy["kept"]
      how = "the same bytes" if exact else f"{copy['distance']} of 256 bits"
      detail = f"a copy of {copy['kept']}: {how}"
      yield passes.Reject("duplicate", copy["key"], detail)

  return read
