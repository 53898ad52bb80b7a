# SPDX-License-Identifier: Apache-2.0
"""Parquet files with an image and its licence in each row.

CommonCatalog's are so (35 columns, folders like "aspect_ratio_bucket=1-1"), and
whatever else has bytes of images, plain or as the struct of bytes and path that
the `datasets` library writes. Names of columns are configured; only those that
are needed are read, a few rows at a time: what is held is a page of each
column, which some writers make as large as a row group, whatever the source.

Pieces are cut by the numbers of rows that the files' ends state, before any row
is read: row groups follow one another into a shard while they fit, and one that
is larger than a shard is cut. A file of the hub would be downloaded for each of
its pieces, so it is one piece.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import re
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from cc_jax.data import passes, rows, sources_files

SUFFIX = ".parquet"
_BATCH = 16
_BUFFER = 2**20
# As the `datasets` library names them: train-00000-of-00012-0123456789ab.
_SPLIT = re.compile(r"(?:.*/)?([a-zA-Z]\w*?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")


class _Part(NamedTuple):
  """Rows of one row group; of the whole file when `group` is -1."""

  name: str
  group: int
  low: int = 0
  high: int = 0
  first: int = 0  # Number of the group's first row in the file.
  error: str = ""  # Of a file that cannot be opened.


def pieces(wanted: rows.Wanted) -> list[passes.Piece]:
  """Cuts Parquet files into pieces of a pass.

  Returns:
    Pieces that yield rows, and rejects: "file_broken" once for a file that
    cannot be opened, "group_broken" for each row of a row group that cannot be
    read, "image_missing", "row_broken". A file called like
    "validation-00000-of-00002.parquet" is of that split, others of "train".

  Raises:
    ValueError: there are no files, or one lacks a column (see
      `rows.check_columns`).
  """
  rows.check_records_per_shard(wanted.records_per_shard)
  found = sources_files.find(wanted.source, SUFFIX)
  splits: dict[str, list[list[_Part]]] = {}
  for name in found.names:
    parts = _parts(wanted, found, name)
    match = _SPLIT.fullmatch(name.removesuffix(SUFFIX))
    made = splits.setdefault(match[1] if match else rows.TRAIN, [])
    for part in parts:
      full = not made or _length([*made[-1], part]) > wanted.records_per_shard
      if full or part.group < 0:
        made.append([])
      made[-1].append(part)
  return [
    passes.Piece(
      split,
      index,
      len(made),
      functools.partial(_read, wanted, found, tuple(parts)),
      _length(parts)
      if all(part.high or part.error for part in parts)
      else None,
    )
    for split, made in splits.items()
    for index, parts in enumerate(made)
  ]


def inputs(wanted: rows.Wanted) -> dict[str, str]:
  """What `passes.run` records of the files."""
  return sources_files.inputs(sources_files.find(wanted.source, SUFFIX))


def _length(parts: Sequence[_Part]) -> int:
  return sum(1 if part.error else part.high - part.low for part in parts)


def _parts(
  wanted: rows.Wanted, found: sources_files.Files, name: str
) -> list[_Part]:
  """The row groups of a file, cut where they are larger than a shard."""
  if sources_files.is_hub(found.source):
    return [_Part(name, -1)]
  most, parts, first = wanted.records_per_shard, [], 0
  with sources_files.opened(found, name) as file:
    opened = _open(file)
    if isinstance(opened, str):
      return [_Part(name, 0, error=opened)]
    _check(wanted, name, opened)
    for group in range(opened.metadata.num_row_groups):
      count = opened.metadata.row_group(group).num_rows
      for low in range(0, count, most):
        high = min(low + most, count)
        parts.append(_Part(name, group, low, high, first))
      first += count
  return parts


def _open(file: Any) -> parquet.ParquetFile | str:
  """A Parquet file, or why it is none."""
  try:
    return parquet.ParquetFile(
      file,
      # A column of images may be larger than the memory.
      buffer_size=_BUFFER,
      pre_buffer=False,
      page_checksum_verification=True,
    )
  except (pa.ArrowException, OSError) as error:
    return str(error).splitlines()[0]


def _check(
  wanted: rows.Wanted, name: str, opened: parquet.ParquetFile
) -> list[str]:
  """The columns that are needed and there, as the file names them."""
  schema = opened.schema_arrow
  rows.check_columns(wanted, name, [*schema.names, *_folders(name)])
  needed = {*wanted.columns.values(), *wanted.keep} - {""}
  column = wanted.columns["image"]
  kind = schema.field(column).type if column in schema.names else None
  if pa.types.is_struct(kind):
    kind = kind.field("bytes").type if "bytes" in kind.names else None
    needed = needed - {column} | {f"{column}.bytes"}
  if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
    raise ValueError(
      f"column {column!r} of {name} is {schema.field(column).type}; expected "
      "the bytes of images, or a struct that has them as 'bytes'"
    )
  return [n for n in needed if n.removesuffix(".bytes") in schema.names]


def _folders(name: str) -> dict[str, str]:
  """Columns that are in the folders' names: "aspect_ratio_bucket=1-1/"."""
  parts = [part.partition("=") for part in name.split("/")[:-1]]
  return {key: value for key, equals, value in parts if equals}


def _read(
  wanted: rows.Wanted, found: sources_files.Files, parts: Sequence[_Part]
) -> Iterator[rows.Row | passes.Reject]:
  # The parts of a file are next to each other.
  for name in dict.fromkeys(part.name for part in parts):
    own = [part for part in parts if part.name == name]
    with sources_files.opened(found, name) as file:
      opened = _open(file)
      if isinstance(opened, str):
        yield passes.Reject("file_broken", rows.printable(name), opened)
        continue
      columns = _check(wanted, name, opened)
      for part in _groups(opened, own):
        yield from _part(wanted, opened, columns, part)


def _groups(
  opened: parquet.ParquetFile, parts: Sequence[_Part]
) -> Iterator[_Part]:
  """The parts; the row groups of the file in place of a whole file."""
  if parts[0].group >= 0:
    yield from parts
    return
  first = 0
  for group in range(opened.metadata.num_row_groups):
    count = opened.metadata.row_group(group).num_rows
    yield _Part(parts[0].name, group, 0, count, first)
    first += count


def _part(
  wanted: rows.Wanted,
  opened: parquet.ParquetFile,
  columns: list[str],
  part: _Part,
) -> Iterator[rows.Row | passes.Reject]:
  """Yields one entry for each row of a part, whatever happens."""
  folders = _folders(part.name)
  number = 0  # Of the next row in its group.
  where = lambda row: f"{rows.printable(part.name)}:{part.first + row + 1}"
  try:
    for batch in opened.iter_batches(
      _BATCH, row_groups=[part.group], columns=columns
    ):
      if number + len(batch) <= part.low:
        number += len(batch)
        continue
      for fields in batch.to_pylist():
        if number >= part.high:
          return
        if number >= part.low:
          yield _row(wanted, where(number), folders | fields)
        number += 1
  # What Arrow raises for a page that is cut or altered depends on the codec.
  except (pa.ArrowException, OSError, ValueError) as error:
    reason = (str(error).splitlines() or [""])[0]
  else:
    reason = "fewer rows than the file's end states"
  for row in range(max(number, part.low), part.high):
    yield passes.Reject("group_broken", where(row), reason)


def _row(
  wanted: rows.Wanted, where: str, fields: Mapping[str, Any]
) -> rows.Row | passes.Reject:
  image = fields.get(wanted.columns["image"])
  if isinstance(image, Mapping):
    image = image.get("bytes")
  if not image:
    return passes.Reject("image_missing", where, "no bytes")
  row = rows.make(wanted, where, fields, image)
  return rows.broken(where, row) if isinstance(row, str) else row
