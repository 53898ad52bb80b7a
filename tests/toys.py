# SPDX-License-Identifier: Apache-2.0
"""A toy of everything a run leaves behind, made in seconds, with no training.

Images with a metadata.jsonl go through the real stages; the weights are random.
"""

import functools
import hashlib
import json
import pathlib
import tempfile

import numpy as np
import parity

from cc_jax import cli
from cc_jax.core import checkpoint
from cc_jax.core import config as configs
from cc_jax.data import images, tokenize
from cc_jax.models import hub

LICENCE = "https://creativecommons.org/licenses/by/4.0/"
CONFIG = "configs/quickstart.py:unet"
TITLES = ("dress", "hat", "shirt")
# What makes the quickstart's config a toy. Batches divide over eight devices.
FIELDS = {
  "cpu_devices": 8,
  "catalogue.source": "{workdir}/source",
  "catalogue.records_per_shard": 6,
  "encode.batch_size": 8,
  "model.text.width": 16,
  "model.text.mlp": 24,
  "model.text.depth": 2,
  "model.text.heads": 2,
  "model.unet.channels": (8, 16),
  "model.unet.heads": 2,
  "model.unet.source_width": 16,
  "model.unet.groups": 4,
  "train.steps": 2,
  "train.batch_size": 8,
  "train.preview_every": 0,
  "train.checkpoint_every": 2,
  "sample.prompts": ("a dress", "a hat"),
  "sample.each": 2,
  "sample.steps": 4,
  "sample.batch_size": 8,
  "evaluate.batch_size": 8,
  "evaluate.recognise.each": 0,
}


def flags(**changes):
  """FIELDS as flags; in names of changes "__" stands for "."."""
  changes = {name.replace("__", "."): v for name, v in changes.items()}
  return [f"--config.{name}={v}" for name, v in (FIELDS | changes).items()]


def run(stage, workdir, *more, config=CONFIG, **changes):
  """cc-jax in this process; its exit status."""
  where = [f"--config={config}", f"--workdir={workdir}"]
  return cli.main([stage, *where, *flags(**changes), *more])


def config(workdir, *more, **changes):
  """The config that `run` gives a stage."""
  where = [f"--config={CONFIG}", f"--workdir={workdir}"]
  return cli.arguments(["train", *where, *flags(**changes), *more])[1]


def picture(seed, side=16):
  """A PNG of smooth colours, another one for each seed."""
  rng = np.random.default_rng(seed)
  corners = rng.uniform(0, 255, (2, 2, 3))
  across = np.linspace(0, 1, side)
  down = corners[0] + (corners[1] - corners[0]) * across[:, None, None]
  pixels = down[:, 0, None] + (down[:, 1] - down[:, 0])[:, None] * (
    across[None, :, None]
  )
  return images.encode_png(pixels.round().astype(np.uint8))


def row(file, **fields):
  """A line of metadata.jsonl that the gate lets in."""
  return {
    "file_name": file,
    "title": "hat",
    "author": "Ann",
    "licenseurl": LICENCE,
    "split": "train",
  } | fields


def write_source(folder, rows, pictures=None):
  """Writes metadata.jsonl: of dicts as JSON, of bytes as they are."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in (pictures or {}).items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
  lines = [
    line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
    for line in rows
  ]
  (folder / "metadata.jsonl").write_bytes(b"".join(lines))
  return str(folder)


def source(folder, count=18, **fields):
  """A folder of images, every third held out, with titles in turn."""
  pictures = {f"{i:02d}.png": picture(i) for i in range(count)}
  rows = [
    row(
      name,
      title=TITLES[i % len(TITLES)],
      split="validation" if i % 3 == 2 else "train",
      **fields,
    )
    for i, name in enumerate(pictures)
  ]
  return write_source(folder, rows, pictures)


def write_vae(folder, seed=1):
  """A random autoencoder of the quickstart's factor, as an exported folder."""
  made = hub.config(
    dict(
      channels=(8, 16),
      groups=4,
      mid_attention=False,
      sample_size=16,
      scaling_factor=0.7,
    ),
    "autoencoder",
  )
  _, shapes = hub.structure("autoencoder", made)
  hub.save(folder, "autoencoder", made, parity.scramble(shapes, seed))


def write_checkpoint(made, folder=None, step=2):
  """Random weights as a train state of the networks of a config."""
  ids = tokenize.ids(tokenize.load(made.model.tokenizer))
  networks = {
    "unet": ("unet", hub.config(made.model.unet, "unet")),
    "text": ("clip_text", hub.open(made.model.text, "clip_text", ids).config),
  }
  params = {
    name: parity.scramble(hub.structure(kind, network)[1], seed)
    for seed, (name, (kind, network)) in enumerate(networks.items())
  }
  opened = checkpoint.manager(folder or made.train.checkpoints, async_=False)
  state = {"ema": params, "params": params, "step": np.int32(step)}
  checkpoint.save(opened, step, state, {"next_index": 0}, {})
  checkpoint.close(opened)


@functools.cache
def workdir():
  """A work folder with data, latents and a checkpoint; not to be changed."""
  folder = tempfile.mkdtemp(prefix="cc_jax_toy_")
  source(f"{folder}/source")
  for stage in ("catalogue", "caption"):
    assert run(stage, folder) == 0
  write_vae(f"{folder}/vae")
  assert run("encode", folder) == 0
  write_checkpoint(config(folder))
  return folder


def contents(folder):
  """A hash of every file below a folder."""
  folder = pathlib.Path(folder)
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


def loaded(name):
  """configs/NAME.py:ARG, unlocked."""
  return configs.load(name)
