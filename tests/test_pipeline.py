# SPDX-License-Identifier: Apache-2.0
"""Every stage on real photographs, by the commands that a user types."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tiny
import toys

from cc_jax.core import checkpoint, tree
from cc_jax.data import aligned, images, shards
from cc_jax.models import hub

ROOT = pathlib.Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared/data/clothing"
COUNT, HELD_OUT = 40, 8

pytestmark = pytest.mark.skipif(
  not (PHOTOGRAPHS / "metadata.jsonl").exists(), reason=f"no {PHOTOGRAPHS}"
)

# So small that it runs in seconds.
SMALL = {
  "train.steps": 3,
  "train.batch_size": 8,
  "train.warmup": 1,
  "train.log_every": 1,
  "train.checkpoint_every": 2,
}
AUTOENCODER = {"model.vae.channels": "(8,8,16)", "train.preview_every": 3}
UNET = {
  "catalogue.records_per_shard": 16,
  "encode.batch_size": 16,
  "model.unet.channels": "(16,32,32)",
  "model.unet.attention": "(False,False,True)",
  # `sample` compiles the same program.
  "train.preview_every": 0,
  "model.text.width": 32,
  "model.unet.source_width": 32,
  "sample.prompts": "('a photo of a hat','a photo of a dress')",
  "sample.each": 2,
  "sample.steps": 3,
  "sample.batch_size": 8,
  "evaluate.batch_size": 8,
  "evaluate.recognise.each": 1,
}


MAIN = """
import json, sys
from cc_jax import cli
for argv in json.load(sys.stdin):
  if status := cli.main(argv):
    sys.exit(f"{argv}: {status}")
"""


def command(stage, part, workdir, **fields):
  """The words of `cc-jax STAGE` on configs/clothing.py:PART."""
  flags = SMALL | {"autoencoder": AUTOENCODER, "unet": UNET}[part] | fields
  config = f"--config=configs/clothing.py:{part}"
  words = [f"--config.{name}={value}" for name, value in flags.items()]
  return [stage, config, f"--workdir={workdir}", *words]


def run(commands):
  """Commands one after another in a process of its own; its stdout.

  With the config's two devices: programs for the eight of this process take
  three times as long to compile.
  """
  done = subprocess.run(
    [sys.executable, "-c", MAIN],
    cwd=ROOT,
    env=os.environ | tiny.FLAGS,
    input=json.dumps(commands),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def write_source(folder):
  """40 of the photographs, in folders of their own as a user has them."""
  lines = (PHOTOGRAPHS / "metadata.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines[:: len(lines) // COUNT]][:COUNT]
  for i, row in enumerate(rows):
    row["split"] = "validation" if i % (COUNT // HELD_OUT) == 0 else "train"
  names = [row["file_name"] for row in rows]
  toys.write_source(
    folder, rows, {name: (PHOTOGRAPHS / name).read_bytes() for name in names}
  )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clothing")
  write_source(folder / "source")
  source = {"catalogue.source": f"{folder}/source"}
  run(
    [
      command("catalogue", "unet", folder, **source),
      command("caption", "unet", folder),
      command("train", "autoencoder", folder / "autoencoder"),
      command("export", "autoencoder", folder / "autoencoder"),
      command("encode", "unet", folder),
      command("train", "unet", folder),
      command("sample", "unet", folder),
      command("evaluate", "unet", folder),
      command("export", "unet", folder),
    ]
  )
  return folder


def test_every_photograph_enters_with_its_licence(workdir):
  dataset = shards.open(workdir / "catalogue")
  counts = dataset.provenance["counts"]
  assert counts["read"] == counts["kept"] == COUNT
  assert counts["licences"] == {"CC0-1.0": COUNT}
  assert {s: sum(n) for s, n in dataset.splits.items()} == {
    "train": COUNT - HELD_OUT,
    "validation": HELD_OUT,
  }
  record = aligned.source([dataset], "train")[0]
  assert min(record["height"], record["width"]) >= 64
  assert record["page_url"].startswith("https://")


def test_captions_and_latents_stand_beside_the_photographs(workdir):
  folders = [workdir / name for name in ("catalogue", "captions", "latents")]
  datasets = [shards.open(folder) for folder in folders]
  record = aligned.source(datasets, "train")[0]
  assert record["title"] in record["caption_title"]
  assert record["latent_mean"].shape == (16, 16, 4)
  assert record["tokens"].shape == (16,)
  made = hub.load(str(workdir / "vae"), "autoencoder")
  weights = datasets[2].provenance["weights"]
  assert weights["latent_mean"] == made.hash


def test_latents_have_unit_variance_once_scaled(workdir):
  source = aligned.source([shards.open(workdir / "latents")], "train")
  mean, std = (
    np.stack([source[i][name] for i in range(len(source))]).astype(np.float32)
    for name in ("latent_mean", "latent_std")
  )
  factor = hub.load(str(workdir / "vae"), "autoencoder").config.scaling_factor
  variance = np.var(mean) + np.mean(std**2)
  assert factor * variance**0.5 == pytest.approx(1, abs=0.01)


def test_training_leaves_a_checkpoint_curves_and_previews(workdir):
  for folder in (workdir, workdir / "autoencoder"):
    assert checkpoint.latest_step(folder / "checkpoints") == 3
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert list((folder / "tensorboard").iterdir())
  preview = (workdir / "autoencoder/previews/0000003.png").read_bytes()
  assert images.decode(preview).shape > (128, 64, 3)
  ema = tree.flatten(checkpoint.load(workdir / "checkpoints", "ema"))
  params = tree.flatten(checkpoint.load(workdir / "checkpoints", "params"))
  assert {path.split(".")[0] for path in params} == {"unet", "text"}
  # Both networks learn, and the average is not the weights.
  for part in ("unet", "text"):
    assert any(
      np.abs(ema[path] - params[path]).max() > 0
      for path in params
      if path.startswith(part)
    )


def test_samples_numbers_and_settings_are_there(workdir):
  picture = images.decode((workdir / "samples.png").read_bytes())
  assert picture.shape > (128, 128, 3)
  metrics = json.loads((workdir / "metrics.json").read_text())
  assert 0 < metrics["validation_loss"] < 10
  assert 0 <= metrics["recognised"] <= 1
  source = aligned.source([shards.open(workdir / "catalogue")], "train")
  titles = {source[row]["title"] for row in range(len(source))}
  assert metrics["recognised_of"] == len(titles)
  stages = json.loads((workdir / "config.json").read_text())
  assert set(stages) >= {"catalogue", "caption", "encode", "train", "sample"}
  assert stages["train"]["config"]["train"]["steps"] == 3
  assert "jax" in stages["train"]["packages"]


def test_the_export_is_the_checkpoint(workdir):
  expected = tree.flatten(checkpoint.load(workdir / "checkpoints", "ema"))
  loaded = hub.load(str(workdir / "export/unet"), "unet")
  for path, leaf in tree.flatten(loaded.params).items():
    np.testing.assert_array_equal(leaf, expected[f"unet.{path}"])
  card = (workdir / "export/README.md").read_text()
  assert f"| CC0-1.0 | {COUNT} |" in card
  assert "[report.html](report.html)" in card
  report = (workdir / "export/report.html").read_text()
  assert "Data and licences" in report
  assert str(workdir) not in report


def test_every_stage_run_again_finds_all_done(workdir):
  before = toys.contents(workdir / "latents")
  source = {"catalogue.source": f"{workdir}/source"}
  out = run(
    [
      command("catalogue", "unet", workdir, **source),
      command("caption", "unet", workdir),
      command("encode", "unet", workdir),
      command("train", "unet", workdir),
    ]
  )
  assert out.count("wrote 0 shards, skipped 3 as done") == 3
  assert "tokenizer is there already" in out
  assert "3 steps done before" in out
  assert toys.contents(workdir / "latents") == before
