# SPDX-License-Identifier: Apache-2.0
"""Copies are left out of a catalogue, by the command that a user types."""

import io
import json
import os
import pathlib
import signal
import time

import numpy as np
from PIL import Image
import pytest
import tiny
import toys

from cc_jax.core import files
from cc_jax.data import shards

BY_SA = "https://creativecommons.org/licenses/by-sa/4.0/"
CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"


def saved(picture, kind="PNG", **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """Five pictures, three of them with copies, catalogued in six shards."""
  place = tmp_path_factory.mktemp("deduplicate")
  rng = np.random.default_rng(0)
  made = [
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
      (384, 288)
    )
    for _ in range(5)
  ]
  flip = made[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  held = {
    "a.png": (saved(made[0]), BY_SA),
    "a.jpg": (saved(made[0], "JPEG"), CC0),
    "b.png": (saved(made[1].resize((192, 144))), toys.LICENCE),
    "b_large.png": (saved(made[1]), toys.LICENCE),
    "c.png": (saved(made[2]), toys.LICENCE),
    "c_flip.png": (saved(flip), BY_SA),
    "c_again.png": (saved(made[2]), BY_SA),
    "d.png": (saved(made[3]), BY_SA),
    "e.png": (saved(made[4]), toys.LICENCE),
  }
  rows = [
    toys.row(
      name,
      licenseurl=licence,
      split="validation" if name == "c_flip.png" else "train",
    )
    for name, (_, licence) in held.items()
  ]
  toys.write_source(
    place / "source", rows, {name: data for name, (data, _) in held.items()}
  )
  source = f"--config.catalogue.source={place}/source"
  words = [source, "--config.catalogue.folder={workdir}/catalogue"]
  words += ["--config.catalogue.records_per_shard=2"]
  assert toys.run("catalogue", place, place, *words) == 0
  return place


def run(work, folder, *words):
  images = f"--config.deduplicate.images={work}/catalogue"
  return toys.run("deduplicate", work, folder, images, *words)


@pytest.fixture(scope="module")
def straight(work, tmp_path_factory):
  folder = tmp_path_factory.mktemp("straight")
  assert run(work, folder) == 0
  return folder


def made(folder):
  """The hashes of all that a run wrote but its config, which has its path."""
  found = {}
  for name, data in toys.contents(folder).items():
    if "shard" in name or "array_record" in name or name.endswith("jsonl"):
      found[name] = data
  return found


def names(folder):
  dataset = shards.open(folder)
  return {
    record["source"].split()[-1]
    for split, lengths in dataset.splits.items()
    for shard in range(len(lengths))
    for record in shards.read(dataset, split, shard, ("source",))
  }


def test_the_freest_and_then_the_largest_copy_is_kept(straight):
  kept = names(straight / "deduplicated")
  assert kept == {"a.jpg", "b_large.png", "c.png", "d.png", "e.png"}
  counts = shards.open(straight / "deduplicated").provenance["counts"]
  assert counts["read"] == 9
  assert counts["kept"] == 5
  assert counts["rejected"] == {"duplicate": 4}
  assert sum(counts["licences"].values()) == 5


def test_a_reject_names_what_was_kept_and_how_near_it_is(work, straight):
  text = (straight / "deduplicated/rejects.jsonl").read_text()
  rejects = [json.loads(line) for line in text.splitlines()]
  assert len(rejects) == 4
  whole = shards.open(work / "catalogue")
  keys = {}
  for split, lengths in whole.splits.items():
    for shard in range(len(lengths)):
      for record in shards.read(whole, split, shard):
        keys[record["source"].split()[-1]] = record["key"]
  details = {(line["where"], line["split"]): line["detail"] for line in rejects}
  again = f"a copy of {keys['c.png']}: the same bytes"
  assert details[keys["c_again.png"], "train"] == again
  flip = details[keys["c_flip.png"], "validation"]
  assert flip == f"a copy of {keys['c.png']}: 0 of 256 bits"
  assert details[keys["a.png"], "train"].startswith(
    f"a copy of {keys['a.jpg']}"
  )
  summary = files.read_json(straight / "duplicates.jsonl.summary.json")
  assert summary["read"] == 9
  assert summary["exact"] == 1
  assert sum(summary["near"].values()) == 3


def test_exact_copies_only(work, tmp_path):
  assert run(work, tmp_path, "--config.deduplicate.threshold=-1") == 0
  assert len(names(tmp_path / "deduplicated")) == 8


def test_a_second_run_finds_nothing_to_do(work, straight, capsys):
  before = made(straight)
  assert run(work, straight) == 0
  out = capsys.readouterr().out
  assert "comparing" not in out
  assert "wrote 0 shards" in out
  assert made(straight) == before


def test_another_threshold_is_another_folder(work, straight, tmp_path, capsys):
  folder = toys.copy(straight, tmp_path / "copy")
  status = run(
    work,
    folder,
    "--config.deduplicate.threshold=9",
  )
  toys.check_refused(capsys, status, "config.threshold=36; got 9")


def test_a_folder_that_is_no_catalogue_is_refused(tmp_path, capsys, straight):
  status = run(
    tmp_path,
    tmp_path,
    f"--config.deduplicate.images={straight}/signatures",
  )
  toys.check_refused(capsys, status, "has no feature 'author'", "catalogue")


def test_a_run_stopped_around_any_rename_makes_the_same_bytes(
  work, straight, tmp_path, monkeypatch
):
  replace, whole = os.replace, made(straight)

  def stopping(number, after):
    calls = []

    def one(source, target):
      calls.append(target)
      if after:
        replace(source, target)
      if len(calls) > number:
        raise KeyboardInterrupt
      if not after:
        replace(source, target)

    return one

  number, stopped = 0, True
  while stopped:
    for after in (False, True):
      folder = tmp_path / f"{number}{after}"
      with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping(number, after))
        stopped = run(work, folder) == 130
      assert run(work, folder) == 0
      assert made(folder) == whole
    number += 3
  assert number > 20


def test_a_run_killed_at_random_moments_makes_the_same_bytes(
  work, straight, tmp_path
):
  images = f"--config.deduplicate.images={work}/catalogue"
  moments = np.random.default_rng(0).uniform(0, 0.3, 3)
  for moment in moments:
    process = tiny.start("deduplicate", str(work), str(tmp_path), images)
    # From when it has begun to write.
    begun = pathlib.Path(tmp_path / "signatures")
    while process.poll() is None and not begun.exists():
      time.sleep(0.005)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  assert run(work, tmp_path) == 0
  assert made(tmp_path) == made(straight)
