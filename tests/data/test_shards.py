# SPDX-License-Identifier: Apache-2.0
"""Records, folders and aligned folders, against TFDS and on bad folders."""

import json
import pathlib
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cc_jax.data import aligned, records, shards

SPECS = {
  "key": "text",
  "tags": ("text", (None,)),
  "width": "int32",
  "score": "float32",
  "safe": "bool",
  "image": "image",
  "latent": ("bfloat16", (4, 3)),
  "half": ("float16", (2,)),
  "codes": ("uint16", (5,)),
  "tokens": ("int32", (7,)),
  "states": ("bfloat16", (None, 6)),
}


def example(index):
  rng = np.random.default_rng(index)
  normal = lambda *shape: rng.normal(size=shape)
  return {
    "key": f"é{index}",
    "tags": [f"t{i}" for i in range(index % 3)],
    "width": np.int32(index - 2),
    "score": np.float32(index / 3),
    "safe": np.bool_(index % 2),
    "image": PNG + bytes([index]),
    "latent": normal(4, 3).astype(ml_dtypes.bfloat16),
    "half": normal(2).astype(np.float16),
    "codes": rng.integers(2**16, size=5, dtype=np.uint16),
    "tokens": rng.integers(-9, 9, size=7, dtype=np.int32),
    "states": normal(index % 4, 6).astype(ml_dtypes.bfloat16),
  }


# A PNG of one red pixel; what follows its end is ignored by decoders.
PNG = bytes.fromhex(
  "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c"
  "49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def dataset(folder, counts=(3, 0, 4), specs=None, make=example, split="train"):
  """Writes a dataset folder of `sum(counts)` examples."""
  specs = SPECS if specs is None else specs
  fields = records.fields(specs)
  done, start = [], 0
  for shard, count in enumerate(counts):
    name = shards.filename("toy", split, shard, len(counts))
    examples = [
      {f: make(i)[f] for f in specs} for i in range(start, start + count)
    ]
    done.append(shards.write(folder / name, fields, examples))
    start += count
  shards.write_metadata(folder, "toy", fields, {split: done})
  return folder


def source_of(*folders, split="train", features=None):
  return aligned.source([shards.open(x) for x in folders], split, features)


def assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    if isinstance(value, np.ndarray | np.generic):
      assert got[name].dtype == value.dtype
      np.testing.assert_array_equal(got[name], value)
    else:
      assert type(got[name]) is type(value)
      assert got[name] == value


def test_records_come_back_as_they_were_written(tmp_path):
  opened = shards.open(dataset(tmp_path))
  assert opened.splits == {"train": (3, 0, 4)}
  assert len(opened) == 7
  assert opened.fields == records.fields(SPECS)
  read = [x for shard in range(3) for x in shards.read(opened, "train", shard)]
  assert len(read) == 7
  for index, got in enumerate(read):
    assert_same(got, example(index))


def test_random_access_equals_reading_in_order(tmp_path):
  source = source_of(dataset(tmp_path))
  assert len(source) == 7
  for index in (6, 0, 3, 2):
    assert_same(source[index], example(index))
  for index, got in zip([5, 5, 1], source.read([5, 5, 1]), strict=True):
    assert_same(got, example(index))
  with pytest.raises(IndexError, match="record 7 of 7"):
    source[7]
  source.close()
  assert_same(source[1], example(1))


def test_only_the_named_features_are_decoded(tmp_path):
  source = source_of(dataset(tmp_path), features=["tokens", "key"])
  assert list(source[1]) == ["tokens", "key"]
  with pytest.raises(ValueError, match="no feature 'caption'"):
    source_of(tmp_path, features=["caption"])


def test_tfds_reads_what_we_write(tmp_path):
  builder = tfds.builder_from_directory(dataset(tmp_path))
  assert builder.info.splits["train"].num_examples == 7
  source = builder.as_data_source("train")
  assert len(source) == 7
  for index in range(7):
    got, expected = dict(source[index]), example(index)
    assert got.pop("image").tolist() == [[[255, 0, 0]]]
    assert got.pop("key").decode() == expected["key"]
    assert [x.decode() for x in got.pop("tags")] == expected["tags"]
    for name, value in got.items():
      np.testing.assert_array_equal(value, expected[name])
      if expected[name].ndim:
        assert value.dtype == expected[name].dtype
  part = builder.as_data_source("train[2:4]")
  assert [x["width"] for x in part] == [0, 1]


def test_tfds_hands_out_the_original_bytes_when_told_not_to_decode(tmp_path):
  builder = tfds.builder_from_directory(dataset(tmp_path))
  skip = {"image": tfds.decode.SkipDecoding()}
  source = builder.as_data_source("train", decoders=skip)
  assert source[3]["image"] == example(3)["image"]


def test_our_encoding_is_that_of_tfds():
  fields = records.fields(SPECS)
  features = records.connectors(fields)
  serializer = tfds.core.example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  for index in range(4):
    theirs = serializer.get_tf_example(features.encode_example(example(index)))
    ours = records.encode(fields, example(index))
    assert theirs.SerializeToString(deterministic=True) == ours


def test_two_writes_make_the_same_bytes(tmp_path):
  for name in ("a", "b"):
    dataset(tmp_path / name)
  names = sorted(path.name for path in (tmp_path / "a").iterdir())
  assert len(names) == 5
  for name in names:
    a, b = (tmp_path / folder / name for folder in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_tensorflow_is_never_imported(tmp_path):
  dataset(tmp_path)
  script = (
    "import sys\n"
    "from cc_jax.data import aligned, loader, passes, shards\n"
    "import tensorflow_datasets as tfds\n"
    f"source = aligned.source([shards.open({str(tmp_path)!r})], 'train')\n"
    "assert source[1]['width'] == -1\n"
    f"builder = tfds.builder_from_directory({str(tmp_path)!r})\n"
    "assert len(builder.as_data_source('train')) == 7\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"width": 1.5}, r"feature 'width': expected int32\[\], got float"),
    ({"width": 2**40}, "feature 'width': expected int32"),
    ({"width": True}, "feature 'width': expected int32"),
    ({"score": "1"}, "feature 'score': expected float32"),
    ({"key": None}, "feature 'key': expected text, got NoneType"),
    ({"tags": "ab"}, "feature 'tags': expected texts"),
    ({"image": "path.png"}, "feature 'image': expected image, got str"),
    ({"half": np.zeros(2)}, r"expected float16\[2\], got float64\[2\]"),
    ({"latent": np.zeros((3, 4), ml_dtypes.bfloat16)}, r"got bfloat16\[3, 4\]"),
    ({"caption": "x"}, "example has the features .*'caption'"),
  ],
)
def test_a_value_that_does_not_fit_its_feature_is_an_error(change, message):
  with pytest.raises(ValueError, match=message):
    records.encode(records.fields(SPECS), {**example(1), **change})


@pytest.mark.parametrize(
  "spec", ["txt", "float64", "bfloat16", ("int32", (2, None)), ("image", (3,))]
)
def test_an_unknown_spec_is_an_error(spec):
  with pytest.raises(ValueError, match="feature 'x' has the spec"):
    records.fields({"x": spec})


def test_a_record_without_a_feature_is_an_error():
  record = records.encode(records.fields({"key": "text"}), {"key": "a"})
  decode = records.decoder(records.fields({"key": "text", "width": "int32"}))
  with pytest.raises(ValueError, match=r"lacks the features \['width'\]"):
    decode(record)


def test_folders_that_are_not_datasets_are_told_apart(tmp_path):
  with pytest.raises(ValueError, match="does not exist or is empty"):
    shards.open(tmp_path / "none")
  (tmp_path / "x").write_text("")
  with pytest.raises(ValueError, match="is not a dataset"):
    shards.open(tmp_path)
  (tmp_path / ".pass").mkdir()
  with pytest.raises(ValueError, match=r"is unfinished.*run the stage"):
    shards.open(tmp_path)


def test_an_empty_dataset_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="has no records"):
    shards.open(dataset(tmp_path, counts=(0, 0)))


def test_an_absent_shard_is_an_error(tmp_path):
  dataset(tmp_path)
  (tmp_path / "toy-train.array_record-00001-of-00003").unlink()
  with pytest.raises(ValueError, match="lacks the shard toy-train"):
    shards.open(tmp_path)


def test_an_absent_split_is_an_error(tmp_path):
  with pytest.raises(ValueError, match=r"split 'test'; it has {'train': 7}"):
    source_of(dataset(tmp_path), split="test")


def test_a_shard_of_another_length_is_an_error(tmp_path):
  info = dataset(tmp_path) / "dataset_info.json"
  text = info.read_text().replace('"3"', '"2"')
  assert text != info.read_text()
  info.write_text(text)
  opened = shards.open(tmp_path)
  with pytest.raises(ValueError, match="has 3 records; expected 2"):
    list(shards.read(opened, "train", 0))
  with pytest.raises(ValueError, match="has 3 records; expected 2"):
    source_of(tmp_path)[0]


CAPTIONS = {"key": "text", "caption": "text"}


@pytest.mark.parametrize("how", ["cut", "altered"])
def test_a_damaged_shard_is_named(how, tmp_path):
  folder = dataset(tmp_path / "d")
  path = pathlib.Path(shards.open(folder).path("train", 2))
  whole = bytearray(path.read_bytes())
  # The first record begins after the headers of the file and of its block.
  whole[150] ^= 0xFF
  path.write_bytes(whole if how == "altered" else whole[: len(whole) // 2])
  opened = shards.open(folder)
  message = re.escape(f"{path} is damaged (")
  with pytest.raises(ValueError, match=message):
    list(shards.read(opened, "train", 2))
  with pytest.raises(ValueError, match=message):
    source_of(folder)[3]
  assert source_of(folder)[2]


def caption(index):
  return {"key": f"é{index}", "caption": f"number {index}"}


def test_aligned_folders_read_as_one(tmp_path):
  dataset(tmp_path / "a")
  dataset(tmp_path / "b", specs=CAPTIONS, make=caption)
  folders = [tmp_path / "a", tmp_path / "b"]
  source = source_of(*folders)
  for index in range(7):
    assert_same(source[index], example(index) | caption(index))
  source = source_of(*folders, features=["caption", "width"])
  assert source[5] == {"caption": "number 5", "width": 3}
  read = list(aligned.read([shards.open(x) for x in folders], "train", 2))
  assert [x["caption"] for x in read] == [f"number {i}" for i in range(3, 7)]


def test_a_side_folder_that_gives_nothing_is_not_read(tmp_path):
  dataset(tmp_path / "a")
  dataset(tmp_path / "b", specs=CAPTIONS, make=caption)
  folders = [tmp_path / "a", tmp_path / "b"]
  assert len(source_of(*folders, features=["width"]).datasets) == 1


def test_folders_that_are_not_aligned_are_an_error(tmp_path):
  dataset(tmp_path / "a")
  dataset(tmp_path / "b", counts=(4, 3), specs=CAPTIONS, make=caption)
  with pytest.raises(ValueError, match=r"not aligned.*\[4, 3\].*\[3, 0, 4\]"):
    source_of(tmp_path / "a", tmp_path / "b")
  dataset(tmp_path / "c", specs=CAPTIONS, make=lambda i: caption(i ^ (i == 4)))
  source = source_of(tmp_path / "a", tmp_path / "c")
  assert source[3]["caption"] == "number 3"
  with pytest.raises(ValueError, match="record 1 of train shard 2 has the key"):
    source[4]


def test_a_feature_in_two_folders_is_an_error(tmp_path):
  for name in "ab":
    dataset(tmp_path / name)
  with pytest.raises(ValueError, match="is in both"):
    source_of(tmp_path / "a", tmp_path / "b")


def test_features_of_other_weights_are_refused(tmp_path):
  dataset(tmp_path)
  provenance = {"weights": {"latent": "ab" * 32}}
  (tmp_path / "provenance.json").write_text(json.dumps(provenance))
  opened = shards.open(tmp_path)
  shards.expect(opened, {"latent": "ab" * 32})
  with pytest.raises(ValueError, match=r"made by weights abab.*expected cdcd"):
    shards.expect(opened, {"latent": "cd" * 32})
  with pytest.raises(ValueError, match="made by weights None"):
    shards.expect(opened, {"codes": "cd" * 32})


@pytest.mark.parametrize("name", ["a-b", "", "0a", "a/b"])
def test_a_name_that_tfds_cannot_read_back_is_an_error(name):
  with pytest.raises(ValueError, match="of a dataset; expected a letter"):
    shards.filename(name, "train", 0, 1)
