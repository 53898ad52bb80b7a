# SPDX-License-Identifier: Apache-2.0
"""Records that are taken out of finished folders, and kills while they are."""

import json
import os
import shutil

from pyarrow import parquet
import pytest
import toy_catalogue
import toy_pass
import toys

from cc_jax.data import aligned, ledger, opt_out, passes, removal, shards

# Author 2, a page, a photograph and a key that is nowhere.
LIST = "Author 2\nhttp://www.e.org/4/\n107\n" + "f" * 64 + "\n"
OUT = {2, 6, 10, 14, 18, 4, 7}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A folder with catalogue, captions, latents and a list."""
  place = tmp_path_factory.mktemp("removal")
  toy_catalogue.fill(place / "catalogue")
  toy_catalogue.fill_beside(place)
  (place / "list.txt").write_text(LIST)
  return place


@pytest.fixture
def place(made):
  """The same under the same name, to be changed; put back afterwards."""
  saved = made.with_name(f"{made.name}-saved")
  shutil.copytree(made, saved)
  yield made
  shutil.rmtree(made)
  saved.rename(made)


def folders(place):
  return [str(place / name) for name in ("catalogue", "captions", "latents")]


def remove(place, names=None):
  listed = opt_out.read(str(place / "list.txt"))
  return removal.remove(names or folders(place), listed)


def keys(folder):
  dataset = shards.open(folder)
  return [
    int(x["key"], 16)
    for split, lengths in dataset.splits.items()
    for shard in range(len(lengths))
    for x in shards.read(dataset, split, shard, ["key"])
  ]


def test_what_the_list_names_is_gone_from_every_folder(place):
  before = {name: keys(name) for name in folders(place)}
  counts = remove(place)
  assert counts.removed == dict.fromkeys(folders(place), len(OUT))
  for name in folders(place):
    assert keys(name) == [key for key in before[name] if key not in OUT]
  datasets = [shards.open(name) for name in folders(place)]
  source = aligned.source(datasets, "train")
  for index in range(len(source)):
    record = source[index]
    assert record["caption_x"] == record["title"] + "!"
    assert record["latent"][0] == record["width"]


def test_counts_and_shards_are_those_of_a_gate_that_knew(place, tmp_path):
  remove(place)
  toy_catalogue.fill(tmp_path / "catalogue", out=OUT)
  expected = toy_pass.contents(tmp_path / "catalogue")
  got = toy_pass.contents(place / "catalogue")
  assert got.keys() == expected.keys()
  for name in expected:
    same = "array_record" in name or name.endswith(".parquet")
    if same or name == "dataset_info.json":
      assert got[name] == expected[name], name
  counts = shards.open(place / "catalogue").provenance["counts"]
  assert counts == json.loads(expected["provenance.json"])["counts"]
  assert counts["kept"] + sum(counts["rejected"].values()) == counts["read"]
  assert counts["rejected"]["opted_out"] == len(OUT)
  assert sum(counts["licences"].values()) == counts["kept"]
  lines = got["rejects.jsonl"].decode().splitlines()
  places = [
    (r["split"], r["shard"], r["record"], r["where"], r["reason"])
    for r in map(json.loads, lines)
  ]
  assert places == [
    (r["split"], r["shard"], r["record"], r["where"], r["reason"])
    for r in map(json.loads, expected["rejects.jsonl"].decode().splitlines())
  ]
  for name in folders(place)[1:]:
    counts = shards.open(name).provenance["counts"]
    assert counts["kept"] + counts["rejected"]["opted_out"] == counts["read"]
  captions = shards.open(place / "captions")
  flags = [
    flag
    for split, lengths in captions.splits.items()
    for shard in range(len(lengths))
    for record in shards.read(captions, split, shard)
    for flag in record["flags_x"]
  ]
  counts = captions.provenance["counts"]
  expected = {name: flags.count(name) for name in ("any", "even")}
  assert counts["flags"] == expected
  assert counts["flags"]["any"] == counts["kept"] > counts["flags"]["even"]


def test_only_shards_that_lose_something_are_written_again(place):
  (place / "list.txt").write_text("101\n")
  before = {path: path.stat().st_ino for path in place.rglob("*array_record*")}
  counts = remove(place)
  assert counts.shards == 3
  assert str(counts).endswith("wrote 3 shards again")
  changed = {
    str(path.relative_to(place))
    for path, inode in before.items()
    if path.stat().st_ino != inode
  }
  name = "toy-train.array_record-00000-of-00004"
  assert changed == {
    f"{f}/{name}" for f in ("catalogue", "captions", "latents")
  }


def test_a_second_removal_finds_nothing(place):
  remove(place)
  before = toy_pass.contents(place)
  counts = remove(place)
  assert (counts.removed, counts.shards) == ({}, 0)
  assert "removed nothing" in str(counts)
  assert toy_pass.contents(place) == before


def test_passes_that_made_the_folders_find_them_finished(place):
  remove(place)
  before = toy_pass.contents(place)
  toy_catalogue.fill(place / "catalogue")
  toy_catalogue.fill_beside(place)
  assert toy_pass.contents(place) == before


class Killed(BaseException):
  """What no code expects."""


def test_killed_anywhere_it_is_finished_with_the_same_bytes(place, monkeypatch):
  start = place.with_name("start")
  shutil.copytree(place, start)
  remove(place)
  straight = toy_pass.contents(place)
  number, died, refused = 0, True, 0
  while died:
    died = False
    for after in (False, True):
      shutil.rmtree(place)
      shutil.copytree(start, place)
      with monkeypatch.context() as patch:
        kill(patch, number, after)
        try:
          remove(place)
        except Killed:
          died = True
      refused += not whole(place)
      remove(place)
      assert toy_pass.contents(place) == straight, (number, after)
    number += 1
  # Journals, notes, parts and shards, new settings, what is beside the shards.
  assert number > 40
  assert refused > 40
  shutil.rmtree(start)


def kill(patch, number, after):
  """Ends the process, so to say, at one of the changes that it makes."""
  calls = []
  for name in ("replace", "unlink"):
    true = getattr(os, name)

    def one(*args, true=true, **kwargs):
      calls.append(args)
      if len(calls) == number + 1 and not after:
        raise Killed
      result = true(*args, **kwargs)
      if len(calls) == number + 1 and after:
        raise Killed
      return result

    patch.setattr(os, name, one)


def whole(place):
  """Whether the folders open, and then they must be aligned."""
  if (place / "catalogue/removal.json").exists():
    for opened in (shards.open, lambda name: ledger.begin(name, {})):
      with pytest.raises(
        ValueError, match="run the same `cc-jax remove` again"
      ):
        opened(folders(place)[0])
    return False
  datasets = [shards.open(name) for name in folders(place)]
  for split in datasets[0].splits:
    source = aligned.source(datasets, split)
    for index in range(len(source)):
      assert source[index]["caption_x"] == source[index]["title"] + "!"
  return True


def test_a_forgotten_side_folder_is_noticed_and_named_later(place):
  catalogue, captions, latents = folders(place)
  remove(place, [catalogue, captions])
  with pytest.raises(ValueError, match="is not aligned"):
    passes.pieces([shards.open(catalogue), shards.open(latents)])
  counts = remove(place)
  assert counts.removed == {catalogue: 0, captions: 0, latents: len(OUT)}
  both = [shards.open(catalogue), shards.open(latents)]
  assert len(aligned.source(both, "train")) == 10
  counts = both[1].provenance["counts"]
  assert counts["kept"] + counts["rejected"]["opted_out"] == counts["read"]
  assert sum(counts["licences"].values()) == counts["kept"]


def test_attribution_names_who_is_left(place):
  remove(place)
  file = parquet.ParquetFile(place / "catalogue/ATTRIBUTION.parquet")
  left = file.read().to_pylist()
  assert [int(row["key"], 16) for row in left] == keys(place / "catalogue")
  assert not {row["author"] for row in left} & {"Author 2"}
  # A row group for each shard that has records.
  lengths = shards.open(place / "catalogue").splits
  sizes = [n for of_split in lengths.values() for n in of_split if n]
  groups = range(file.metadata.num_row_groups)
  assert [file.metadata.row_group(i).num_rows for i in groups] == sizes


def test_folders_that_do_not_fit_are_refused(place, tmp_path):
  (tmp_path / "captions").mkdir()
  toy_pass.run(tmp_path / "other")
  listed = opt_out.read(str(place / "list.txt"))
  for names, words in (
    ([], "remove.folders is empty"),
    ([tmp_path / "captions"], "does not exist or is empty"),
    ([place / "catalogue", tmp_path / "other"], "has the shards"),
  ):
    with pytest.raises(ValueError, match=words):
      removal.remove([str(name) for name in names], listed)
  shutil.rmtree(place / "catalogue/.pass")
  with pytest.raises(ValueError, match="no stage of cc-jax wrote it"):
    remove(place)


def test_the_stage_says_what_it_did(place, tmp_path, capsys):
  names = ",".join(repr(name) for name in folders(place))
  flags = [
    f"--config.remove.folders=({names})",
    f"--config.remove.opt_out={place}/list.txt",
  ]
  assert toys.run("remove", tmp_path, tmp_path / "w", *flags) == 0
  assert f"removed {len(OUT)} from {place}/catalogue" in capsys.readouterr().out
  status = toys.run("remove", tmp_path, tmp_path / "w", flags[0])
  toys.check_refused(capsys, status, "remove.opt_out is empty")
