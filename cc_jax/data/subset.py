# SPDX-License-Identifier: Apache-2.0
"""So many records of a dataset, drawn by seed: how many images are enough?

A record's place in the draw is a hash of the seed and its key, and those with
the smallest hashes are drawn. So the number is exact, a smaller subset lies in
a larger one of the same seed, and what is drawn from a catalogue is drawn from
the folders beside it.
"""

from collections.abc import Iterator, Mapping
import functools
import hashlib
from typing import Any

from jaxtyping import Int64
import numpy as np

from cc_jax.core import config as configs
from cc_jax.data import aligned, ledger, passes, rows, shards

BY = ("", "licence")


def choose(
  dataset: shards.Dataset, split: str, count: int, *, by: str, seed: int
) -> Int64[np.ndarray, "N"]:
  """The indices of the records that are drawn from a split, ascending.

  Args:
    dataset: a catalogue, or, when `by` is "", any folder with keys.
    split: of which records are drawn.
    count: how many.
    by: "" to draw from all alike; "licence" to draw from each licence its
      share of the count (largest remainders are rounded up).
    seed: another one draws others.

  Raises:
    ValueError: there is no such split or rule, or fewer records than that.
  """
  if by not in BY:
    raise configs.unknown("subset.by", by, list(BY))
  total = sum(dataset.splits.get(split, ()))
  if not 1 <= count <= total:
    raise ValueError(
      f"subset.count={count} of {total} records of the split {split!r} of "
      f"{dataset.folder}; expected from 1 to all of them"
    )
  if by and by not in {field.name for field in dataset.fields}:
    raise ValueError(
      f"{dataset.folder} has no feature {by!r} to draw by; name the catalogue "
      "first in subset.folders"
    )
  book = ledger.resume(dataset.folder)
  hashes = np.empty(total, np.uint64)
  groups = np.zeros(total, np.int64)
  names: dict[str, int] = {}
  index = 0
  for shard in range(len(dataset.splits[split])):
    for row in ledger.owners(book, dataset, split, shard):
      digest = hashlib.sha256(f"{seed}:{row['key']}".encode()).digest()
      hashes[index] = int.from_bytes(digest[:8])
      if by:
        groups[index] = names.setdefault(row[by], len(names))
      index += 1
  drawn = []
  for group, share in enumerate(shares(np.bincount(groups), count)):
    own = np.flatnonzero(groups == group)
    order = np.argsort(hashes[own], kind="stable")
    drawn.append(own[order[:share]])
  return np.sort(np.concatenate(drawn))


def shares(sizes: Int64[np.ndarray, "G"], count: int) -> Int64[np.ndarray, "G"]:
  """Divides a count among groups by their sizes: largest remainders."""
  exact = sizes * count
  parts = exact // sizes.sum()
  left = count - parts.sum()
  order = np.argsort(-(exact % sizes.sum()), kind="stable")
  parts[order[:left]] += 1
  return parts


def pieces(
  dataset: shards.Dataset,
  drawn: Mapping[str, Int64[np.ndarray, "N"]],
  records_per_shard: int,
) -> list[passes.Piece]:
  """Pieces of a pass over the records drawn; splits not named stay whole."""
  made = []
  for split, lengths in dataset.splits.items():
    chosen = drawn.get(split, np.arange(sum(lengths)))
    for index, count, low, high in rows.even(len(chosen), records_per_shard):
      read = functools.partial(_read, dataset, split, chosen[low:high])
      made.append(passes.Piece(split, index, count, read, high - low))
  return made


def _read(
  dataset: shards.Dataset, split: str, indices: Int64[np.ndarray, "N"]
) -> Iterator[dict[str, Any]]:
  source = aligned.source([dataset], split)
  try:
    for index in indices:
      yield source[int(index)]
  finally:
    source.close()
