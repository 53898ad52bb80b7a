# SPDX-License-Identifier: Apache-2.0
"""The quickstart's source; and what a finished run of it has left.

CC_JAX_QUICKSTART names the work folder of a run, as CI sets it, and
CC_JAX_QUICKSTART_CLIPGEN and CC_JAX_QUICKSTART_PIXART those of `:clipgen` and
`:pixart`; the tests of a run skip without.
"""

import collections
import json
import os
import pathlib
import sys

import pytest

from cc_jax import quickstart
from cc_jax.core import checkpoint
from cc_jax.core import config as configs
from cc_jax.data import catalogue, images, passes, rows, shards, sources

ROOT = pathlib.Path(__file__).parents[1]
WORKDIR = ROOT / os.environ.get("CC_JAX_QUICKSTART", "none")

finished = pytest.mark.skipif(
  "CC_JAX_QUICKSTART" not in os.environ, reason="CC_JAX_QUICKSTART is not set"
)


def read(name):
  return json.loads((WORKDIR / name).read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("source")
  quickstart.write_source(str(folder))
  return folder


def test_the_source_is_real_and_states_its_licences(source):
  lines = (source / "metadata.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  digits = [row for row in rows if row["file_name"].startswith("digits/")]
  assert len(digits) == 1797
  assert {row["licensename"] for row in digits} == {"CC BY 4.0"}
  assert all(row["author"] and row["pageurl"] for row in digits)
  held = [row for row in digits if row["split"] == "validation"]
  assert len(held) == 179
  assert {row["title"] for row in held} == set(quickstart.WORDS)
  assert len(rows) - len(digits) == len(quickstart.PHOTOGRAPHS)
  picture = images.decode((source / digits[0]["file_name"]).read_bytes())
  assert picture.shape == (8, 8, 3)
  # The first digit is a zero: dark in the middle, bright around it.
  assert digits[0]["title"] == "zero"
  assert picture[3:5, 3:5].mean() < 30 < picture[3:5, 2].mean()


def test_the_gate_refuses_photographs_that_state_no_licence(source):
  options = configs.load("configs/quickstart.py:unet").catalogue
  columns = options.columns.to_dict()
  pieces = sources.pieces(rows.Wanted(str(source), columns, 10_000), "")
  (photographs,) = (p for p in pieces if p.split == "photographs")
  found = collections.Counter()
  for row in photographs.read():
    made = catalogue.examine(row, collection=options.collection)
    refused = isinstance(made, passes.Reject)
    found[made.reason if refused else made["licence"]] += 1
  assert found == {
    "licence_missing": 5,
    "CC-BY-2.0": 2,
    "CC0-1.0": 5,
    "LicenseRef-No-Known-Copyright": 3,
  }


def test_a_second_run_writes_no_second_source(source):
  before = (source / "metadata.jsonl").stat().st_mtime_ns
  quickstart.write_source(str(source))
  assert (source / "metadata.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("package", ["sklearn", "skimage"])
def test_a_package_that_is_missing_is_named(package, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ValueError, match=r"pip install 'cc_jax\[quickstart\]'"):
    quickstart.write_source(str(tmp_path))
  # So that the next run does not take half a source for a whole one.
  assert not (tmp_path / "metadata.jsonl").exists()


@finished
def test_samples_are_recognised():
  metrics = read("metrics.json")
  assert metrics["recognised_of"] == 500
  assert metrics["recognised"] >= 0.95
  assert metrics["recognised_real"] >= 0.98
  assert 0 < metrics["validation_loss"] < 1


@finished
def test_the_samples_are_a_picture():
  pixels = images.decode((WORKDIR / "samples.png").read_bytes())
  assert min(pixels.shape[:2]) > 500
  assert pixels.std() > 20


@finished
def test_provenance_counts_every_image():
  counts = shards.open(WORKDIR / "catalogue").provenance["counts"]
  assert counts["read"] == 1797 + len(quickstart.PHOTOGRAPHS)
  assert counts["rejected"] == {"licence_missing": 5}
  assert counts["kept"] == counts["read"] - 5
  assert counts["licences"]["CC-BY-4.0"] == 1797
  lines = (WORKDIR / "catalogue/rejects.jsonl").read_text().splitlines()
  assert len(lines) == 5
  assert all("photographs/" in json.loads(line)["where"] for line in lines)


@finished
def test_checkpoints_export_and_settings_are_there():
  stages = read("config.json")
  expected = {"catalogue", "caption", "encode", "train"}
  assert expected | {"sample", "evaluate", "export"} <= set(stages)
  steps = stages["train"]["config"]["train"]["steps"]
  assert checkpoint.latest_step(WORKDIR / "checkpoints") == steps
  assert checkpoint.latest_step(WORKDIR / "autoencoder/checkpoints")
  index = read("export/model_index.json")
  for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
    assert (WORKDIR / "export" / name).is_dir()
    assert index[name][0]
  last = (WORKDIR / "metrics.jsonl").read_text().splitlines()[-1]
  assert json.loads(last)["step"] == steps


@pytest.mark.skipif(
  "CC_JAX_QUICKSTART_CLIPGEN" not in os.environ,
  reason="CC_JAX_QUICKSTART_CLIPGEN names no work folder of :clipgen",
)
def test_a_prior_that_saw_no_caption_draws_what_captions_ask_for():
  folder = ROOT / os.environ["CC_JAX_QUICKSTART_CLIPGEN"]
  read = lambda name: json.loads((folder / name).read_text())
  metrics = read("metrics.json")
  assert metrics["recognised_of"] == 500
  assert metrics["recognised"] >= 0.9
  assert metrics["recognised[candidates=8]"] >= 0.9
  assert 0 < metrics["modality_gap"] < 2
  assert read("vqgan/metrics.json")["used"] > 0.5
  assert read("clip/metrics.json")["zero_shot"] > 0.8
  names = {field.name for field in shards.open(folder / "latents").fields}
  assert names == {"key", "codes", "clip_image"}
  for name in ("prior", "clip", "vqgan"):
    assert (folder / "export" / name / "config.json").exists()


@pytest.mark.skipif(
  "CC_JAX_QUICKSTART_PIXART" not in os.environ,
  reason="CC_JAX_QUICKSTART_PIXART names no work folder of :pixart",
)
def test_the_three_stages_of_pixart_draw_what_captions_ask_for():
  folder = ROOT / os.environ["CC_JAX_QUICKSTART_PIXART"]
  read = lambda name: json.loads((folder / name).read_text())
  metrics = read("metrics.json")
  assert metrics["recognised_of"] == 500
  assert metrics["recognised"] >= 0.95
  assert read("pixel/metrics.json")["recognised"] >= 0.95
  assert read("export/transformer/config.json")["caption_channels"]
  # The paper's ablation: what the first stage is worth to the second.
  curve = read("curve.json")
  stage, scratch = (
    dict(curve[name])
    for name in ("from the pixel stage", "from random weights")
  )
  assert stage.keys() == scratch.keys() == set(range(50, 501, 50))
  assert sum(stage.values()) > sum(scratch.values()) + 1
  assert "from random weights" in (folder / "curve.svg").read_text()
