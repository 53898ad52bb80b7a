# SPDX-License-Identifier: Apache-2.0
"""A run of a few thousand weights on 48 made-up images, for tests.

Also a config file: `cc-jax train --config=tests/tiny.py:DATA --workdir=DIR`,
where DATA is the folder that `make_data` filled.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

from flax import nnx
import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
import numpy as np

from cc_jax.core import config as configs
from cc_jax.core import tree
from cc_jax.data import grids
from cc_jax.models import hub, kinds
from cc_jax.stages import caption, catalogue, encode
from cc_jax.tasks import step, task

RECORDS, VALIDATION = 40, 8
SIZE = 16
TITLES = ("red", "green")
VAE = {"channels": (4, 8), "groups": 4, "mid_attention": False}
MAIN = "import sys; from cc_jax import cli; sys.exit(cli.main())"
ROOT = pathlib.Path(__file__).parents[1]
# Of processes that tests start, which have the machine's own devices.
FLAGS = {
  "XLA_FLAGS": "--xla_backend_optimization_level=0"
  " --xla_cpu_use_fusion_emitters=false"
}
# Seconds after which a process hangs: far more than a busy machine needs.
PATIENCE = 900


def get_config(data: str) -> ConfigDict:
  config = configs.load("configs/base.py")
  config.name = "tiny"
  config.catalogue.source = f"{data}/source"
  config.catalogue.folder = config.encode.images = f"{data}/catalogue"
  config.evaluate.images = config.caption.images = f"{data}/catalogue"
  config.catalogue.min_side = 8
  config.caption.folder = config.encode.captions = f"{data}/captions"
  config.caption.vocabulary = 514
  config.encode.folder = f"{data}/latents"
  config.encode.tokens = 8
  config.encode.batch_size = 16
  for group in (config.encode, config.autoencoder, config.sample):
    group.size = SIZE

  config.model.vae = f"{data}/vae"
  config.model.tokenizer = f"{data}/tokenizer"
  config.model.text = ConfigDict(
    dict(width=16, mlp=32, depth=1, heads=2, positions=8)
  )
  config.model.unet = ConfigDict(
    dict(
      channels=(8, 16),
      attention=(False, False),
      layers_per_block=1,
      heads=2,
      source_width=16,
      groups=4,
      linear_projection=True,
    )
  )
  config.latent_diffusion.train_text = True

  config.train.folders = (f"{data}/latents",)
  config.train.steps = 48
  config.train.batch_size = 8
  config.train.lr = 2e-3
  config.train.warmup = 2
  config.train.ema_decay = 0.9
  config.train.dtype = "float32"
  config.train.log_every = 1
  config.train.checkpoint_every = 8
  config.train.keep = 20
  config.train.preview_every = 0
  config.evaluate.batch_size = 8
  config.evaluate.timesteps = ()
  config.sample.prompts = tuple(f"a photo of {title}" for title in TITLES)
  config.sample.batch_size = 8
  return config


def config(data: str, workdir: str, **fields) -> ConfigDict:
  """The config with fields such as `train__steps=3` set, and its paths."""
  made = get_config(str(data))
  for name, value in fields.items():
    *groups, field = name.split("__")
    node = made
    for group in groups:
      node = node[group]
    assert field in node, name
    with node.ignore_type():
      node[field] = value
  configs.resolve(made, str(workdir))
  return made.lock()


def shared(factory) -> str:
  """The data of a session, made once; `factory` is pytest's for folders."""
  folder = factory.getbasetemp() / "tiny"
  if not folder.exists():
    make_data(str(folder))
  return str(folder)


def make_data(folder: str) -> str:
  """Source, catalogue, captions, tokenizer, autoencoder and latents."""
  write_source(pathlib.Path(folder) / "source")
  save_vae(f"{folder}/vae", seed=0)
  made = config(folder, folder)
  catalogue.main(made, folder)
  caption.main(made, folder)
  encode.main(made, folder)
  return folder


def write_source(folder: pathlib.Path) -> None:
  """Red and green pictures with a little noise, half of them each."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  rows = []
  for index in range(RECORDS + VALIDATION):
    label = index % 2
    picture = rng.integers(0, 60, (SIZE, SIZE, 3), np.uint8)
    picture[..., label] += 180
    name = f"{index:02d}.png"
    (folder / name).write_bytes(grids.encode_png(picture))
    rows.append(
      {
        "file_name": name,
        "title": TITLES[label],
        "author": "nobody",
        "licenseurl": "https://creativecommons.org/licenses/by/4.0/",
        "split": "train" if index < RECORDS else "validation",
      }
    )
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metadata.jsonl").write_text(lines)


def save_vae(folder: str, seed: int, **fields) -> None:
  """An autoencoder of random weights."""
  made = hub.config(VAE, "autoencoder")
  module = kinds.make("autoencoder", made, rngs=nnx.Rngs(seed))
  made = dataclasses.replace(made, scaling_factor=0.5, **fields)
  hub.save(folder, "autoencoder", made, tree.split(module)[1])


def start(
  stage: str, data: str, workdir: str, *words: str, **environment: str
) -> subprocess.Popen:
  """`cc-jax STAGE` on the tiny config, as a process of its own."""
  command = [sys.executable, "-c", MAIN, stage]
  command += [f"--config={__file__}:{data}", f"--workdir={workdir}", *words]
  inherited = os.environ | FLAGS
  inherited["PYTHONPATH"] = str(ROOT)
  # A program is compiled once for all processes.
  inherited["JAX_COMPILATION_CACHE_DIR"] = f"{data}/compiled"
  inherited["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=inherited | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@contextlib.contextmanager
def compiled_once(data: str):
  """Also this process keeps what it compiles, and finds what others did."""
  names = {
    "jax_compilation_cache_dir": f"{data}/compiled",
    "jax_persistent_cache_min_compile_time_secs": 0.5,
  }
  before = {name: getattr(jax.config, name) for name in names}
  for name, value in names.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def run(
  stage: str, data: str, workdir: str, *words: str, **environment: str
) -> tuple[int, str, str]:
  """(exit status, stdout, stderr) of a process that runs to its end."""
  process = start(stage, data, workdir, *words, **environment)
  out, err = process.communicate(timeout=PATIENCE)
  return process.returncode, out, err


def leaves(state) -> dict[str, np.ndarray]:
  """The arrays of a state by path, on the host."""
  return {k: np.asarray(v) for k, v in tree.flatten(state).items()}


def largest_difference(a, b) -> float:
  """Over all leaves of two trees of the same paths."""
  a, b = leaves(a), leaves(b)
  assert a.keys() == b.keys()
  return max(float(np.max(np.abs(a[k].astype(np.float64) - b[k]))) for k in a)


def abstract(made: ConfigDict):
  """The shapes of the state that a config trains."""
  return jax.eval_shape(
    step.make(made, task.make(made)).init, jax.random.key(0)
  )
