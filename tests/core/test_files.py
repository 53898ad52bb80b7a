# SPDX-License-Identifier: Apache-2.0
"""Local files, and `gs://` on a file system in memory."""

import importlib.util
import os

import buckets
import numpy as np
import pytest

from cc_jax.core import files


@pytest.fixture
def bucket(monkeypatch):
  return buckets.make(monkeypatch)


def test_a_written_file_is_read_back(tmp_path):
  name = tmp_path / "new" / "x.json"
  files.write_json(name, {"b": 1, "a": ["é"]})
  assert name.read_text() == '{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'
  assert files.read_json(name) == {"b": 1, "a": ["é"]}
  assert files.listing(tmp_path / "new") == ["x.json"]
  assert files.listing(tmp_path / "none") == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  name = tmp_path / "x"
  files.write_atomic(name, "old")

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    files.write_atomic(name, "new")
  assert name.read_text() == "old"


def test_json_refuses_nan():
  with pytest.raises(ValueError, match="not JSON compliant"):
    files.to_json({"loss": float("nan")})


def test_what_cannot_be_read_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"none\.json does not exist"):
    files.read_json(tmp_path / "none.json")
  (tmp_path / "x.json").write_text("{")
  with pytest.raises(ValueError, match=r"x\.json is not JSON"):
    files.read_json(tmp_path / "x.json")


def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path):
  (tmp_path / "x").write_bytes(b"abc")
  assert files.sha256(tmp_path / "x") == files.sha256(b"abc")
  assert files.sha256(b"abc").startswith("ba7816bf")


def test_gs_needs_gcsfs(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'cc_jax\[gcs\]'"):
    files.path("gs://bucket/x")


def test_other_schemes_are_refused():
  with pytest.raises(ValueError, match="scheme 's3'"):
    files.path("s3://bucket/x")


def test_objects_in_a_bucket_are_written_read_and_listed(bucket, tmp_path):
  files.write_json(f"{bucket}/d/x.json", {"a": 1})
  assert files.read_json(f"{bucket}/d/x.json") == {"a": 1}
  (tmp_path / "y").write_bytes(b"abc")
  files.commit(str(tmp_path / "y"), f"{bucket}/d/y")
  assert not (tmp_path / "y").exists()
  assert files.sha256(files.path(f"{bucket}/d/y")) == files.sha256(b"abc")
  assert files.listing(f"{bucket}/d") == ["x.json", "y"]
  assert files.listing(f"{bucket}/none") == []


def test_the_bucket_is_what_epath_opens(bucket):
  files.write_atomic(f"{bucket}/z", b"1")
  assert files.path(f"{bucket}/z").read_bytes() == b"1"
  assert not os.path.exists("gs:")


def test_a_large_file_appears_when_it_is_whole(tmp_path):
  name = tmp_path / "new" / "a.bin"
  with files.open_atomic(name) as target:
    target.write(b"one")
    assert not name.exists()
  assert name.read_bytes() == b"one"

  def fail():
    with files.open_atomic(name) as target:
      target.write(b"two")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    fail()
  assert name.read_bytes() == b"one"
  assert os.listdir(name.parent) == ["a.bin"]


@pytest.mark.parametrize("start", [0, 3, 4096, 5000])
def test_a_part_of_a_file_is_an_array(start, tmp_path):
  numbers = np.arange(1200, dtype=np.int32)
  data = b"x" * start + numbers.tobytes()
  (tmp_path / "a").write_bytes(data)
  name = tmp_path / "a"
  found = files.map_array(name, start, numbers.dtype, (30, 40))
  np.testing.assert_array_equal(found, numbers.reshape(30, 40))
  assert not found.flags.writeable
  last = files.map_array(name, start + 4 * 1199, numbers.dtype, ())
  assert last == 1199
  assert files.map_array(name, 10**6, numbers.dtype, (0, 2)).shape == (0, 2)
  for begin in (start + 4, 10**6):
    with pytest.raises(ValueError, match="is cut off; download it again"):
      files.map_array(name, begin, numbers.dtype, (1200,))


def test_a_bucket_has_large_files_and_parts_of_them_too(bucket):
  name = f"{bucket}/new/a.bin"
  with files.open_atomic(name) as target:
    target.write(bytes(range(8)))
  found = files.map_array(name, 2, np.dtype("uint8"), (2, 3))
  np.testing.assert_array_equal(found, [[2, 3, 4], [5, 6, 7]])
  with pytest.raises(ValueError, match="is cut off"):
    files.map_array(name, 2, np.dtype("uint8"), (7,))
