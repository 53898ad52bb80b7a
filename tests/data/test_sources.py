# SPDX-License-Identifier: Apache-2.0
"""Which kind a source is, and sources on the hub and in buckets."""

import pathlib
import shutil
import types

import buckets
import huggingface_hub
import pyarrow as pa
from pyarrow import parquet
import pytest
import toys

from cc_jax.core import config as configs
from cc_jax.core import files
from cc_jax.data import rows, sources, sources_files

COLUMNS = configs.load("configs/base.py").catalogue.columns.to_dict()


def wanted(source, per_shard=2):
  return rows.Wanted(str(source), COLUMNS, per_shard)


def table(path, count):
  made = [
    {"jpg": b"%d" % i, "licenseurl": toys.LICENCE, "photoid": i}
    for i in range(count)
  ]
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pa.Table.from_pylist(made), path, row_group_size=2)


@pytest.mark.parametrize(
  ("names", "format"),
  [
    (["a.jpg"], "folder"),
    (["metadata.jsonl", "a.parquet"], "folder"),
    (["0.tar", "0.parquet", "0_stats.json"], "webdataset"),
    (["a.parquet"], "parquet"),
    (["3/aspect_ratio_bucket=1-1/a.parquet"], "parquet"),
    (["3/v1.5/a.tar"], "webdataset"),
    (["dataset_info.json", "features.json"], "tfds"),
  ],
)
def test_a_source_is_known_by_its_files(tmp_path, names, format):
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b".")
  assert sources.detect(str(tmp_path)) == format


def test_a_file_is_known_by_its_suffix(tmp_path):
  (tmp_path / "a.parquet").write_bytes(b".")
  assert sources.detect(f"{tmp_path}/a.parquet") == "parquet"
  assert sources.detect("nowhere") == sources.detect("") == "folder"


def test_formats_that_are_not_there_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"unknown catalogue\.format 'parkett'"):
    sources.pieces(wanted(tmp_path), "parkett")
  for format in ("parquet", "webdataset"):
    with pytest.raises(ValueError, match=f"{tmp_path} has no"):
      sources.pieces(wanted(tmp_path), format)


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A hub with one data set; the list of what was downloaded from it."""
  folder, downloads = tmp_path / "hub", []
  table(folder / "0/part-0.parquet", 5)
  table(folder / "1/part-0.parquet", 1)
  (folder / "README.md").write_text("-")

  class Api:
    def dataset_info(self, repo, revision):
      if repo != "common/cc-by":
        raise OSError(f"404: no {repo}\nand more")
      return types.SimpleNamespace(sha=f"commit-of-{revision}")

    def list_repo_tree(self, repo, inside, *, recursive, revision, repo_type):
      assert (recursive, repo_type) == (True, "dataset")
      assert revision.startswith("commit-of-")
      for path in sorted((folder / (inside or "")).rglob("*")):
        name = str(path.relative_to(folder))
        size = path.stat().st_size if path.is_file() else None
        entry = types.SimpleNamespace(path=name)
        if size is not None:
          entry.size = size
        yield entry

  def download(repo, name, *, repo_type, revision, local_dir):
    assert (repo, repo_type) == ("common/cc-by", "dataset")
    target = pathlib.Path(local_dir) / name
    target.parent.mkdir(parents=True)
    shutil.copy(folder / name, target)
    downloads.append(target)
    return str(target)

  monkeypatch.setattr(huggingface_hub, "HfApi", Api)
  monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
  return downloads


def test_files_of_the_hub_are_there_one_at_a_time(hub):
  asked = wanted("hf://datasets/common/cc-by")
  pieces = sources.pieces(asked, "")
  assert not hub
  assert [(p.index, p.count, p.length) for p in pieces] == [
    (0, 2, None),
    (1, 2, None),
  ]
  found = []
  for row in pieces[0].read():
    assert hub[-1].exists()
    found.append(row)
  assert [row.where for row in found] == [
    f"0/part-0.parquet:{i + 1}" for i in range(5)
  ]
  assert [row.image for row in found] == [b"0", b"1", b"2", b"3", b"4"]
  assert len(hub) == 1
  assert not hub[0].exists()
  assert len(list(pieces[1].read())) == 1


def test_a_commit_and_a_folder_of_the_hub_can_be_named(hub):
  asked = wanted("hf://datasets/common/cc-by@v2/1")
  (piece,) = sources.pieces(asked, "parquet")
  assert [row.where for row in piece.read()] == ["1/part-0.parquet:1"]
  inputs = sources.inputs(asked, "")
  assert inputs["revision"] == "commit-of-v2"
  assert inputs["source"] == "hf://datasets/common/cc-by@v2/1"
  other = sources.inputs(wanted("hf://datasets/common/cc-by@v2"), "")
  assert other["files"] != inputs["files"]


def test_what_the_hub_does_not_give_is_one_line(hub, monkeypatch):
  with pytest.raises(ValueError, match=r"cannot list .*: 404: no a/b$"):
    sources.pieces(wanted("hf://datasets/a/b"), "parquet")
  with pytest.raises(ValueError, match="expected hf://datasets/OWNER/NAME"):
    sources.pieces(wanted("hf://models"), "parquet")
  with pytest.raises(ValueError, match="neither Parquet files nor tars"):
    sources.pieces(wanted("hf://datasets/common/cc-by"), "folder")
  (piece, _) = sources.pieces(wanted("hf://datasets/common/cc-by"), "")

  def fail(*args, **kwargs):
    raise OSError("connection lost")

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
  with pytest.raises(ValueError, match=r"connection lost; run the same"):
    list(piece.read())


def test_a_source_in_a_bucket_is_read_there(tmp_path, monkeypatch):
  table(tmp_path / "a.parquet", 5)
  bucket = buckets.make(monkeypatch)
  data = (tmp_path / "a.parquet").read_bytes()
  files.write_atomic(f"{bucket}/in/a.parquet", data)
  assert sources.detect(bucket) == "parquet"
  made = sources.pieces(wanted(bucket), "")
  found = [row for piece in made for row in piece.read()]
  assert [row.photo_id for row in found] == list("01234")
  local = sources_files.find(str(tmp_path), ".parquet")
  remote = sources_files.find(bucket, ".parquet")
  assert remote.sizes == local.sizes
