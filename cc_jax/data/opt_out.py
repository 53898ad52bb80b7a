# SPDX-License-Identifier: Apache-2.0
"""Lists of people and pictures that do not want to be in a data set.

    text     one entry a line: a key (the SHA-256 of the image), a photo id
             (digits), the address of a page, or else an author's name
    CSV      columns key, photo_id, page_url and author, or some of them
    JSONL    objects with such fields

Every entry counts for itself: a line with a page and an author leaves out that
page and all that the author has made. A line that cannot be read is an error,
since a list must not be honoured by halves.
"""

from collections.abc import Iterator, Mapping
import csv
import io
import json
import os
import re
from typing import Any, NamedTuple

from cc_jax.core import files
from cc_jax.data import rows

KINDS = ("key", "photo_id", "page_url", "author")
REASON = "opted_out"


class OptOut(NamedTuple):
  """An opt-out list.

  Attributes:
    digest: SHA-256 of the file; "" for no list.
    entries: for each kind, in the form in which they are compared.
  """

  digest: str
  entries: Mapping[str, frozenset[str]]

  def __len__(self) -> int:
    return sum(len(held) for held in self.entries.values())


NONE = OptOut("", {})


def read(path: str) -> OptOut:
  """Reads a list, local or gs://; "" is none.

  Raises:
    ValueError: there is no such file, it has another suffix, a line cannot be
      read, or none of the columns is there.
  """
  if not path:
    return NONE
  try:
    data = files.path(path).read_bytes()
  except OSError:
    raise ValueError(f"no opt-out list {path!r}") from None
  readers = {".txt": _plain, ".csv": _table, ".jsonl": _lines}
  suffix = os.path.splitext(path)[1]
  if suffix not in readers:
    raise ValueError(
      f"opt-out list {path!r}; expected one of {' '.join(readers)}"
    )
  entries: dict[str, set[str]] = {kind: set() for kind in KINDS}
  try:
    text = data.decode("utf-8-sig")
    for number, fields in readers[suffix](text):
      if fields is None:
        raise ValueError(
          f"line {number} of the opt-out list {path} cannot be read; put it "
          "right, since a list is not honoured by halves"
        )
      for kind in KINDS:
        if value := _normal(kind, rows.text(fields.get(kind))):
          entries[kind].add(value)
  except UnicodeDecodeError:
    raise ValueError(f"the opt-out list {path} is not UTF-8 text") from None
  if data.strip() and not any(entries.values()):
    raise ValueError(
      f"the opt-out list {path} has none of {', '.join(KINDS)}; name its "
      "columns so"
    )
  held = {kind: frozenset(values) for kind, values in entries.items()}
  return OptOut(files.sha256(data), held)


def _plain(text: str) -> Iterator[tuple[int, dict[str, str]]]:
  for number, line in enumerate(text.splitlines(), 1):
    line = line.strip()
    if re.fullmatch("[0-9a-fA-F]{64}", line):
      yield number, {"key": line}
    elif line.isdecimal():
      yield number, {"photo_id": line}
    elif re.match("https?://", line):
      yield number, {"page_url": line}
    elif line:
      yield number, {"author": line}


def _table(text: str) -> Iterator[tuple[int, dict[str, str] | None]]:
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  header = [cell.strip() for cell in next(reader, [])]
  while True:
    try:
      cells = next(reader, None)
    except csv.Error:
      cells = ["", *header]
    if cells is None:
      return
    if any(cells):
      fits = len(cells) == len(header)
      fields = dict(zip(header, cells, strict=True)) if fits else None
      yield reader.line_num, fields


def _lines(text: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        fields = json.loads(line)
      except (ValueError, RecursionError):
        fields = None
      yield number, fields if isinstance(fields, dict) else None


def _normal(kind: str, value: str) -> str:
  """What is equal when two values mean the same."""
  if kind == "page_url":
    value = re.sub(r"^https?://(www\.)?", "", value.strip(), flags=re.I)
    host, slash, path = value.partition("/")
    return (host.lower() + slash + path).rstrip("/")
  value = " ".join(value.split())
  return value if kind == "photo_id" else value.casefold()


def match(listed: OptOut, fields: Mapping[str, Any]) -> str:
  """Why a record is opted out, "photo_id 17" say; "" if it is not.

  Args:
    listed: from `read`.
    fields: those of `KINDS` that are known.
  """
  for kind, entries in listed.entries.items():
    stated = fields.get(kind) or ""
    if stated and _normal(kind, stated) in entries:
      return f"{kind} {stated}"
  return ""
