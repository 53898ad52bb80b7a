# SPDX-License-Identifier: Apache-2.0
"""Folders of images, with or without a list of what is known of each.

The list is as on the Hugging Face hub: `metadata.jsonl` has one JSON object a
line, `metadata.csv` a header and one row an image, with the image's path and
whatever is known of it. Without one, every image file of the folder is a row
that states nothing, but for its title if a text file of the same name lies
beside it ("a.jpg", "a.txt"), or if its folder is named after its class, as in
labelled data sets ("train/cat/a.jpg").

A file or a sha256 that an earlier line has stated already is a duplicate. That
is decided from the lines alone, before any image is read, so that shards stay
independent; the same bytes in two files of which no line states the sha256 are
not found here.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import functools
import json
import os
from typing import Any, NamedTuple

from cc_jax.core import files
from cc_jax.data import passes, rows

LISTS = ("metadata.jsonl", "metadata.csv")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SIDECAR = ".txt"
# Folders that are named after no class.
PARTS = ("", "images", "test", "train", "val", "validation")


class _Entry(NamedTuple):
  """A line of the list, or an image that no line names.

  Attributes:
    line: its number; 0 for an image that no line names.
    offset: of the line, in bytes.
    file: the image that no line names.
    first: number of the earlier line of which this one is a duplicate, or 0.
    sidecar: the text file beside an image that no line names.
  """

  line: int
  offset: int
  file: str = ""
  first: int = 0
  sidecar: str = ""


class _List(NamedTuple):
  """The list of a folder; `header` has the columns of a CSV file."""

  name: str
  header: tuple[str, ...] = ()


def pieces(wanted: rows.Wanted) -> list[passes.Piece]:
  """Cuts a folder of images into pieces of a pass, split by split.

  Returns:
    Pieces that yield rows, and a reject for each line and file that cannot be
    used: "line_broken", "duplicate", "file_missing", "not_listed". Blank lines
    are nothing. The split of a row that states none is "train".

  Raises:
    ValueError: there is no such folder, or no image in it, or it has two lists.
  """
  rows.check_records_per_shard(wanted.records_per_shard)
  folder = wanted.source
  if not folder or not files.path(folder).is_dir():
    raise ValueError(
      f"no folder {folder!r}; catalogue.source names a folder of images, with "
      f"a {LISTS[0]} that states their licences"
    )
  found = _list(folder)
  splits = _entries(wanted, found)
  if not splits:
    raise ValueError(f"{folder} holds no images ({' '.join(SUFFIXES)})")
  made = []
  for split, entries in splits.items():
    for index, count, low, high in rows.even(
      len(entries), wanted.records_per_shard
    ):
      read = functools.partial(_read, wanted, found, entries[low:high])
      made.append(passes.Piece(split, index, count, read, high - low))
  return made


def inputs(wanted: rows.Wanted) -> dict[str, str]:
  """What `passes.run` records of a folder, to find it changed by name.

  The list and the names of the images are hashed; the images are not read.
  """
  folder = wanted.source
  found = _list(folder)
  names = "\n".join(sorted(_names(folder)))
  name = found.name if found else LISTS[0]
  return {
    "folder": folder,
    name: files.sha256(files.path(folder) / name) if found else "",
    "names": files.sha256(os.fsencode(names)),
  }


def _list(folder: str) -> _List | None:
  """The list of a folder, None if it has none."""
  root = files.path(folder)
  there = [name for name in LISTS if (root / name).exists()]
  if len(there) > 1:
    raise ValueError(f"{folder} has {' and '.join(there)}; keep one of them")
  if not there:
    return None
  if there[0].endswith(".jsonl"):
    return _List(there[0])
  with (root / there[0]).open("rb") as file:
    header = next(csv.reader(_text(file)), [])
  return _List(there[0], tuple(cell.strip() for cell in header))


def _text(file: Any) -> Iterator[str]:
  """Lines for the CSV reader; bytes that are not UTF-8 are found later."""
  while line := file.readline():
    yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _lines(
  file: Any, found: _List
) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
  """Yields (number, offset, fields) of a list, without blank lines."""
  if not found.header:
    offset = 0
    for number, line in enumerate(file, 1):
      if line.strip():
        yield number, offset, _parse(line)
      offset += len(line)
    return
  reader = csv.reader(_text(file))
  next(reader)
  while True:
    # The reader takes no line before it needs it, so this is where it stands.
    number, offset = reader.line_num + 1, file.tell()
    try:
      cells = next(reader, None)
    except csv.Error:
      yield number, offset, None
      continue
    if cells is None:
      return
    if any(cells):
      yield number, offset, _cells(found, cells)


def _at(file: Any, offset: int, found: _List) -> dict[str, Any] | None:
  """The fields of the line that begins at an offset."""
  file.seek(offset)
  if not found.header:
    return _parse(file.readline())
  try:
    return _cells(found, next(csv.reader(_text(file))))
  except csv.Error:
    return None


def _cells(found: _List, cells: list[str]) -> dict[str, Any] | None:
  if len(cells) != len(found.header):
    return None
  return dict(zip(found.header, cells, strict=True))


def _entries(
  wanted: rows.Wanted, found: _List | None
) -> dict[str, list[_Entry]]:
  """Rows by split: lines first, then image files that no line names."""
  splits: dict[str, list[_Entry]] = {}
  names = set(_names(wanted.source))
  unlisted = {name for name in names if not name.endswith(SIDECAR)}
  seen: dict[str, int] = {}
  if found:
    with (files.path(wanted.source) / found.name).open("rb") as file:
      for number, offset, fields in _lines(file, found):
        fields = fields or {}
        first = number
        for name in _identities(fields, wanted.columns):
          first = min(first, seen.setdefault(name, number))
          unlisted.discard(name)
        entry = _Entry(number, offset, "", first if first < number else 0)
        split = _split(fields, wanted.columns) or rows.TRAIN
        splits.setdefault(split, []).append(entry)
  for file in sorted(unlisted):
    sidecar = os.path.splitext(file)[0] + SIDECAR
    sidecar = sidecar if sidecar in names else ""
    entry = _Entry(0, 0, file, sidecar=sidecar)
    splits.setdefault(rows.TRAIN, []).append(entry)
  return splits


def _split(fields: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
  """The split that a line states, "" for none, None for one that cannot be."""
  split = fields.get(columns["split"])
  if split is None or split == "":
    return ""
  return split if isinstance(split, str) and rows.is_split(split) else None


def _identities(
  fields: Mapping[str, Any], columns: Mapping[str, str]
) -> Iterator[str]:
  """What no two lines may share: a path, and the hash of the bytes."""
  if file := fields.get(columns["file"]):
    yield os.path.normpath(str(file).strip())
  if digest := fields.get(columns["sha256"]):
    yield f"sha256:{str(digest).strip().lower()}"


def _names(folder: str) -> Iterator[str]:
  """Image files and text files by their path in the folder."""
  folders = [""]
  while folders:
    inside = folders.pop()
    for path in (files.path(folder) / inside).iterdir():
      name = os.path.join(inside, path.name)
      if path.suffix.lower() in SUFFIXES or path.suffix == SIDECAR:
        yield name
      elif path.is_dir():
        folders.append(name)


def _parse(line: bytes) -> dict[str, Any] | None:
  """One line's fields, or None if it is broken."""
  try:
    fields = json.loads(line)
  # Of JSON, of Unicode, numbers of over 4,300 digits; thousands of brackets.
  except (ValueError, RecursionError):
    return None
  return fields if isinstance(fields, dict) else None


def _read(
  wanted: rows.Wanted, found: _List | None, entries: Sequence[_Entry]
) -> Iterator[rows.Row | passes.Reject]:
  root = files.path(wanted.source)
  if not any(entry.line for entry in entries):
    for entry in entries:
      yield _unlisted(wanted, root, found, entry)
    return
  with (root / found.name).open("rb") as file:
    for entry in entries:
      if entry.file:
        yield _unlisted(wanted, root, found, entry)
        continue
      where = f"{found.name}:{entry.line}"
      if entry.first:
        detail = f"the same image as {found.name}:{entry.first}"
        yield passes.Reject("duplicate", where, detail)
        continue
      yield _row(wanted, root, where, _at(file, entry.offset, found), found)


def _unlisted(
  wanted: rows.Wanted, root: Any, found: _List | None, entry: _Entry
) -> rows.Row | passes.Reject:
  where = rows.printable(entry.file)
  if found:
    return passes.Reject(
      "not_listed", where, f"no line of {found.name} names it"
    )
  folder = os.path.basename(os.path.dirname(entry.file))
  fields = (
    {} if folder in PARTS else {wanted.columns["title"]: rows.printable(folder)}
  )
  try:
    image = (root / entry.file).read_bytes()
    if entry.sidecar:
      caption = (root / entry.sidecar).read_bytes()
      fields = {wanted.columns["title"]: caption.decode()}
  except OSError as error:
    return passes.Reject("file_missing", where, str(error.strerror))
  except UnicodeDecodeError:
    return passes.Reject("line_broken", where, f"{SIDECAR} file: not UTF-8")
  return rows.make(wanted, where, fields, image)


def _row(
  wanted: rows.Wanted,
  root: Any,
  where: str,
  fields: dict[str, Any] | None,
  found: _List,
) -> rows.Row | passes.Reject:
  columns = wanted.columns
  broken = functools.partial(passes.Reject, "line_broken", where)
  if fields is None:
    if found.header:
      return broken(f"not a row of {len(found.header)} cells, as the header is")
    return broken("not a JSON object")
  file = rows.text(fields.get(columns["file"]))
  row = rows.make(wanted, where, fields)
  if isinstance(row, str) or not rows.encodable(file):
    return broken("not Unicode text")
  if not file:
    return broken(f"no field {columns['file']!r}")
  if _split(fields, columns) is None:
    split = fields[columns["split"]]
    return broken(f"split {split!r}; expected letters, digits and underscores")
  # A list that names files outside of its folder is not to be followed.
  if os.path.isabs(file) or ".." in file.split("/"):
    return broken(f"{file} is outside the folder")
  try:
    image = (root / file).read_bytes()
  # A name with a zero byte is a ValueError.
  except (OSError, ValueError):
    return passes.Reject("file_missing", where, file)
  return row._replace(where=f"{where} {file}", image=image)
