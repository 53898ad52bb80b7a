# SPDX-License-Identifier: Apache-2.0
"""Data sets of TFDS, by folder or by name, read without TensorFlow.

They must be prepared already, as ArrayRecord files. The images' bytes are taken
as they were stored; a class label is taken by its name.
"""

from collections.abc import Iterator
import functools
from typing import Any

from google.protobuf import message
import numpy as np
import tensorflow_datasets as tfds

from cc_jax.core import files
from cc_jax.data import passes, rows


def pieces(wanted: rows.Wanted) -> list[passes.Piece]:
  """Cuts the splits of a data set into pieces of a pass.

  Returns:
    Pieces that yield rows, and rejects: "record_broken", "image_missing",
    "row_broken".

  Raises:
    ValueError: there is no such data set, it is not prepared as ArrayRecord, or
      lacks a feature (see `rows.check_columns`).
  """
  builder = _open(wanted)
  made = []
  for split, info in builder.info.splits.items():
    for index, count, low, high in rows.even(
      info.num_examples, wanted.records_per_shard
    ):
      read = functools.partial(_read, wanted, split, low, high)
      made.append(passes.Piece(split, index, count, read, high - low))
  return made


def inputs(wanted: rows.Wanted) -> dict[str, Any]:
  """What `passes.run` records of a data set: version, lengths and bytes."""
  info = _open(wanted).info
  return {
    "source": wanted.source,
    "name": info.full_name,
    "splits": {
      name: [list(split.shard_lengths), int(split.num_bytes)]
      for name, split in info.splits.items()
    },
  }


def _open(wanted: rows.Wanted) -> Any:
  source = wanted.source
  try:
    if files.path(source).is_dir():
      builder = tfds.builder_from_directory(source)
    else:
      builder = tfds.builder(source)
  except (tfds.core.DatasetNotFoundError, FileNotFoundError):
    raise ValueError(
      f"{source!r} is neither a folder nor a data set of TFDS"
    ) from None
  if not builder.info.splits:
    raise ValueError(
      f"{source!r} is not prepared; make it with `tfds build "
      "--file_format=array_record`, or name the folder it was prepared in"
    )
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"{source!r} is stored as {builder.info.file_format.value}; expected "
      "array_record; prepare it again with --file_format=array_record"
    )
  rows.check_columns(wanted, source, list(builder.info.features))
  column = wanted.columns["image"]
  if not isinstance(builder.info.features[column], tfds.features.Image):
    raise ValueError(
      f"feature {column!r} of {source!r} is not an image; name one with "
      "--config.catalogue.columns.image"
    )
  return builder


def _read(
  wanted: rows.Wanted, split: str, low: int, high: int
) -> Iterator[rows.Row | passes.Reject]:
  builder = _open(wanted)
  column = wanted.columns["image"]
  decoders = {column: tfds.decode.SkipDecoding()}
  source = builder.as_data_source(split, decoders=decoders)
  needed = {*wanted.columns.values(), *wanted.keep} & {*builder.info.features}
  for index in range(low, high):
    where = f"{split}:{index}"
    try:
      record = source[index]
    # Of ArrayRecord, of protobuf, of a record without the feature.
    except (
      message.Error,
      ValueError,
      RuntimeError,
      LookupError,
      OSError,
    ) as error:
      reason = (str(error).splitlines() or [""])[0]
      yield passes.Reject("record_broken", where, reason)
      continue
    image = record[column]
    if not isinstance(image, bytes) or not image:
      yield passes.Reject("image_missing", where, "no bytes")
      continue
    fields = {
      name: _plain(builder.info.features[name], record[name])
      for name in needed - {column}
    }
    row = rows.make(wanted, where, fields, image)
    yield rows.broken(where, row) if isinstance(row, str) else row


def _plain(feature: Any, value: Any) -> Any:
  """A value of TFDS as Python has it."""
  if isinstance(feature, tfds.features.ClassLabel):
    return feature.int2str(int(value))
  if isinstance(value, np.ndarray):
    return value.tolist()
  return value.item() if isinstance(value, np.generic) else value
