# SPDX-License-Identifier: Apache-2.0
"""ATTRIBUTION.parquet: whose image each record of a dataset is.

One row a record, in the order of the shards; a row group a shard. A pass writes
the rows of a shard beside its notes, so that nobody has to read the images
again for them, and joins them when it is complete. The same rows make the same
bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
import io
import os
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from cc_jax.core import files

NAME = "ATTRIBUTION.parquet"
COLUMNS = (
  "key",
  "author",
  "title",
  "licence",
  "licence_url",
  "page_url",
  "photo_id",
)
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


def row(example: Mapping[str, Any]) -> dict[str, str]:
  """What is kept of a record; "" for what it does not have."""
  return {name: example.get(name, "") for name in COLUMNS}


def write(path: str, rows: Sequence[Mapping[str, str]]) -> None:
  """Writes the rows of one shard, atomically."""
  made = io.BytesIO()
  table = pa.Table.from_pylist(list(rows), schema=_SCHEMA)
  parquet.write_table(
    table, made, row_group_size=max(len(rows), 1), write_page_checksum=True
  )
  files.write_atomic(path, made.getvalue())


def read(path: str) -> list[dict[str, str]]:
  """Reads what `write` wrote.

  Raises:
    ValueError: it is damaged.
  """
  return _table(path).to_pylist()


def _table(path: str) -> pa.Table:
  data = files.path(path).read_bytes()
  try:
    table = parquet.read_table(
      io.BytesIO(data), page_checksum_verification=True
    )
    return table.cast(_SCHEMA)
  # All its own errors, those of its decompressors and of a wrong schema.
  except (pa.ArrowException, OSError, ValueError) as error:
    reason = (str(error).splitlines() or ["it is cut"])[0]
    raise ValueError(f"{path} is damaged ({reason})") from None


def join(paths: Iterable[str], folder: str) -> None:
  """Joins what `write` wrote to one file in the folder of a dataset.

  Raises:
    ValueError: one is damaged.
  """
  with (
    files.open_atomic(os.path.join(folder, NAME)) as target,
    parquet.ParquetWriter(target, _SCHEMA) as writer,
  ):
    for path in paths:
      table = _table(path)
      if len(table):
        writer.write_table(table, row_group_size=len(table))
