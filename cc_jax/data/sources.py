# SPDX-License-Identifier: Apache-2.0
"""Where images come from: readers that yield rows with one set of names.

A folder of images is described as on the Hugging Face hub: `metadata.jsonl`
has one JSON object a line, with the image's path and whatever is known of it.
Without one, every image file of the folder is a row that states nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import json
import os
from typing import Any, NamedTuple

from cc_jax.core import files
from cc_jax.data import passes

METADATA = "metadata.jsonl"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TRAIN = "train"


class Row(NamedTuple):
  """An image as its source describes it; "" where it says nothing.

  Attributes:
    where: path and line, for reports.
    image: the original bytes.
    sha256: of the bytes, as the source states it.
    tags: words that the source gives it.
    rest: as in the dataset's features.
  """

  where: str
  image: bytes
  sha256: str = ""
  licence_url: str = ""
  licence_name: str = ""
  author: str = ""
  title: str = ""
  tags: tuple[str, ...] = ()
  page_url: str = ""


class _Entry(NamedTuple):
  """A line of metadata.jsonl, or an image that no line names."""

  line: int
  offset: int
  file: str = ""


def folder_pieces(
  folder: str, columns: Mapping[str, str], records_per_shard: int
) -> list[passes.Piece]:
  """Cuts a folder of images into pieces of a pass, split by split.

  Args:
    folder: local or gs://.
    columns: our names -> those in metadata.jsonl.
    records_per_shard: rows in a piece; the last of a split may have fewer.

  Returns:
    Pieces that yield `Row`s, and a reject for each line, file and row that
    cannot be read: "line_broken", "file_missing", "not_listed". The split of a
    row that states none is "train".

  Raises:
    ValueError: there is no such folder, or no image in it.
  """
  if records_per_shard < 1:
    raise ValueError(f"records_per_shard={records_per_shard} must be 1 or more")
  if not files.path(folder).is_dir():
    raise ValueError(
      f"no folder {folder!r}; catalogue.source names a folder of images, with "
      f"a {METADATA} that states their licences"
    )
  splits = _entries(folder, columns)
  if not splits:
    raise ValueError(f"{folder} holds no images ({' '.join(SUFFIXES)})")
  pieces = []
  for split, entries in splits.items():
    count = -(-len(entries) // records_per_shard)
    for index in range(count):
      # Even shards: sizes differ by one at most.
      low, high = (len(entries) * i // count for i in (index, index + 1))
      read = functools.partial(_read, folder, columns, entries[low:high])
      pieces.append(passes.Piece(split, index, count, read, high - low))
  return pieces


def _entries(
  folder: str, columns: Mapping[str, str]
) -> dict[str, list[_Entry]]:
  """Rows by split: lines first, then image files that no line names."""
  splits: dict[str, list[_Entry]] = {}
  unlisted = set(_images(folder))
  metadata = files.path(folder) / METADATA
  if metadata.exists():
    offset = 0
    with metadata.open("rb") as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          fields = _parse(line) or {}
          split = fields.get(columns["split"]) or TRAIN
          splits.setdefault(split, []).append(_Entry(number, offset))
          unlisted.discard(os.path.normpath(str(fields.get(columns["file"]))))
        offset += len(line)
  for file in sorted(unlisted):
    splits.setdefault(TRAIN, []).append(_Entry(0, 0, file))
  return splits


def _images(folder: str) -> Iterator[str]:
  """Image files by their path in the folder."""
  folders = [""]
  while folders:
    inside = folders.pop()
    for path in (files.path(folder) / inside).iterdir():
      name = os.path.join(inside, path.name)
      if path.suffix.lower() in SUFFIXES:
        yield name
      elif path.is_dir():
        folders.append(name)


def _parse(line: bytes) -> dict[str, Any] | None:
  """One line's fields, or None if it is broken."""
  try:
    fields = json.loads(line)
  except (json.JSONDecodeError, UnicodeDecodeError):
    return None
  return fields if isinstance(fields, dict) else None


def _read(
  folder: str, columns: Mapping[str, str], entries: Sequence[_Entry]
) -> Iterator[Row | passes.Reject]:
  root = files.path(folder)
  if not any(entry.line for entry in entries):
    for entry in entries:
      yield _unlisted(root, entry.file)
    return
  with (root / METADATA).open("rb") as lines:
    for entry in entries:
      if entry.file:
        yield _unlisted(root, entry.file)
        continue
      lines.seek(entry.offset)
      where = f"{METADATA}:{entry.line}"
      yield _row(root, where, _parse(lines.readline()), columns)


def _unlisted(root: Any, file: str) -> Row | passes.Reject:
  if (root / METADATA).exists():
    return passes.Reject("not_listed", file, f"no line of {METADATA} names it")
  return Row(file, (root / file).read_bytes())


def _row(
  root: Any,
  where: str,
  fields: dict[str, Any] | None,
  columns: Mapping[str, str],
) -> Row | passes.Reject:
  def text(name: str) -> str:
    value = fields.get(columns[name])
    return "" if value is None else str(value).strip()

  if fields is None:
    return passes.Reject("line_broken", where, "not a JSON object")
  file = text("file")
  if not file:
    detail = f"no field {columns['file']!r}"
    return passes.Reject("line_broken", where, detail)
  # A list that names files outside of its folder is not to be followed.
  if os.path.isabs(file) or ".." in file.split("/"):
    return passes.Reject("line_broken", where, f"{file} is outside the folder")
  try:
    image = (root / file).read_bytes()
  except OSError:
    return passes.Reject("file_missing", where, file)
  tags = fields.get(columns["tags"]) or ()
  if isinstance(tags, str):
    tags = tags.split(",")
  return Row(
    where=f"{where} {file}",
    image=image,
    sha256=text("sha256"),
    licence_url=text("licence_url"),
    licence_name=text("licence_name"),
    author=text("author"),
    title=text("title"),
    tags=tuple(str(tag).strip() for tag in tags if str(tag).strip()),
    page_url=text("page_url"),
  )
