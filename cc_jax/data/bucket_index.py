# SPDX-License-Identifier: Apache-2.0
"""Which bucket each record of a dataset is of, without reading the records.

    buckets.npz   SPLIT: int32 [R], height * 2^16 + width of each record's frame
                  SPLIT.lengths: records of each shard when it was written

`cc-jax encode` writes it beside the shards: 4 bytes a record, which a loader
reads at once on each host. It is a copy of the feature `bucket`. A shard that
has another length now (records were removed) is read again, and so are all
where there is no such file, as in a subset.
"""

from collections.abc import Mapping, Sequence
import io
import os

from jaxtyping import Int
import numpy as np

from cc_jax.core import files
from cc_jax.data import aligned, shards

FILE = "buckets.npz"


def write(dataset: shards.Dataset) -> None:
  """Writes the index of a complete dataset; the same bytes each time.

  It reads all records once, at about the speed of the storage.
  """
  arrays = {}
  for split, lengths in dataset.splits.items():
    found = [_scan(dataset, split, shard) for shard in range(len(lengths))]
    arrays[split] = np.concatenate([np.zeros(0, np.int32), *found])
    arrays[f"{split}.lengths"] = np.array(lengths, np.int64)
  content = io.BytesIO()
  np.savez(content, **arrays)
  files.write_atomic(os.path.join(dataset.folder, FILE), content.getvalue())


def load(source: aligned.Source) -> Int[np.ndarray, "R"]:
  """The bucket of each record that a loader reads.

  Raises:
    ValueError: no folder of the source has a feature `bucket`.
  """
  for dataset in source.datasets:
    if "bucket" in {field.name for field in dataset.fields}:
      return _load(dataset, source.split)
  folders = ", ".join(dataset.folder for dataset in source.datasets)
  raise ValueError(f"no feature 'bucket' in {folders}; encode the images again")


def _load(dataset: shards.Dataset, split: str) -> Int[np.ndarray, "R"]:
  known: Sequence[np.ndarray] = ()
  path = files.path(os.path.join(dataset.folder, FILE))
  if path.exists():
    arrays: Mapping[str, np.ndarray] = np.load(io.BytesIO(path.read_bytes()))
    ends = np.cumsum(arrays[f"{split}.lengths"])
    known = np.split(arrays[split], ends[:-1])
  lengths = dataset.splits[split]
  same = len(known) == len(lengths)
  return np.concatenate(
    [
      known[shard]
      if same and len(known[shard]) == length
      else _scan(dataset, split, shard)
      for shard, length in enumerate(lengths)
    ]
  )


def _scan(
  dataset: shards.Dataset, split: str, shard: int
) -> Int[np.ndarray, "R"]:
  frames = [
    record["bucket"]
    for record in shards.read(dataset, split, shard, ["bucket"])
  ]
  height, width = np.array(frames, np.int32).reshape(-1, 2).T
  return height * 2**16 + width
