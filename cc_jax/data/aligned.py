# SPDX-License-Identifier: Apache-2.0
"""Aligned datasets read as one: a folder and the side folders beside it.

Folders are aligned when they have the same splits, the same number of records
in each shard and the same `key` in each record. A side folder holds `key` and
what it adds (captions, say), so that photographs are never copied.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import itertools
import threading
from typing import Any

from cc_jax.core import files
from cc_jax.data import records, shards

# A request to a bucket is mostly waiting, so many are kept in flight.
_REMOTE_READS = 64


@dataclasses.dataclass(frozen=True)
class Source:
  """Random access to one split of aligned datasets; made by `source`.

  `source[i]` is record i as a dict, `len(source)` the number of records, so
  Grain takes it as a data source. Files open when first needed; several threads
  may read.

  Attributes:
    datasets: the folders, the first one leading.
    split: which of their splits.
    fields: the features of a record here.
    ends: the index after the last record of each shard.
    decoders: for each folder.
    readers: the open files of each folder; None where not yet opened.
    lock: held while a file is opened.
    pool: threads that read from a bucket; None for local folders.
  """

  datasets: tuple[shards.Dataset, ...]
  split: str
  fields: tuple[records.Field, ...]
  ends: tuple[int, ...]
  decoders: tuple[Any, ...]
  readers: tuple[list[Any], ...]
  lock: Any
  pool: concurrent.futures.ThreadPoolExecutor | None

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    shard = bisect.bisect_right(self.ends, index)
    position = index - (self.ends[shard - 1] if shard else 0)
    parts = []
    for table, decode in enumerate(self.decoders):
      with shards.whole(self.datasets[table].path(self.split, shard)):
        record = self._reader(table, shard).read([position])[0]
      parts.append(decode(record))
    if len(parts) == 1:
      return parts[0]
    where = f"record {position} of {self.split} shard {shard}"
    joined = _join(self.datasets, parts, where)
    return {field.name: joined[field.name] for field in self.fields}

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Returns several records in the order asked for."""
    if self.pool is None:
      return [self[index] for index in indices]
    return list(self.pool.map(self.__getitem__, indices))

  def close(self) -> None:
    """Closes the files; a later read opens them again."""
    with self.lock:
      for readers in self.readers:
        for shard, reader in enumerate(readers):
          if reader is not None:
            reader.close()
            readers[shard] = None

  def _reader(self, table: int, shard: int) -> Any:
    if (reader := self.readers[table][shard]) is not None:
      return reader
    with self.lock:
      if self.readers[table][shard] is None:
        reader = shards.reader(
          self.datasets[table], self.split, shard, readahead=False
        )
        self.readers[table][shard] = reader
      return self.readers[table][shard]


def source(
  datasets: Sequence[shards.Dataset],
  split: str,
  features: Sequence[str] | None = None,
) -> Source:
  """Opens one split of a dataset, or of several aligned ones.

  Args:
    datasets: one, or one and its side folders.
    split: for example "train".
    features: those to decode; all when None.

  Raises:
    ValueError: if the datasets are not aligned, or there is no such split or
      feature, or no record in it. Reading raises it when two folders have
      different keys for a record.
  """
  check(datasets)
  lengths = datasets[0].splits.get(split, ())
  if not sum(lengths):
    held = {name: sum(n) for name, n in datasets[0].splits.items()}
    raise ValueError(
      f"{datasets[0].folder} has no records in the split {split!r}; it has "
      f"{held}"
    )
  fields = {f.name: f for dataset in datasets for f in dataset.fields}
  wanted = sorted(fields) if features is None else list(features)
  if unknown := [name for name in wanted if name not in fields]:
    raise ValueError(
      f"no feature {unknown[0]!r} in {', '.join(d.folder for d in datasets)}, "
      f"which have {sorted(fields)}"
    )
  # A folder that gives no feature is not read at all, unless it leads.
  used = [
    d
    for i, d in enumerate(datasets)
    if i == 0 or ({f.name for f in d.fields} - {"key"}) & set(wanted)
  ]
  decoders = []
  for dataset in used:
    names = {field.name for field in dataset.fields}
    needed = [name for name in wanted if name in names]
    if len(used) > 1 and "key" not in needed:
      needed.append("key")
    decoders.append(records.decoder(dataset.fields, needed))
  remote = any(files.is_remote(dataset.folder) for dataset in used)
  return Source(
    datasets=tuple(used),
    split=split,
    fields=tuple(fields[name] for name in wanted),
    ends=tuple(itertools.accumulate(lengths)),
    decoders=tuple(decoders),
    readers=tuple([None] * len(lengths) for _ in used),
    lock=threading.Lock(),
    pool=concurrent.futures.ThreadPoolExecutor(_REMOTE_READS)
    if remote
    else None,
  )


def read(
  datasets: Sequence[shards.Dataset], split: str, shard: int
) -> Iterator[dict[str, Any]]:
  """Reads one shard of aligned datasets in order, features side by side.

  Raises:
    ValueError: if the datasets are not aligned.
  """
  check(datasets)
  readers = [shards.read(dataset, split, shard) for dataset in datasets]
  for index, parts in enumerate(zip(*readers, strict=True)):
    yield _join(datasets, parts, f"record {index} of {split} shard {shard}")


def check(datasets: Sequence[shards.Dataset]) -> None:
  """Checks that datasets have the same shards, a key, and no feature twice.

  Raises:
    ValueError: if they have not.
  """
  first, *others = datasets
  owner = {field.name: first.folder for field in first.fields}
  for other in others:
    if dict(other.splits) != dict(first.splits):
      raise ValueError(
        f"{other.folder} is not aligned with {first.folder}: its shards hold "
        f"{_lengths(other.splits)} records; expected {_lengths(first.splits)}; "
        "make it again from that folder"
      )
    for field in other.fields:
      if field.name != "key" and field.name in owner:
        raise ValueError(
          f"feature {field.name!r} is in both {owner[field.name]} and "
          f"{other.folder}; name one of the two folders"
        )
      owner[field.name] = other.folder
  for dataset in datasets if others else ():
    if "key" not in {field.name for field in dataset.fields}:
      raise ValueError(
        f"{dataset.folder} has no feature 'key', so it cannot be read beside "
        "other folders"
      )


def _lengths(splits: Mapping[str, Sequence[int]]) -> str:
  return ", ".join(f"{name} {list(n)}" for name, n in splits.items())


def _join(
  datasets: Sequence[shards.Dataset],
  parts: Sequence[dict[str, Any]],
  where: str,
) -> dict[str, Any]:
  """Returns the features of one record of each dataset, keys compared."""
  joined = dict(parts[0])
  for dataset, part in zip(datasets[1:], parts[1:], strict=True):
    if part["key"] != joined["key"]:
      raise ValueError(
        f"{where} has the key {part['key']!r} in {dataset.folder}; expected "
        f"{joined['key']!r}, as in {datasets[0].folder}; make it again"
      )
    joined |= part
  return joined
