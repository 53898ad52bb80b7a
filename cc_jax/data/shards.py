# SPDX-License-Identifier: Apache-2.0
"""A dataset: one folder of ArrayRecord shards, its features and its counts.

    features.json                          what a record holds (TFDS's format)
    dataset_info.json                      splits, shard lengths (TFDS's format)
    NAME-SPLIT.array_record-00000-of-00016 records, each one a tf.Example
    provenance.json                        what made it: see data/passes.py
    rejects.jsonl                          what was left out, and why
    ATTRIBUTION.parquet                    whose images they are, in a catalogue
    removal.json                           only while records are taken out

`tfds.builder_from_directory(folder).as_data_source()` and Grain read it without
TensorFlow. Shards are written `group_size:1,uncompressed`, which is two to
four times cheaper to read at random than any compression. `dataset_info.json`
is written last: a folder that has it is complete. data/records.py says what a
record may hold, data/aligned.py reads several folders side by side.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import tempfile
from typing import Any

from array_record.python import array_record_module
from google.protobuf import json_format
import tensorflow_datasets as tfds

from cc_jax.core import files
from cc_jax.data import records

WRITER_OPTIONS = "group_size:1,uncompressed"

INFO = "dataset_info.json"
FEATURES = "features.json"
PROVENANCE = "provenance.json"
REJECTS = "rejects.jsonl"
REMOVAL = "removal.json"

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A complete dataset folder.

  Attributes:
    folder: local or `gs://`, as given.
    name: the first part of the names of its shards.
    fields: what a record holds, in alphabetical order.
    splits: the number of records in each shard of each split.
    provenance: what made it; empty for a folder that cc_jax did not write.
  """

  folder: str
  name: str
  fields: tuple[records.Field, ...]
  splits: Mapping[str, tuple[int, ...]]
  provenance: Mapping[str, Any]

  def __len__(self) -> int:
    return sum(sum(lengths) for lengths in self.splits.values())

  def path(self, split: str, shard: int) -> str:
    """Returns where shard number `shard` of a split lies."""
    count = len(self.splits[split])
    return os.path.join(self.folder, filename(self.name, split, shard, count))


def filename(name: str, split: str, shard: int, count: int) -> str:
  """Returns the file name of shard number `shard` of `count`.

  Raises:
    ValueError: for a name or split that TFDS could not read back.
  """
  for what, word in (("name", name), ("split", split)):
    if not re.fullmatch(r"[a-zA-Z]\w*", word, re.ASCII):
      raise ValueError(
        f"{what} {word!r} of a dataset; expected a letter, then letters, "
        "digits and underscores"
      )
  return f"{name}-{split}.array_record-{shard:05d}-of-{count:05d}"


def check_no_removal(folder: str) -> None:
  """Checks that nobody is taking, or stopped taking, records out of a folder.

  Raises:
    ValueError: if somebody is: some of its shards may be without them already.
  """
  if files.path(os.path.join(folder, REMOVAL)).exists():
    raise ValueError(
      f"records are being removed from {folder} ({REMOVAL} is there); if "
      "nobody is at it, run the same `cc-jax remove` again, it goes on"
    )


def open(folder: str | os.PathLike[str], *, removing: bool = False) -> Dataset:
  """Opens a dataset folder, local or `gs://`; reads no record.

  Args:
    folder: of the dataset.
    removing: whether it is opened to go on taking records out of it.

  Raises:
    ValueError: if the folder is missing, not a dataset, unfinished, without
      records, lacks a shard, or has features of an unknown kind.
  """
  folder = os.fspath(folder)
  names = set(files.listing(folder))
  if not names:
    raise ValueError(
      f"{folder} does not exist or is empty; expected a dataset folder, as "
      "`cc-jax catalogue` writes"
    )
  if INFO not in names:
    if ".pass" in names:
      raise ValueError(
        f"{folder} is unfinished: it has no {INFO}; run the stage that writes "
        "it again, it goes on where it stopped"
      )
    raise ValueError(
      f"{folder} is not a dataset: it has no {INFO}; expected a folder that "
      "`cc-jax catalogue` wrote"
    )
  if not removing:
    check_no_removal(folder)
  info = files.read_json(os.path.join(folder, INFO))
  if info.get("fileFormat") != "array_record":
    raise ValueError(
      f"{folder} holds {info.get('fileFormat')!r} files; expected "
      "'array_record'; read it as a source of `cc-jax catalogue`"
    )
  connectors = tfds.features.FeatureConnector.from_json(
    files.read_json(os.path.join(folder, FEATURES))
  )
  provenance = {}
  if PROVENANCE in names:
    provenance = files.read_json(os.path.join(folder, PROVENANCE))
  dataset = Dataset(
    folder=folder,
    name=info["name"],
    fields=records.from_connectors(connectors),
    splits={
      split["name"]: tuple(int(n) for n in split.get("shardLengths", []))
      for split in info.get("splits", [])
    },
    provenance=provenance,
  )
  for split, lengths in dataset.splits.items():
    for shard in range(len(lengths)):
      name = filename(dataset.name, split, shard, len(lengths))
      if name not in names:
        raise ValueError(
          f"{folder} lacks the shard {name}, which its {INFO} lists; copy it "
          "from where the dataset was made, or make it again"
        )
  if not len(dataset) and not removing:
    raise ValueError(
      f"{folder} has no records; its {REJECTS} says what was left out"
    )
  return dataset


def expect(dataset: Dataset, weights: Mapping[str, str]) -> None:
  """Checks that features were made by the weights a reader has in hand.

  Args:
    dataset: as opened.
    weights: the SHA-256 of the weights for each feature, in hexadecimal.

  Raises:
    ValueError: if a feature is missing, or was made by other weights.
  """
  made = dataset.provenance.get("weights", {})
  for feature, digest in weights.items():
    if made.get(feature) != digest:
      raise ValueError(
        f"feature {feature!r} of {dataset.folder} was made by weights "
        f"{str(made.get(feature))[:12]}; expected {digest[:12]}; encode the "
        "dataset again with these weights, or name the ones that made it"
      )


def write(
  path: str | os.PathLike[str],
  fields: Sequence[records.Field],
  examples: Iterable[records.Example],
) -> tuple[int, int]:
  """Writes one shard, which appears under `path` when it is complete.

  The same examples make the same bytes. A `gs://` shard is written to the
  local temporary folder and uploaded.

  Returns:
    The number of records and the number of bytes in them.
  """
  encoded = (records.encode(fields, example) for example in examples)
  return write_records(path, encoded)


def write_records(
  path: str | os.PathLike[str], encoded: Iterable[bytes]
) -> tuple[int, int]:
  """Writes one shard of records that are encoded already; see `write`."""
  count = size = 0
  with writing(path) as write:
    for record in encoded:
      write(record)
      count, size = count + 1, size + len(record)
  return count, size


@contextlib.contextmanager
def writing(
  path: str | os.PathLike[str],
) -> Iterator[Callable[[bytes], None]]:
  """Takes a shard's encoded records one by one.

  It appears under `path` when the block ends, unless by an error; see `write`.
  """
  target = os.fspath(path)
  local = target
  if files.is_remote(target):
    local = os.path.join(tempfile.gettempdir(), os.path.basename(target))
  else:
    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
  written = files.temporary(local)
  writer = array_record_module.ArrayRecordWriter(written, WRITER_OPTIONS)

  def write(record: bytes) -> None:
    with _refusals(written):
      writer.write(record)

  try:
    yield write
    with _refusals(written):
      writer.close()
    files.commit(written, target)
  except BaseException:
    with contextlib.suppress(RuntimeError):
      writer.close()
    pathlib.Path(written).unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
  """Makes what ArrayRecord says of a full disk an error as Python has it."""
  try:
    yield
  except RuntimeError as error:
    for code in files.REFUSALS:
      if os.strerror(code) in str(error):
        raise OSError(code, os.strerror(code), path) from None
    raise


@contextlib.contextmanager
def whole(path: str) -> Iterator[None]:
  """What ArrayRecord says of a damaged file, as an error that names it.

  Raises:
    ValueError: a file that is read inside is cut or altered.
  """
  try:
    with _refusals(path):
      yield
  except RuntimeError as error:
    reason = (str(error).splitlines() or ["it is cut"])[0]
    raise ValueError(
      f"{path} is damaged ({reason}); copy it from where it was made, or make "
      "the dataset again"
    ) from None


def write_metadata(
  folder: str | os.PathLike[str],
  name: str,
  fields: Sequence[records.Field],
  splits: Mapping[str, Sequence[tuple[int, int]]],
) -> None:
  """Writes features.json, then dataset_info.json, which completes the folder.

  Args:
    folder: where the shards are.
    name: of the dataset, as in its shards' names.
    fields: what a record holds.
    splits: the number of records and of bytes in each shard of each split.
  """
  features = records.connectors(fields)
  content = json_format.MessageToDict(features.to_proto())
  text = json.dumps(content, indent=2, sort_keys=True) + "\n"
  files.write_atomic(os.path.join(folder, FEATURES), text)
  info = {
    "name": name,
    "version": "1.0.0",
    "fileFormat": "array_record",
    "splits": [
      {
        "name": split,
        "shardLengths": [str(count) for count, _ in shards],
        "numBytes": str(sum(size for _, size in shards)),
        "filepathTemplate": _TEMPLATE,
      }
      for split, shards in splits.items()
    ],
  }
  files.write_json(os.path.join(folder, INFO), info)


def reader(dataset: Dataset, split: str, shard: int, readahead: bool) -> Any:
  """Opens one shard as an `array_record_module.ArrayRecordReader`.

  Args:
    dataset: as opened.
    split: one of its splits.
    shard: number of the shard in the split.
    readahead: whether records will be read in order, not at random.

  Raises:
    ValueError: if the shard is cut, or has another number of records than the
      dataset's metadata says.
  """
  path = dataset.path(split, shard)
  expected = dataset.splits[split][shard]
  options = {} if readahead else {"options": "readahead_buffer_size:0"}
  opened = array_record_module.ArrayRecordReader(
    path, file_reader_buffer_size=2**15, **options
  )
  if (count := opened.num_records()) != expected:
    # Only here does it say so of a file that is cut.
    with whole(path):
      opened.close()
    raise ValueError(
      f"{path} has {count} records; expected {expected}, as {INFO} says; make "
      "the dataset again"
    )
  return opened


def read(
  dataset: Dataset,
  split: str,
  shard: int,
  features: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
  """Reads one shard in order, all features or those named.

  Raises:
    ValueError: as `reader` does, and for a record that is damaged.
  """
  decode = records.decoder(dataset.fields, features)
  with whole(dataset.path(split, shard)):
    opened = reader(dataset, split, shard, readahead=True)
    try:
      for _ in range(dataset.splits[split][shard]):
        yield decode(opened.read())
    finally:
      opened.close()
