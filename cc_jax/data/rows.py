# SPDX-License-Identifier: Apache-2.0
"""Rows: what every kind of source yields, with one set of names.

A reader turns what its source says of an image (a line of JSON, a row of
Parquet, the files of one sample in a tar) into a dict by the source's own
names, and `make` turns that into a `Row` by the mapping of columns.
"""

from collections.abc import Mapping
import math
import os
import re
import types
from typing import Any, NamedTuple
import urllib.parse

from cc_jax.data import passes

TRAIN = "train"
TEXTS = (
  "sha256",
  "licence_url",
  "licence_name",
  "author",
  "title",
  "page_url",
  "photo_id",
)


class Wanted(NamedTuple):
  """What is asked of a source.

  Attributes:
    source: a path, gs:// folder, hf:// data set or the name of one of TFDS.
    columns: our names -> those in the source.
    records_per_shard: rows in a piece; the last of a split may have fewer.
    keep: columns of the source, by its names, that rows hand on in `more`.
    url_encoded: whether author, title and tags are, as YFCC100M's are:
      "Canon+PowerShot".
    licensed: whether each row must state its licence itself.
  """

  source: str
  columns: Mapping[str, str]
  records_per_shard: int
  keep: tuple[str, ...] = ()
  url_encoded: bool = False
  licensed: bool = True


class Row(NamedTuple):
  """An image as its source describes it; "" where it says nothing.

  Attributes:
    where: file and line or number, for reports.
    image: the original bytes.
    sha256: of the bytes, as the source states it.
    tags: words that the source gives it.
    more: what else was asked for, by the source's names.
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
  photo_id: str = ""
  more: Mapping[str, Any] = types.MappingProxyType({})


def make(
  wanted: Wanted, where: str, fields: Mapping[str, Any], image: bytes = b""
) -> Row | str:
  """A row from the fields of a source, or what is wrong with them.

  Args:
    wanted: gives the names of the columns.
    where: of the row.
    fields: by the source's names; a value may have any type.
    image: the original bytes, which a reader may also put in later.
  """
  columns = wanted.columns
  rest = {name: text(fields.get(columns[name])) for name in TEXTS}
  tags = fields.get(columns["tags"])
  if not isinstance(tags, list | tuple):
    tags = text(tags).split(",")
  tags = [text(tag) for tag in tags]
  if wanted.url_encoded:
    tags = [_decoded(tag) for tag in tags]
    for name in ("author", "title"):
      rest[name] = _decoded(rest[name])
  tags = tuple(tag for tag in tags if tag)
  more = {name: fields.get(name) for name in wanted.keep}
  held = [text(value) for value in more.values()]
  # JSON can spell halves of characters, which no file can hold.
  if not encodable(where, *tags, *rest.values(), *held):
    return "not Unicode text: a lone surrogate"
  return Row(where=where, image=image, tags=tags, more=more, **rest)


def text(value: Any) -> str:
  """A value as text; "" for None and for what a table writes instead of it."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return ""
  if isinstance(value, bytes):
    value = value.decode(errors="replace")
  # Where some rows have none, tables hold whole numbers as floats.
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  return str(value).strip()


def encodable(*texts: str) -> bool:
  """Whether a file can hold the texts."""
  try:
    "".join(texts).encode()
  except UnicodeEncodeError:
    return False
  return True


def printable(name: str) -> str:
  """A file's name as text; it may hold bytes that are not UTF-8."""
  return os.fsencode(name).decode(errors="replace")


def is_split(name: str) -> bool:
  """Whether a split may be called so."""
  return bool(re.fullmatch(r"[a-zA-Z]\w*", name, re.ASCII))


def even(count: int, records_per_shard: int) -> list[tuple[int, int, int, int]]:
  """Cuts `count` rows: (index, pieces, low, high); sizes differ by one at most.

  Raises:
    ValueError: for less than one record a shard.
  """
  check_records_per_shard(records_per_shard)
  pieces = -(-count // records_per_shard)
  return [
    (i, pieces, count * i // pieces, count * (i + 1) // pieces)
    for i in range(pieces)
  ]


def check_records_per_shard(count: int) -> None:
  """Checks that a shard can hold something.

  Raises:
    ValueError: if it cannot.
  """
  if count < 1:
    raise ValueError(f"records_per_shard={count} must be 1 or more")


def check_columns(wanted: Wanted, where: str, names: list[str]) -> None:
  """Checks that a table has what cannot be done without.

  That are the image, what filters ask for, and a licence if rows must state
  one. The others may be missing: their features are empty then.

  Raises:
    ValueError: for a column that is missing, with those that are there.
  """
  columns = wanted.columns
  has = f"{where} has {', '.join(sorted(names))}"
  if columns["image"] not in names:
    raise ValueError(
      f"no column {columns['image']!r} with the image; {has}; name it with "
      "--config.catalogue.columns.image"
    )
  for name in wanted.keep:
    if name not in names:
      raise ValueError(
        f"no column {name!r}, by which catalogue.filters filters; {has}"
      )
  licences = [columns["licence_url"], columns["licence_name"]]
  if wanted.licensed and not set(licences) & set(names):
    raise ValueError(
      f"no column {licences[0]!r} or {licences[1]!r} with the licence; {has}; "
      "name it with --config.catalogue.columns.licence_url, or state that of "
      "all with --config.catalogue.licence"
    )


def broken(where: str, detail: str) -> passes.Reject:
  """The reject for a row whose fields cannot be used."""
  return passes.Reject("row_broken", where, detail)


def _decoded(value: str) -> str:
  return urllib.parse.unquote_plus(value, errors="replace").strip()
