# SPDX-License-Identifier: Apache-2.0
"""Data sets of TFDS as sources."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
import toys

from cc_jax.core import config as configs
from cc_jax.data import records, rows, shards, sources, sources_tfds

COLUMNS = configs.load("configs/base.py").catalogue.columns.to_dict() | {
  "image": "image",
  "title": "label",
  "licence_url": "licence",
  "tags": "words",
}
SPECS = {
  "image": "image",
  "licence": "text",
  "photoid": "int64",
  "label": "text",
  "words": ("text", (None,)),
  "score": "float32",
}


def example(number):
  return {
    "image": toys.picture(number),
    "licence": toys.LICENCE,
    "photoid": np.int64(number),
    "label": f"hat {number}",
    "words": ["red", "blue"][: number % 3],
    "score": np.float32(number / 4),
  }


@pytest.fixture
def folder(tmp_path):
  fields = records.fields(SPECS)
  done = []
  for shard, count in enumerate((4, 3)):
    name = shards.filename("toy", "train", shard, 2)
    examples = [example(4 * shard + i) for i in range(count)]
    done.append(shards.write(tmp_path / name, fields, examples))
  shards.write_metadata(tmp_path, "toy", fields, {"train": done})
  return tmp_path


def wanted(source, **fields):
  return rows.Wanted(str(source), COLUMNS, 3)._replace(**fields)


def test_records_are_rows_with_the_images_as_they_were_stored(folder):
  pieces = sources.pieces(wanted(folder, keep=("score",)), "")
  assert [piece.length for piece in pieces] == [2, 2, 3]
  found = [row for piece in pieces for row in piece.read()]
  assert found[4] == rows.Row(
    where="train:4",
    image=toys.picture(4),
    licence_url=toys.LICENCE,
    title="hat 4",
    tags=("red",),
    photo_id="4",
    more={"score": 1.0},
  )


def test_class_labels_are_taken_by_name():
  label = tfds.features.ClassLabel(names=["dress", "hat"])
  assert sources_tfds._plain(label, np.int64(1)) == "hat"


def test_a_record_that_cannot_be_read_is_a_reject(folder):
  path = folder / shards.filename("toy", "train", 1, 2)
  fields = records.fields({"photoid": "int64"})
  odd = [records.encode(fields, {"photoid": np.int64(i)}) for i in range(3)]
  shards.write_records(path, [odd[0], b"\xff\xff\xff", odd[2]])
  found = [
    entry
    for piece in sources.pieces(wanted(folder), "")
    for entry in piece.read()
  ]
  assert len(found) == 7
  reasons = [getattr(entry, "reason", "kept") for entry in found]
  assert reasons[:4] == ["kept"] * 4
  assert set(reasons[4:]) <= {"record_broken", "image_missing"}


def test_a_changed_data_set_has_other_inputs(folder):
  before = sources.inputs(wanted(folder), "")
  assert before["splits"]["train"][0] == [4, 3]
  info = json.loads((folder / "dataset_info.json").read_text())
  info["splits"][0]["numBytes"] = "7"
  (folder / "dataset_info.json").write_text(json.dumps(info))
  assert sources.inputs(wanted(folder), "") != before


def test_what_is_no_data_set_for_us_is_refused(folder):
  columns = {**COLUMNS, "image": "picture"}
  with pytest.raises(ValueError, match="no column 'picture' with the image"):
    sources.pieces(wanted(folder, columns=columns), "tfds")
  columns = {**COLUMNS, "image": "label"}
  with pytest.raises(ValueError, match=r"'label' of .* is not an image"):
    sources.pieces(wanted(folder, columns=columns), "tfds")
  with pytest.raises(ValueError, match="'nowhere' is neither a folder nor"):
    sources.pieces(wanted("nowhere"), "tfds")
  path = folder / "dataset_info.json"
  path.write_text(path.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="stored as tfrecord; expected array_r"):
    sources.pieces(wanted(folder), "tfds")
