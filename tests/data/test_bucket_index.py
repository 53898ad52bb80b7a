# SPDX-License-Identifier: Apache-2.0
"""The bucket of each record, from a file or from the records."""

import numpy as np
import pytest

from cc_jax.data import aligned, bucket_index, records, shards

FRAMES = [(8, 32), (16, 16), (32, 8)]
SPECS = {"key": "text", "bucket": ("int32", (2,))}


def make(folder, lengths=(4, 0, 3), frames=FRAMES, specs=None):
  fields = records.fields(specs or SPECS)
  rows = [
    {"key": str(i), "bucket": np.int32(frames[i % len(frames)])}
    for i in range(sum(lengths))
  ]
  rows = [{f.name: row[f.name] for f in fields} for row in rows]
  done, start = [], 0
  for shard, length in enumerate(lengths):
    name = shards.filename("toy", "train", shard, len(lengths))
    part = rows[start : start + length]
    done.append(shards.write(folder / name, fields, part))
    start += length
  shards.write_metadata(folder, "toy", fields, {"train": done})
  return shards.open(folder)


def load(*datasets):
  return bucket_index.load(aligned.source(datasets, "train"))


def expected(count, frames=FRAMES):
  return [
    h * 2**16 + w for h, w in (frames[i % len(frames)] for i in range(count))
  ]


def test_the_index_is_the_feature(tmp_path):
  dataset = make(tmp_path)
  np.testing.assert_array_equal(load(dataset), expected(7))
  bucket_index.write(dataset)
  np.testing.assert_array_equal(load(dataset), expected(7))
  content = (tmp_path / bucket_index.FILE).read_bytes()
  bucket_index.write(dataset)
  assert (tmp_path / bucket_index.FILE).read_bytes() == content


def test_with_an_index_no_record_is_read(tmp_path):
  bucket_index.write(make(tmp_path))
  dataset = make(tmp_path, frames=FRAMES[::-1])
  np.testing.assert_array_equal(load(dataset), expected(7))


def test_a_shard_of_another_length_is_read_again(tmp_path):
  bucket_index.write(make(tmp_path))
  dataset = make(tmp_path, lengths=(4, 0, 2), frames=FRAMES[::-1])
  found = load(dataset)
  np.testing.assert_array_equal(found[:4], expected(4))
  np.testing.assert_array_equal(found[4:], expected(6, FRAMES[::-1])[4:])


def test_other_shards_are_all_read(tmp_path):
  bucket_index.write(make(tmp_path))
  dataset = make(tmp_path, lengths=(4, 3), frames=FRAMES[::-1])
  np.testing.assert_array_equal(load(dataset), expected(7, FRAMES[::-1]))


def test_data_without_buckets_is_an_error(tmp_path):
  dataset = make(tmp_path, specs={"key": "text"})
  with pytest.raises(ValueError, match="no feature 'bucket' in"):
    load(dataset)
