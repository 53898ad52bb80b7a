# SPDX-License-Identifier: Apache-2.0
"""Where images come from: the kinds of sources, and which one a source is."""

from typing import Any

from cc_jax.core import config as configs
from cc_jax.core import files
from cc_jax.data import (
  passes,
  rows,
  sources_files,
  sources_folder,
  sources_parquet,
  sources_tfds,
  sources_webdataset,
)

READERS = {
  "folder": sources_folder,
  "parquet": sources_parquet,
  "webdataset": sources_webdataset,
  "tfds": sources_tfds,
}
"""Each has `pieces(wanted)` and `inputs(wanted)`."""


def pieces(wanted: rows.Wanted, format: str) -> list[passes.Piece]:
  """The pieces of a pass over a source; a second call gives the same.

  Args:
    wanted: what is asked of the source.
    format: one of `READERS`, or "" to find it out.

  Raises:
    ValueError: there is no such format or source, or the source lacks
      something; see the readers.
  """
  return _reader(wanted, format).pieces(wanted)


def inputs(wanted: rows.Wanted, format: str) -> dict[str, Any]:
  """What `passes.run` records of a source, to find it changed."""
  return _reader(wanted, format).inputs(wanted)


def detect(source: str) -> str:
  """The format of a source, by the names of its files.

  img2dataset writes a Parquet file beside each tar; a folder with tars is of
  tars. What is none of the others is a folder of images.
  """
  hub = sources_files.is_hub(source)
  if not hub and (not source or not files.path(source).exists()):
    return "folder"
  names = set() if hub else set(files.listing(source))
  if {"dataset_info.json", "features.json"} <= names:
    return "tfds"
  if names & set(sources_folder.LISTS):
    return "folder"
  for format in ("webdataset", "parquet"):
    suffix = READERS[format].SUFFIX
    if source.endswith(suffix) or any(n.endswith(suffix) for n in names):
      return format
  # Folders in folders are searched last: there may be very many.
  for format in ("webdataset", "parquet"):
    if _has(source, READERS[format].SUFFIX):
      return format
  return "folder"


def _has(source: str, suffix: str) -> bool:
  try:
    return bool(sources_files.find(source, suffix).names)
  except ValueError:
    return False


def _reader(wanted: rows.Wanted, format: str) -> Any:
  format = format or detect(wanted.source)
  if format not in READERS:
    raise configs.unknown("catalogue.format", format, list(READERS))
  reader = READERS[format]
  if sources_files.is_hub(wanted.source) and format not in (
    "parquet",
    "webdataset",
  ):
    raise ValueError(
      f"{wanted.source} has neither Parquet files nor tars, which is what can "
      "be read from the hub; download it and name its folder"
    )
  return reader
