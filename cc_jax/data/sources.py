# SPDX-License-Identifier: Apache-2.0
"""Where images come from: readers that yield rows with one set of names.

A folder of images is described as on the Hugging Face hub: `metadata.jsonl`
has one JSON object a line, with the image's path and whatever is known of it.
Without one, every image file of the folder is a row that states nothing.

A file or a sha256 that an earlier line has stated already is a duplicate. That
is decided from the lines alone, before any image is read, so that shards stay
independent; the same bytes in two files of which no line states the sha256 are
not found here.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import json
import os
import re
from typing import Any, NamedTuple

from cc_jax.core import files
from cc_jax.data import passes

METADATA = "metadata.jsonl"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TRAIN = "train"
TEXTS = (
  "sha256",
  "licence_url",
  "licence_name",
  "author",
  "title",
  "page_url",
)


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
  """A line of metadata.jsonl, or an image that no line names.

  Attributes:
    line: its number; 0 for an image that no line names.
    offset: of the line, in bytes.
    file: the image that no line names.
    first: number of the earlier line of which this one is a duplicate, or 0.
  """

  line: int
  offset: int
  file: str = ""
  first: int = 0


def folder_pieces(
  folder: str, columns: Mapping[str, str], records_per_shard: int
) -> list[passes.Piece]:
  """Cuts a folder of images into pieces of a pass, split by split.

  Args:
    folder: local or gs://.
    columns: our names -> those in metadata.jsonl.
    records_per_shard: rows in a piece; the last of a split may have fewer.

  Returns:
    Pieces that yield `Row`s, and a reject for each line and file that cannot
    be used: "line_broken", "duplicate", "file_missing", "not_listed". Blank
    lines are nothing. The split of a row that states none is "train".

  Raises:
    ValueError: there is no such folder, or no image in it.
  """
  if records_per_shard < 1:
    raise ValueError(f"records_per_shard={records_per_shard} must be 1 or more")
  if not folder or not files.path(folder).is_dir():
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


def folder_inputs(folder: str) -> dict[str, str]:
  """What `passes.run` records of a folder, to find it changed by name.

  The list and the names of the images are hashed; the images are not read.
  """
  metadata = files.path(folder) / METADATA
  names = "\n".join(sorted(_images(folder)))
  return {
    "folder": folder,
    METADATA: files.sha256(metadata) if metadata.exists() else "",
    "names": files.sha256(os.fsencode(names)),
  }


def _entries(
  folder: str, columns: Mapping[str, str]
) -> dict[str, list[_Entry]]:
  """Rows by split: lines first, then image files that no line names."""
  splits: dict[str, list[_Entry]] = {}
  unlisted = set(_images(folder))
  seen: dict[str, int] = {}
  metadata = files.path(folder) / METADATA
  if metadata.exists():
    offset = 0
    with metadata.open("rb") as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          fields = _parse(line) or {}
          first = number
          for name in _identities(fields, columns):
            first = min(first, seen.setdefault(name, number))
            unlisted.discard(name)
          entry = _Entry(number, offset, "", first if first < number else 0)
          split = _split(fields, columns) or TRAIN
          splits.setdefault(split, []).append(entry)
        offset += len(line)
  for file in sorted(unlisted):
    splits.setdefault(TRAIN, []).append(_Entry(0, 0, file))
  return splits


def _split(fields: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
  """The split that a line states, "" for none, None for one that cannot be."""
  split = fields.get(columns["split"])
  if split is None or split == "":
    return ""
  usable = isinstance(split, str) and re.fullmatch(
    r"[a-zA-Z]\w*", split, re.ASCII
  )
  return split if usable else None


def _identities(
  fields: Mapping[str, Any], columns: Mapping[str, str]
) -> Iterator[str]:
  """What no two lines may share: a path, and the hash of the bytes."""
  if file := fields.get(columns["file"]):
    yield os.path.normpath(str(file).strip())
  if digest := fields.get(columns["sha256"]):
    yield f"sha256:{str(digest).strip().lower()}"


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
  # Of JSON, of Unicode, numbers of over 4,300 digits; thousands of brackets.
  except (ValueError, RecursionError):
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
      where = f"{METADATA}:{entry.line}"
      if entry.first:
        detail = f"the same image as {METADATA}:{entry.first}"
        yield passes.Reject("duplicate", where, detail)
        continue
      lines.seek(entry.offset)
      yield _row(root, where, _parse(lines.readline()), columns)


def _unlisted(root: Any, file: str) -> Row | passes.Reject:
  # Names of files may hold bytes that are not UTF-8.
  where = os.fsencode(file).decode(errors="replace")
  if (root / METADATA).exists():
    return passes.Reject("not_listed", where, f"no line of {METADATA} names it")
  try:
    return Row(where, (root / file).read_bytes())
  except OSError as error:
    return passes.Reject("file_missing", where, str(error.strerror))


def _row(
  root: Any,
  where: str,
  fields: dict[str, Any] | None,
  columns: Mapping[str, str],
) -> Row | passes.Reject:
  broken = functools.partial(passes.Reject, "line_broken", where)
  if fields is None:
    return broken("not a JSON object")

  def text(name: str) -> str:
    value = fields.get(columns[name])
    return "" if value is None else str(value).strip()

  tags = fields.get(columns["tags"]) or ()
  if not isinstance(tags, list):
    tags = str(tags).split(",") if tags else ()
  tags = tuple(word for tag in tags if (word := str(tag).strip()))
  rest = {name: text(name) for name in TEXTS}
  file = text("file")
  # JSON can spell halves of characters, which no file can hold.
  try:
    "".join([file, *tags, *rest.values()]).encode()
  except UnicodeEncodeError:
    return broken("not Unicode text: a lone surrogate")
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
  return Row(where=f"{where} {file}", image=image, tags=tags, **rest)
