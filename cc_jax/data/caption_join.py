# SPDX-License-Identifier: Apache-2.0
"""Captions that others wrote, found by a photograph's id or its key.

Tens of millions of captions in Parquet files, in any order, and no database:
the texts go to one temporary file, and what is held in memory is the hash of
each id and the place of its text, 16 bytes a caption, twice that while they are
sorted: 70 million take 1.1 GB, and 2.2 GB for a moment.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import tempfile
from typing import Any
import weakref

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cc_jax.core import files
from cc_jax.data import sources_files

BY = ("photo_id", "key")
_BATCH = 4096
_END = b"\0"


@dataclasses.dataclass(frozen=True)
class Captions:
  """Captions by id; made by `read`.

  Attributes:
    digest: SHA-256 of all ids and captions, in the order of the files.
    hashes: of the ids, sorted: uint64.
    places: of their texts in the file: uint64.
    file: of the texts, which goes with the last use of it.
  """

  digest: str
  hashes: np.ndarray
  places: np.ndarray
  file: Any

  def __len__(self) -> int:
    return len(self.hashes)

  def find(self, ids: Sequence[str]) -> list[str]:
    """The caption of each id, "" where there is none.

    Of several captions of an id it is the first.
    """
    wanted = np.array([_hash(id.encode()) for id in ids], np.uint64)
    first = np.searchsorted(self.hashes, wanted)
    return [
      self._at(*each) for each in zip(ids, wanted, first.tolist(), strict=True)
    ]

  def _at(self, id: str, hashed: np.uint64, place: int) -> str:
    # Two ids may have one hash.
    while place < len(self) and self.hashes[place] == hashed:
      self.file.seek(int(self.places[place]))
      stored, size = self.file.readline().split(_END)
      if stored == _hex(id):
        return self.file.read(int(size)).decode()
      place += 1
    return ""


def read(source: str, column: str, caption: str) -> Captions:
  """Reads Parquet files.

  Args:
    source: one file, a folder of them, or a data set of the hub.
    column: that has the ids, numbers or text; a row without one is left out.
    caption: the column of captions; one without text counts as none.

  Raises:
    ValueError: no such files or columns, or a file that cannot be read.
  """
  if not source:
    raise ValueError(
      "caption.join.file is empty; name a Parquet file with captions"
    )
  if not sources_files.is_hub(source) and not files.path(source).exists():
    raise ValueError(
      f"no file {source!r}; caption.join.file names Parquet files"
    )
  file = tempfile.TemporaryFile(prefix="cc_jax-")
  try:
    made = _collect(file, _batches(source, column, caption))
  except BaseException:
    file.close()
    raise
  weakref.finalize(made, file.close)
  return made


def _collect(
  file: Any, batches: Iterator[tuple[list[Any], list[Any]]]
) -> Captions:
  """Writes texts to a file and finds their places in it."""
  digest = hashlib.sha256()
  hashes = [np.zeros(0, np.uint64)]
  places = [np.zeros(0, np.uint64)]
  place = 0
  for ids, texts in batches:
    here, keys = [], []
    for id, text in zip(ids, texts, strict=True):
      if id is None or text is None or not text.strip():
        continue
      name, data = str(id).strip(), text.strip().encode()
      record = b"%b%b%d\n%b" % (_hex(name), _END, len(data), data)
      digest.update(record)
      file.write(record)
      here.append(place)
      keys.append(_hash(name.encode()))
      place += len(record)
    hashes.append(np.array(keys, np.uint64))
    places.append(np.array(here, np.uint64))
  every, where = np.concatenate(hashes), np.concatenate(places)
  del hashes, places
  # Stable, so that the first of several captions stays the first.
  order = np.argsort(every, kind="stable")
  return Captions(
    f"sha256:{digest.hexdigest()}", every[order], where[order], file
  )


def _hash(id: bytes) -> int:
  return int.from_bytes(hashlib.blake2b(id, digest_size=8).digest(), "little")


def _hex(id: str) -> bytes:
  """An id on one line, whatever is in it."""
  return id.encode().hex().encode()


def _batches(
  source: str, column: str, caption: str
) -> Iterator[tuple[list[Any], list[Any]]]:
  found = sources_files.find(source, ".parquet")
  for name in found.names:
    with sources_files.opened(found, name) as file:
      try:
        opened = parquet.ParquetFile(file)
        there = opened.schema_arrow.names
        for wanted in (column, caption):
          if wanted not in there:
            raise ValueError(
              f"no column {wanted!r}; it has {', '.join(there)}; name them in "
              "caption.join"
            )
        for batch in opened.iter_batches(_BATCH, columns=[column, caption]):
          yield batch[column].to_pylist(), batch[caption].to_pylist()
      except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{name} of {source}: {reason}") from None
