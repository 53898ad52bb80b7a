# SPDX-License-Identifier: Apache-2.0
"""The page of a run: what its files say is in it, and nothing private."""

import json
import re

import browser
import numpy as np
import pytest
import tiny
import toys

from cc_jax.core import files
from cc_jax.data import generated, grids
from cc_jax.pipelines import memorisation, run_report


def number(value, reach=1.0):
  return {"value": value, "low": value - reach, "high": value + reach}


EVALUATION = {
  "model": "step 40 of somewhere",
  "prompts": {"name": "coco30k", "hash": "ab" * 32, "of": 30000},
  "real": "coco30k",
  "recipe": {"seed": 42},
} | {
  f"guidance_{g}": {
    "images": 29999,
    "not_finite": 1,
    "fid": number(20.0 - g, 0.3),
    "kid": {"value": None, "why": "KID of nothing"},
    "clip_score_clip-vit-b16": number(20.0 + g, 0.1),
    "memorisation": {
      "copies": 1,
      "copies_of": 29999,
      "training_images": 40,
    },
  }
  for g in (1, 3)
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """A work folder as a training, an evaluation and samples leave it."""
  data = tiny.shared(tmp_path_factory)
  place = tmp_path_factory.mktemp("run")
  config = tiny.config(data, place)
  noted = {
    "train": {
      "command": f"cc-jax train --config=c.py --workdir={place}",
      "devices": {"kind": "TPU v4", "count": 8, "hosts": 2},
      "config": config.to_dict(),
      "revision": "abc123",
    },
    "evaluate": {
      "command": "cc-jax evaluate --config=/mine/c.py:x --workdir=w "
      "--config.evaluate.files=\"('/a/b', 'gs://bucket/x')\"",
      "config": {},
    },
  }
  files.write_json(place / "config.json", noted)
  lines = [
    {
      "step": step,
      # A night of rest between steps 20 and 21.
      "time": 1000.0 + 90 * step + 30_000 * (step > 20),
      "loss": 1 / step,
      "grad_norm": None if step == 3 else 2.0,
      "images_per_second": 64.0,
    }
    for step in range(1, 41)
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (place / "metrics.jsonl").write_text(text + '{"step": 41, "lo')
  picture = grids.encode_png(np.full((40, 60, 3), 90, np.uint8))
  for step in range(5, 41, 5):
    files.write_atomic(place / "previews" / f"{step:07d}.png", picture)
  files.write_json(
    place / "metrics.json",
    {
      "validation_loss": 0.1234567,
      "validation_mse_at": {"100": 0.5, "900": 0.25},
      "evaluation": EVALUATION,
    },
  )
  inside = place / "evaluation" / "guidance-3"
  files.write_atomic(inside / memorisation.PICTURE, picture)
  row = {
    "image": generated.name(7),
    "author": "Ann <b>",
    "licence": "CC-BY-4.0",
    "page_url": "https://example.org/7",
    "key": "0" * 64,
  }
  files.write_json(inside / memorisation.LIST, {"nearest": [row]})
  status = toys.run(
    "report",
    data,
    place,
    "--config.report.kind=run",
    "--config.report.watts=200",
  )
  assert status == 0
  return place


@pytest.fixture(scope="module")
def text(work):
  return (work / "report.html").read_text()


def plain(text):
  """What a person reads."""
  text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.S)
  return " ".join(text.split())


def test_the_page_has_curves_samples_and_metrics_with_intervals(text):
  words = plain(text)
  assert "tiny: a training" in words
  assert "steps" in words
  assert "320" in words  # images seen
  for name in ("loss", "grad norm", "images per second"):
    assert re.search(rf"{name} · last", words)
  assert text.count("After step") == 2 * run_report.PREVIEWS
  assert "17 (16.7 to 17.3)" in words
  assert "FID, guidance 3" in words
  assert "KID of nothing." in words
  assert "validation_mse_at.900 0.25" in words
  assert "sha256 abababababab" in words
  assert text.count("<circle") == 2


def test_cost_and_energy_are_of_the_time_that_it_ran(text):
  words = plain(text)
  # 38 steps of 90 s; what lies between steps 20 and 21 was no training.
  assert "time 57.0 min" in words
  assert "devices 8 TPU v4, hosts: 2" in words
  assert "chip-hours 7.6" in words
  assert "cost $24.47 at $3.22 an hour and chip" in words
  assert "energy 1.52 kWh at 200 W a chip" in words


def test_data_licences_and_commands_are_there(text):
  words = plain(text)
  assert "CC-BY-4.0 48 100.0 %" in words
  assert "48 require attribution" in words
  assert "catalogue: catalogue 48 48 0" in words
  assert "cc-jax train --config=c.py --workdir={workdir}" in words
  assert "--config=c.py:x --workdir=w" in words
  assert "(&#x27;b&#x27;, &#x27;gs://bucket/x&#x27;)" in words
  assert "1 of 29,999 images are copies of one of 40 training images" in words
  assert "Ann &lt;b&gt; CC-BY-4.0 https://example.org/7" in words


def test_the_page_asks_for_nothing_and_tells_nothing_private(work, text):
  assert "<script" not in text
  assert "default-src 'none'" in text
  for address in re.findall(r'(?:src|href)="([^"]*)"', text):
    assert address.startswith(("data:", "https://creativecommons.org/"))
  assert str(work) not in text
  assert str(work.parent) not in text


def test_a_browser_draws_it(work, tmp_path):
  text = browser.dom((work / "report.html").as_uri(), tmp_path)
  assert "<title>tiny: a training</title>" in text


def test_a_run_that_left_little_has_a_short_page(tmp_path, tmp_path_factory):
  data = tiny.shared(tmp_path_factory)
  config = tiny.config(data, tmp_path, train__folders=("/gone",))
  noted = {"train": {"config": config.to_dict()}}
  files.write_json(tmp_path / "config.json", noted)
  words = plain(run_report.write(config, str(tmp_path)))
  assert "The folders that it was trained on are gone." in words
  assert "devices not noted" in words
  assert "Curves" not in words


def test_a_folder_without_a_training_is_refused(tmp_path, capsys):
  words = ("report", tmp_path, tmp_path, "--config.report.kind=run")
  toys.check_refused(capsys, toys.run(*words), "config.json does not exist")
  files.write_json(tmp_path / "config.json", {})
  toys.check_refused(capsys, toys.run(*words), "notes no training")
  words = (*words[:3], "--config.report.kind=poem")
  toys.check_refused(
    capsys, toys.run(*words), "expected dataset, run, pairwise"
  )
