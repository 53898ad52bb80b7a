# SPDX-License-Identifier: Apache-2.0
import hashlib

import pyarrow as pa
from pyarrow import parquet
import pytest

from cc_jax.data import caption_join


def write(path, **columns):
  parquet.write_table(pa.table(columns), path, row_group_size=3)
  return str(path)


def test_captions_are_found_by_id_in_any_order(tmp_path):
  for part in range(3):
    numbers = list(range(part, 30, 3))[::-1]
    write(
      tmp_path / f"{part}.parquet",
      photoid=numbers,
      other=["x"] * 10,
      caption=[f"  picture {n}\nünï\0 " for n in numbers],
    )
  found = caption_join.read(str(tmp_path), "photoid", "caption")
  assert len(found) == 30
  ids = [str(n) for n in (7, 29, 0, 30, 7)]
  expected = [f"picture {n}\nünï\0" for n in (7, 29, 0, 30, 7)]
  assert found.find(ids) == [*expected[:3], "", expected[4]]
  assert found.find([]) == []
  # Sixteen bytes a caption are held, whatever it is.
  assert found.hashes.nbytes + found.places.nbytes == 16 * 30


def test_of_several_captions_of_an_id_the_first_is_taken(tmp_path):
  path = write(
    tmp_path / "a.parquet",
    id=["a", "b", "a", None, "c", "d"],
    text=["first", "of b", "second", "of none", None, "  "],
  )
  found = caption_join.read(path, "id", "text")
  assert found.find(["a", "b", "c", "d", "None", ""]) == [
    "first",
    "of b",
    *[""] * 4,
  ]


def test_ids_with_one_hash_are_told_apart(tmp_path, monkeypatch):
  monkeypatch.setattr(caption_join, "_hash", lambda id: len(id))
  path = write(
    tmp_path / "a.parquet", id=["ab", "cd\n\0", "ef"], text=["1", "2", "3"]
  )
  found = caption_join.read(path, "id", "text")
  assert found.find(["ef", "ab", "gh", "cd\n\0"]) == ["3", "1", "", "2"]


def test_the_digest_is_of_what_is_joined(tmp_path):
  one = caption_join.read(
    write(tmp_path / "a.parquet", id=[1, 2], text=["a", "b"]), "id", "text"
  )
  same = caption_join.read(
    write(tmp_path / "b.parquet", id=["1", "2"], text=["a", "b "], x=[1, 2]),
    "id",
    "text",
  )
  other = caption_join.read(
    write(tmp_path / "c.parquet", id=[1, 2], text=["a", "c"]), "id", "text"
  )
  assert one.digest == same.digest != other.digest
  assert len(one.digest) == len("sha256:" + hashlib.sha256().hexdigest())


def test_what_cannot_be_joined_is_an_error(tmp_path):
  path = write(tmp_path / "a.parquet", id=[1], text=["a"])
  with pytest.raises(ValueError, match=r"no column 'photoid'; it has id, text"):
    caption_join.read(path, "photoid", "text")
  with pytest.raises(
    ValueError, match=r"no file .*caption\.join\.file names Parq"
  ):
    caption_join.read(str(tmp_path / "b"), "id", "text")
  with pytest.raises(ValueError, match=r"caption\.join\.file is empty"):
    caption_join.read("", "id", "text")
  (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(90))
  with pytest.raises(ValueError, match=r"a\.parquet of "):
    caption_join.read(path, "id", "text")
