# SPDX-License-Identifier: Apache-2.0
"""Tars as img2dataset writes them, whole and cut."""

import io
import json
import tarfile

import pytest
import toys

from cc_jax.core import config as configs
from cc_jax.data import rows, shards, sources_webdataset

COLUMNS = configs.load("configs/base.py").catalogue.columns.to_dict()


def sample(number, **fields):
  """The files of a sample, in the order in which img2dataset writes them."""
  told = {"caption": "x", "licenseurl": toys.LICENCE, "photoid": number}
  return {
    f"{number:09d}.jpg": b"image %d" % number,
    f"{number:09d}.txt": f"a hat {number}\n".encode(),
    f"{number:09d}.json": json.dumps(told | fields).encode(),
  }


def write(path, *samples):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for files in samples:
      for name, data in files.items():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  return path


def read(source, **fields):
  wanted = rows.Wanted(str(source), COLUMNS, 10)._replace(**fields)
  made = sources_webdataset.pieces(wanted)
  found = [list(piece.read()) for piece in made]
  assert [list(piece.read()) for piece in made] == found
  return found


def reasons(entries):
  return [getattr(entry, "reason", "kept") for entry in entries]


def test_a_sample_is_a_row_and_its_text_the_title(tmp_path):
  write(tmp_path / "00000.tar", sample(0, title="cap"), sample(1))
  write(tmp_path / "00001.tar", sample(2, nsfw=0.5))
  (tmp_path / "00000.parquet").write_bytes(b"what img2dataset writes beside")
  first, second = read(tmp_path, keep=("nsfw",))
  assert first[1] == rows.Row(
    where="00000.tar/000000001",
    image=b"image 1",
    licence_url=toys.LICENCE,
    title="a hat 1",
    photo_id="1",
    more={"nsfw": None},
  )
  assert first[0].title == "cap"
  assert second[0].more == {"nsfw": 0.5}


def test_samples_in_folders_and_of_other_kinds_of_images(tmp_path):
  write(
    tmp_path / "a.tar",
    {
      "in/a.PNG": b"1",
      "in/a.cls": b"3",
      "out/a.webp": b"2",
      "out/a.b.txt": b"t",
    },
  )
  ((first, second),) = read(tmp_path / "a.tar")
  assert (first.image, first.where) == (b"1", "a.tar/in/a")
  assert (second.image, second.title) == (b"2", "")


def test_samples_that_lack_something_are_rejects(tmp_path):
  write(
    tmp_path / "a.tar",
    {"1.txt": b"no image", "1.json": b"{}"},
    {"2.jpg": b"x", "2.json": b"{half"},
    {"3.jpg": b"x", "3.json": b"[1]"},
    {"4.jpg": b"x", "4.txt": b"\xff\xfe\xfa"},
    {"5.jpg": b"x", "5.json": b'{"title": "\\ud800"}'},
    {"6.jpg": b"x"},
  )
  (found,) = read(tmp_path)
  assert reasons(found) == ["image_missing", *["row_broken"] * 4, "kept"]
  assert [entry.where for entry in found[:2]] == ["a.tar/1", "a.tar/2"]


def test_a_tar_that_is_cut_anywhere_says_so_once(tmp_path):
  path = write(tmp_path / "whole.tar", *(sample(i) for i in range(3)))
  whole = path.read_bytes()
  path.unlink()
  end = 9 * 1024
  for length in range(0, len(whole), 256):
    (tmp_path / "cut.tar").write_bytes(whole[:length])
    (found,) = read(tmp_path)
    if length >= end + 512:
      assert reasons(found) == ["kept"] * 3
      continue
    # A sample of which a file may be missing does not enter.
    kept = max(0, (length - 512) // 3072)
    assert reasons(found) == ["kept"] * min(kept, 2) + ["tar_broken"], length
    assert found[-1].where.startswith("cut.tar")


def test_a_header_that_was_altered_ends_the_tar_with_a_reject(tmp_path):
  path = write(tmp_path / "a.tar", *(sample(i) for i in range(3)))
  data = bytearray(path.read_bytes())
  data[3 * 1024 + 148] ^= 7
  path.write_bytes(data)
  (found,) = read(tmp_path)
  assert reasons(found) == ["tar_broken"]
  path.write_bytes(b"no tar at all" * 100)
  ((reject,),) = read(tmp_path)
  assert (reject.reason, reject.where) == ("tar_broken", "a.tar")


def test_a_name_that_is_not_utf8_can_be_reported(tmp_path):
  write(tmp_path / "a.tar", {"\udcff.txt": b"x"})
  ((reject,),) = read(tmp_path)
  assert reject.where.encode()


def test_no_tars_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"has no \.tar files"):
    read(tmp_path)
  with pytest.raises(ValueError, match="no folder"):
    read(tmp_path / "none")


def test_the_stage_counts_every_sample(tmp_path, capsys):
  pictures = [sample(i) | {f"{i:09d}.jpg": toys.picture(i)} for i in range(5)]
  write(tmp_path / "source/0.tar", *pictures[:3])
  path = write(tmp_path / "source/1.tar", *pictures[3:])
  path.write_bytes(path.read_bytes()[: 3 * 1024 + 700])
  flags = [
    f"--config.catalogue.source={tmp_path}/source",
    f"--config.catalogue.folder={tmp_path}/catalogue",
  ]
  assert toys.run("catalogue", tmp_path, tmp_path / "w", *flags) == 0
  assert "read 5, kept 4, rejected 1 (1 tar_broken)" in capsys.readouterr().out
  dataset = shards.open(tmp_path / "catalogue")
  assert dataset.splits == {"train": (3, 1)}
  before = toys.contents(tmp_path / "catalogue")
  assert toys.run("catalogue", tmp_path, tmp_path / "w", *flags) == 0
  assert toys.contents(tmp_path / "catalogue") == before
