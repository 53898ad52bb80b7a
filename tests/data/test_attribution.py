# SPDX-License-Identifier: Apache-2.0
import buckets
from pyarrow import parquet
import toy_catalogue
import toy_pass

from cc_jax.data import attribution, shards


def test_every_record_is_attributed_in_the_order_of_the_shards(tmp_path):
  toy_catalogue.fill(tmp_path / "a")
  dataset = shards.open(tmp_path / "a")
  expected = [
    {name: x[name] for name in attribution.COLUMNS}
    for split, lengths in dataset.splits.items()
    for shard in range(len(lengths))
    for x in shards.read(dataset, split, shard)
  ]
  file = parquet.ParquetFile(tmp_path / "a/ATTRIBUTION.parquet")
  assert file.read().to_pylist() == expected
  assert len(expected) == len(dataset)
  groups = range(file.metadata.num_row_groups)
  sizes = [file.metadata.row_group(i).num_rows for i in groups]
  lengths = [n for of_split in dataset.splits.values() for n in of_split]
  assert sizes == [n for n in lengths if n]


def test_the_same_records_make_the_same_bytes(tmp_path):
  for name in ("a", "b"):
    toy_catalogue.fill(tmp_path / name)
  assert toy_pass.contents(tmp_path / "a") == toy_pass.contents(tmp_path / "b")


def test_what_a_record_does_not_have_is_empty(tmp_path):
  row = attribution.row({"key": "k", "author": "Änn", "image": b"."})
  assert row == dict.fromkeys(attribution.COLUMNS, "") | {
    "key": "k",
    "author": "Änn",
  }
  attribution.write(str(tmp_path / "part"), [])
  assert attribution.read(str(tmp_path / "part")) == []


def test_parts_are_joined_in_a_bucket_too(tmp_path, monkeypatch):
  bucket = buckets.make(monkeypatch)
  rows = [attribution.row({"key": str(i)}) for i in range(3)]
  for folder in (bucket, str(tmp_path)):
    attribution.write(f"{folder}/0", rows[:2])
    attribution.write(f"{folder}/1", rows[2:])
    attribution.join([f"{folder}/0", f"{folder}/1"], folder)
    assert attribution.read(f"{folder}/{attribution.NAME}") == rows
