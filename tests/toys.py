# SPDX-License-Identifier: Apache-2.0
"""Small sources, and small runs through the command line, for tests.

Beside tests/tiny.py: what reads a folder of images or a trained run, without
training one.
"""

import hashlib
import json
import pathlib
import shutil
import string

import numpy as np
import parity
import tiny
import transformers

from cc_jax import cli
from cc_jax.core import checkpoint, tree
from cc_jax.data import grids, tokenize
from cc_jax.models import families, kinds

LOUD = {"token.embedding": 20.0, "attn2.out.kernel": 5.0}
# SDXL in small, for `tiny.config`.
SDXL = {
  "model__unet": dict(
    channels=(8, 16),
    attention=(False, True),
    layers_per_block=1,
    heads=2,
    source_width=16 + 24,
    groups=4,
    linear_projection=True,
    pooled_conditions="text_time",
    size_width=8,
    conditions_width=20 + 6 * 8,
  ),
  "model__text": dict(width=16, mlp=32, depth=2, heads=2, positions=8),
  "model__text_2": dict(
    width=24,
    mlp=32,
    depth=2,
    heads=2,
    positions=8,
    act="gelu",
    projection=20,
    architectures=("CLIPTextModelWithProjection",),
  ),
}
LICENCE = "https://creativecommons.org/licenses/by/4.0/"


def row(file, **fields):
  """A line of metadata.jsonl that the gate lets in."""
  return {
    "file_name": file,
    "title": "hat",
    "author": "Ann",
    "licenseurl": LICENCE,
    "split": "train",
  } | fields


def picture(seed, side=16):
  """A PNG of one colour, another one for each seed."""
  colour = np.random.default_rng(seed).integers(0, 256, 3, np.uint8)
  return grids.encode_png(np.broadcast_to(colour, (side, side, 3)).copy())


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


def run(stage, data, workdir, *words):
  """`cc-jax STAGE` on the tiny config in this process; its exit status."""
  where = f"--config={tiny.__file__}:{data}"
  return cli.main([stage, where, f"--workdir={workdir}", *words])


def write_checkpoint(made, step=1):
  """Random weights as a train state of the networks of a config.

  All of them random: initial weights have zeros, which hide what is unused.
  """
  family = families.find(made.model)
  ids = {
    name: tokenize.ids(tokenize.load(one))
    for name, one in families.tokenizers(family, made.model).items()
  }
  found = families.open(family, made.model, ids, train_text=True)
  kinds_of = families.FAMILIES[family].kinds
  params = {
    name: parity.scramble(
      kinds.structure(kinds_of[name], loaded.config)[1], seed
    )
    for seed, (name, loaded) in enumerate(found.items())
    if name != "vae"
  }
  # Random weights hear little of a prompt; these hear much.
  flat = tree.flatten(params)
  for path in flat:
    for end, gain in LOUD.items():
      if path.endswith(end):
        flat[path] = flat[path] * gain
  params = tree.unflatten(flat)
  opened = checkpoint.manager(made.train.checkpoints, async_=False)
  state = {"ema": params, "params": params, "step": np.int32(step)}
  checkpoint.save(opened, step, state, {"next_index": 0}, {})
  checkpoint.close(opened)


def sdxl(data, workdir, **fields):
  """The config of a small SDXL; the padding of its second tower is "!"."""
  folder = pathlib.Path(workdir) / "tokenizer_2"
  if not folder.exists():
    tokenizer = tokenize.load(f"{data}/tokenizer")
    tokenizer.pad_token = "!"
    tokenize.save(tokenizer, str(folder))
  fields = SDXL | {"model__tokenizer_2": str(folder)} | fields
  return tiny.config(data, workdir, **fields)


def pixart(data, workdir, *, micro=False, **fields):
  """The config of a small PixArt, on PixArt's schedule.

  diffusers gives micro-conditions to transformers of one size only.
  """
  folder = pathlib.Path(workdir) / "tokenizer"
  if not folder.exists():
    words = [f"▁{word}" for word in "a photo of red green hat".split()]
    pieces = [*words, "▁", *string.ascii_lowercase, "!"]
    transformers.T5Tokenizer(
      vocab=[(one, 0.0) for one in ("<pad>", "</s>", "<unk>")]
      + [(piece, -float(9 - len(piece))) for piece in pieces],
      extra_ids=0,
      model_max_length=8,
    ).save_pretrained(folder)
  fields = {
    "model__unet": "",
    "model__transformer": dict(
      sample_size=128 if micro else tiny.SIZE // 2,
      heads=2,
      head_width=12,
      depth=2,
      caption_width=16,
    ),
    "model__text": dict(width=16, mlp=24, depth=2, heads=2, head_width=8),
    "model__tokenizer": str(folder),
    "model__schedule__kind": "linear",
    "model__schedule__beta_start": 0.0001,
    "model__schedule__beta_end": 0.02,
  } | fields
  return tiny.config(data, workdir, **fields)


def shared(factory):
  """(data, work folder with a checkpoint) of a session; not to be changed."""
  data, folder = tiny.shared(factory), factory.getbasetemp() / "trained"
  return data, str(folder) if folder.exists() else trained(data, folder)


def trained(data, workdir):
  """A work folder with a checkpoint, as `cc-jax train` leaves one."""
  write_checkpoint(tiny.config(data, workdir))
  return str(workdir)


def copy(data, folder):
  """The tiny data in a folder of its own, to be changed."""
  return str(shutil.copytree(data, folder))


def contents(folder):
  """A hash of every file below a folder."""
  folder = pathlib.Path(folder)
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


def check_refused(capsys, status, *words):
  """One line on stderr with all of the words, and exit status 2."""
  err = capsys.readouterr().err
  assert status == 2, err
  assert err.startswith("cc-jax: ")
  assert err.endswith("\n")
  assert err.count("\n") == 1
  for word in words:
    assert word in err, err
