# SPDX-License-Identifier: Apache-2.0
"""WebDataset: tar files of samples, as img2dataset writes them.

The files of a sample follow one another and share a name up to its first dot:
"000000017.jpg", "000000017.txt", "000000017.json". The JSON object says what is
known of the image, by the same columns as elsewhere; the text is its title when
the object has none.

How many samples a tar holds is not written in it, so a tar is a piece: shards
are as large as the tars are, and `records_per_shard` is not asked.
"""

from collections.abc import Iterator
import functools
import json
import tarfile
from typing import Any

from cc_jax.data import passes, rows, sources_files

SUFFIX = ".tar"
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXT = "txt"
JSON = "json"


def pieces(wanted: rows.Wanted) -> list[passes.Piece]:
  """A piece for each tar; all are of the split "train".

  Returns:
    Pieces that yield rows, and rejects: "tar_broken" once for a tar that is cut
    or altered, where its readable part ends; "image_missing", "row_broken".

  Raises:
    ValueError: there are no tars.
  """
  rows.check_records_per_shard(wanted.records_per_shard)
  found = sources_files.find(wanted.source, SUFFIX)
  count = len(found.names)
  return [
    passes.Piece(
      rows.TRAIN, index, count, functools.partial(_read, wanted, found, name)
    )
    for index, name in enumerate(found.names)
  ]


def inputs(wanted: rows.Wanted) -> dict[str, str]:
  """What `passes.run` records of the tars."""
  return sources_files.inputs(sources_files.find(wanted.source, SUFFIX))


def _read(
  wanted: rows.Wanted, found: sources_files.Files, name: str
) -> Iterator[rows.Row | passes.Reject]:
  key, parts = None, {}
  place = rows.printable(name)
  with sources_files.opened(found, name) as file:
    try:
      for member, data in _members(file):
        folder, slash, base = member.rpartition("/")
        stem, _, suffix = base.partition(".")
        this = folder + slash + stem
        if this != key:
          if parts:
            yield _sample(wanted, f"{place}/{key}", parts)
          key, parts = this, {}
        if (suffix := suffix.lower()) in (*IMAGES, TEXT, JSON):
          parts[suffix] = data()
        else:
          parts.setdefault(suffix, b"")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
      # The sample that was being read may be cut as well: it goes with it.
      where = place if key is None else f"{place}/{key}"
      yield passes.Reject("tar_broken", where, str(error))
      return
  if parts:
    yield _sample(wanted, f"{place}/{key}", parts)


def _members(file: Any) -> Iterator[tuple[str, Any]]:
  """Yields (name, function that reads it) of the files in a tar.

  Raises:
    tarfile.ReadError: if the tar does not end as tars end; tarfile itself takes
      the first header that it cannot read for the end.
  """
  with tarfile.open(fileobj=file, mode="r:") as tar:
    while (member := tar.next()) is not None:
      # They would be remembered all.
      tar.members.clear()
      if member.isfile():
        yield (
          rows.printable(member.name),
          lambda m=member: tar.extractfile(m).read(),
        )
    file.seek(tar.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if end != bytes(tarfile.BLOCKSIZE):
      what = "no valid header" if end else "the end"
      raise tarfile.ReadError(f"{what} at byte {tar.offset}; the tar is cut")


def _sample(
  wanted: rows.Wanted, where: str, parts: dict[str, bytes]
) -> rows.Row | passes.Reject:
  """The row of one sample."""
  image = next((parts[suffix] for suffix in IMAGES if suffix in parts), None)
  if image is None:
    held = " ".join(sorted(parts))
    return passes.Reject("image_missing", where, f"the sample has {held}")
  fields = {}
  try:
    if JSON in parts:
      fields = json.loads(parts[JSON])
    title = wanted.columns["title"]
    if TEXT in parts and isinstance(fields, dict) and not fields.get(title):
      fields[title] = parts[TEXT].decode()
  except (ValueError, RecursionError) as error:
    return rows.broken(where, f"{type(error).__name__} in its text or JSON")
  if not isinstance(fields, dict):
    return rows.broken(where, "not a JSON object")
  row = rows.make(wanted, where, fields, image)
  return rows.broken(where, row) if isinstance(row, str) else row
