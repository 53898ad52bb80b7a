# SPDX-License-Identifier: Apache-2.0
"""COCO's captions from files as tensorflow-datasets and the hub have them."""

import json

from array_record.python import array_record_module
import numpy as np
import pyarrow as pa
from pyarrow import parquet
import stub_hub
import tensorflow_datasets as tfds
import toys

from cc_jax.data import prompt_sets, sources_files

# Of tfds.object_detection.coco's CocoCaptions, 2014.
FEATURES = tfds.features.FeaturesDict(
  {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "image/filename": tfds.features.Text(),
    "image/id": np.int64,
    "captions": tfds.features.Sequence(
      {"id": np.int64, "text": tfds.features.Text()}
    ),
    "objects": tfds.features.Sequence(
      {
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "id": np.int64,
        "is_crowd": np.bool_,
        "label": tfds.features.ClassLabel(names=["hat", "dog"]),
      }
    ),
  }
)
EACH = 4


def example(number):
  box = tfds.features.BBox(0.0, 0.0, 0.5, 0.5)
  thing = dict(area=3, bbox=box, id=1, is_crowd=False, label="dog")
  return {
    "image": toys.picture(number),
    "image/filename": f"COCO_val2014_{number:012d}.jpg",
    "image/id": number,
    "captions": [
      {"id": 10 * number, "text": f" A hat, number {number}.\n"},
      {"id": 10 * number + 1, "text": "another"},
    ],
    "objects": [thing] * (number % 3),
  }


def prepared(folder):
  """As `tfds build coco_captions --file_format=array_record` leaves it."""
  FEATURES.save_config(str(folder))
  splits = []
  for place, split in enumerate(("train", *prompt_sets.COCO_SPLITS)):
    name = f"coco_captions-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(
      str(folder / name), "group_size:1"
    )
    for row in range(EACH):
      made = FEATURES.encode_example(example(100 * place + 7 * row))
      writer.write(FEATURES.serialize_example(made))
    writer.close()
    splits.append(
      {
        "name": split,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": "1",
        "shardLengths": [str(EACH)],
      }
    )
  told = {
    "name": "coco_captions",
    "configName": "2014",
    "version": "1.1.0",
    "fileFormat": "array_record",
    "splits": splits,
  }
  (folder / "dataset_info.json").write_text(json.dumps(told))
  return str(folder)


def test_coco_as_tensorflow_datasets_prepares_it(tmp_path):
  found = prompt_sets.coco(count=9, builder=prepared(tmp_path))
  assert found.name == "coco30k"
  numbers = [int(name) for name in found.names]
  # Of validation, all three parts of it, and never of training.
  assert {number // 100 for number in numbers} == {1, 2, 3}
  for row, number in enumerate(numbers):
    assert found.texts[row] == f"A hat, number {number}."
    assert found.image(row) == toys.picture(number)
  again = prompt_sets.coco(count=9, builder=str(tmp_path))
  assert (again.identity, again.hash) == (found.identity, found.hash)


def test_coco_as_the_hub_has_it(tmp_path, monkeypatch):
  """Parquet files whose captions are lists or strings, by the hub's answers."""
  assert sources_files.is_hub(prompt_sets.COCO_HUB)
  repository = prompt_sets.COCO_HUB.removeprefix("hf://datasets/")
  folder = tmp_path / repository / "data"
  folder.mkdir(parents=True)
  for part in range(2):
    rows = range(3 * part, 3 * part + 3)
    table = pa.table(
      {
        "image": [{"bytes": toys.picture(i), "path": f"{i}.jpg"} for i in rows],
        "caption": [f"a hat, number {i}" for i in rows],
      }
    )
    name = f"train-{part:05d}-of-00002.parquet"
    parquet.write_table(table, folder / name)
  with stub_hub.serving(tmp_path) as server:
    stub_hub.redirect(monkeypatch, server, tmp_path / "cache")
    found = prompt_sets.coco(builder="nothing_prepared")
    assert found.name == "coco30k"
    assert found.texts == tuple(f"a hat, number {i}" for i in range(6))
    assert [found.image(i) for i in range(6)] == [
      toys.picture(i) for i in range(6)
    ]
