# SPDX-License-Identifier: Apache-2.0
"""The gate, row by row, and a whole folder through `cc-jax catalogue`."""

import collections
import hashlib
import io
import json
import pathlib

import pictures
from PIL import Image
import pytest
import toy_pass
import toys

from cc_jax.data import aligned, catalogue, rows, shards

SCENE = pictures.saved(pictures.scene(), "JPEG")
BY_NC = "https://creativecommons.org/licenses/by-nc/2.0/"


def examine(image=SCENE, collection="commercial", options=None, **fields):
  row = rows.Row("line 1", image, **({"licence_url": toys.LICENCE} | fields))
  return catalogue.examine(row, collection=collection, **(options or {}))


def test_what_enters_keeps_its_bytes_and_its_attribution():
  found = examine(
    author="Ann", title="Hütchen", tags=("red",), page_url="https://e.org/1"
  )
  assert found == {
    "key": hashlib.sha256(SCENE).hexdigest(),
    "image": SCENE,
    "width": 64,
    "height": 48,
    "licence": "CC-BY-4.0",
    "licence_url": toys.LICENCE,
    "author": "Ann",
    "title": "Hütchen",
    "tags": ["red"],
    "page_url": "https://e.org/1",
    "photo_id": "",
    "source": "line 1",
  }
  assert found.keys() == catalogue.FEATURES.keys()


@pytest.mark.parametrize(
  ("stated", "reason"),
  [
    ({"licence_url": ""}, "licence_missing"),
    ({"licence_url": "", "licence_name": "CC BY"}, "licence_unknown"),
    ({"licence_name": "CC0 1.0 Universal"}, "licence_conflict"),
    ({"licence_url": BY_NC}, "licence_non_commercial"),
    ({"licence_url": BY_NC.replace("nc", "nd")}, "licence_no_derivatives"),
  ],
)
def test_the_gate_refuses_by_the_rows_own_licence(stated, reason):
  refused = examine(**stated)
  assert (refused.reason, refused.where) == (reason, "line 1")


def test_a_default_licence_is_for_rows_that_state_none():
  default = {"licence": "CC0-1.0"}
  assert examine(licence_url="", options=default)["licence"] == "CC0-1.0"
  assert examine(options=default)["licence"] == "CC-BY-4.0"
  assert examine(licence_url="mine", options=default).reason == (
    "licence_unknown"
  )
  assert examine(licence_url=BY_NC, options=default).reason == (
    "licence_non_commercial"
  )


def test_a_non_commercial_collection_holds_both():
  found = examine(licence_url=BY_NC, collection="non-commercial")
  assert found["licence"] == "CC-BY-NC-2.0"
  assert examine(collection="non-commercial")["licence"] == "CC-BY-4.0"


def test_stated_hashes_are_compared():
  right = hashlib.sha256(SCENE).hexdigest()
  assert examine(sha256=right.upper())["key"] == right
  assert examine(sha256=right[:-1]).reason == "hash_mismatch"


def test_sizes_are_of_the_upright_picture_and_bounded():
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = pictures.saved(pictures.scene(), "JPEG", exif=exif)
  found = examine(turned)
  assert (found["width"], found["height"]) == (48, 64)
  assert examine(options={"min_side": 48})["height"] == 48
  small = examine(options={"min_side": 49})
  assert (small.reason, small.detail) == ("too_small", "48 x 64")
  assert examine(options={"max_pixels": 99}).reason == "image_too_large"


def animation():
  frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
  file = io.BytesIO()
  frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
  return file.getvalue()


HARD = {
  "truncated.jpg": (SCENE[: len(SCENE) // 2], "image_truncated"),
  "text.jpg": (b"<html>404</html>", "image_format"),
  "empty.png": (b"", "image_empty"),
  "animated.gif": (animation(), "image_animated"),
  "bomb.png": (
    pictures.png(50_000, 50_000, rows=bytes(150_001)),
    "image_too_large",
  ),
  "header.png": (pictures.saved(pictures.scene(), "PNG")[:20], None),
  "wrong_suffix.png": (SCENE, "kept"),
  "cmyk.jpg": (
    pictures.saved(Image.new("CMYK", (64, 48), "red"), "JPEG"),
    "kept",
  ),
  "palette.png": (
    pictures.saved(Image.new("P", (64, 48), 3), "PNG"),
    "kept",
  ),
  "wide.png": (
    pictures.png(8, 48, 16, 0, rows=bytes(17) * 48),
    "kept",
  ),
  "tiny.png": (toys.picture(0, side=4), "too_small"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A source with everything that can be wrong, through the stage."""
  place = tmp_path_factory.mktemp("catalogue")
  lines = [toys.row(name) for name in HARD]
  lines += [
    toys.row("good.jpg", sha256=hashlib.sha256(SCENE).hexdigest()),
    toys.row("good.jpg"),
    toys.row("hash.jpg", sha256="0" * 64),
    b"{broken\n",
    b"\xff\xff\n",
    b"\n",
    toys.row("missing.jpg"),
    toys.row("../outside.jpg"),
    toys.row("mine.jpg", licenseurl="all rights reserved"),
    toys.row("held.jpg", split="validation", usertags="a,b", title="Ünï"),
  ]
  files = {name: data for name, (data, _) in HARD.items()}
  files |= {
    f"{name}.jpg": SCENE for name in ("good", "hash", "mine", "held", "extra")
  }
  toys.write_source(place / "source", lines, files)
  assert run(place) == 0
  return place


def run(place, *words):
  source = f"--config.catalogue.source={place}/source"
  target = f"--config.catalogue.folder={place}/catalogue"
  shard = "--config.catalogue.records_per_shard=5"
  return toys.run("catalogue", place, place, source, target, shard, *words)


def rejects(place):
  text = (place / "catalogue/rejects.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_every_row_is_kept_or_a_reject_with_its_reason(folder):
  dataset = shards.open(folder / "catalogue")
  counts = dataset.provenance["counts"]
  expected = collections.Counter(
    reason for _, reason in HARD.values() if reason not in ("kept", None)
  )
  broken = next(
    line["reason"] for line in rejects(folder) if "header.png" in line["where"]
  )
  assert broken in ("image_truncated", "image_corrupt")
  expected.update(
    {
      broken: 1,
      "duplicate": 1,
      "hash_mismatch": 1,
      "line_broken": 3,
      "file_missing": 1,
      "licence_unknown": 1,
      "not_listed": 1,
    }
  )
  assert counts["rejected"] == dict(sorted(expected.items()))
  # Each line that is not blank, and the image that no line names.
  assert counts["read"] == len(HARD) + 10
  assert counts["kept"] == len(dataset) == counts["licences"]["CC-BY-4.0"] == 6
  assert counts["kept"] + sum(expected.values()) == counts["read"]
  listed = collections.Counter(line["reason"] for line in rejects(folder))
  assert listed == expected
  assert all(line["where"] and line["split"] for line in rejects(folder))


def test_attribution_is_in_the_dataset(folder):
  dataset = shards.open(folder / "catalogue")
  (held,) = (row for row in aligned.source([dataset], "validation").read([0]))
  assert held["image"] == SCENE
  assert {name: held[name] for name in ("author", "title", "licence")} == {
    "author": "Ann",
    "title": "Ünï",
    "licence": "CC-BY-4.0",
  }
  assert list(held["tags"]) == ["a", "b"]
  assert held["source"].endswith(" held.jpg")


def test_a_second_run_skips_what_is_done(folder, capsys):
  before = toys.contents(folder / "catalogue")
  assert run(folder) == 0
  assert "wrote 0 shards" in capsys.readouterr().out
  assert toys.contents(folder / "catalogue") == before


def pause(place, monkeypatch, shard_count=1):
  """Runs the stage until it has written so many shards, then stops it."""
  with toy_pass.stopped(monkeypatch, shard_count):
    assert run(place) == 130


def test_a_changed_list_or_folder_is_not_gone_on_with(
  folder, tmp_path, monkeypatch, capsys
):
  toys.copy(folder / "source", tmp_path / "source")
  pause(tmp_path, monkeypatch)
  before = toys.contents(tmp_path / "catalogue")
  metadata = tmp_path / "source/metadata.jsonl"
  original = metadata.read_bytes()

  def refused(words):
    capsys.readouterr()
    assert run(tmp_path) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert toys.contents(tmp_path / "catalogue") == before

  metadata.write_bytes(original.replace(b'"hat"', b'"cap"', 1))
  refused("was begun with inputs")
  metadata.write_bytes(original)
  (tmp_path / "source/more.jpg").write_bytes(SCENE)
  refused("was begun with")
  pathlib.Path(tmp_path / "source/more.jpg").unlink()
  assert run(tmp_path, "--config.catalogue.columns.title=name") == 2
  assert "columns.title='title'" in capsys.readouterr().err
  # As it was, it is finished, with the bytes of a run that was not stopped.
  assert run(tmp_path) == 0
  whole = toys.contents(folder / "catalogue")
  ours = toys.contents(tmp_path / "catalogue")
  shard = lambda name: "array_record" in name or name == "rejects.jsonl"
  assert {n: h for n, h in ours.items() if shard(n)} == {
    n: h for n, h in whole.items() if shard(n)
  }


def test_a_folder_without_a_list_enters_with_a_default_licence(
  tmp_path, capsys
):
  (tmp_path / "source").mkdir()
  for name in ("a.jpg", "b.jpeg"):
    (tmp_path / "source" / name).write_bytes(SCENE)
  assert run(tmp_path, "--config.catalogue.licence=CC-BY-SA-4.0") == 0
  dataset = shards.open(tmp_path / "catalogue")
  assert dataset.provenance["counts"]["licences"] == {"CC-BY-SA-4.0": 2}
  record = aligned.source([dataset], "train")[0]
  assert (record["author"], record["source"]) == ("", "a.jpg")
  assert "kept 2, rejected 0" in capsys.readouterr().out


def test_a_folder_of_which_nothing_enters_says_why(tmp_path, capsys):
  (tmp_path / "source").mkdir()
  (tmp_path / "source/a.jpg").write_bytes(SCENE)
  assert run(tmp_path) == 0
  assert "kept 0, rejected 1 (1 licence_missing)" in capsys.readouterr().out
  assert [line["where"] for line in rejects(tmp_path)] == ["a.jpg"]
  with pytest.raises(ValueError, match=r"no records; its rejects\.jsonl says"):
    shards.open(tmp_path / "catalogue")
