# SPDX-License-Identifier: Apache-2.0
"""Every config trains: two steps of each, with small networks and pictures.

The rest of a config stays as it is: optimiser, average, types, objective,
crops, buckets, what an empty caption is, and whether weights are split.
"""

import dataclasses
import functools
import json
import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np
import parity
import pytest
import test_repository
import tiny
import tiny_clip_gen
import toys

from cc_jax.core import config as configs
from cc_jax.core import sharding, tree
from cc_jax.data import grids, tokenizer_files
from cc_jax.models import families, hub, kinds, published
from cc_jax.stages import caption, catalogue, encode, train
from cc_jax.tasks import task as tasks

IMAGES, SIZE, DEVICES = 16, 32, 2
EVERY = [
  (path.stem, argument)
  for path in test_repository.CONFIGS
  for argument in test_repository.arguments(path)
]
# Whose two steps are not left to the slow tests: one of each task.
QUICK = (
  ("sd2", "256"),
  ("pixart", "aesthetic_1024"),
  ("clipgen", "vqgan"),
  ("clipgen", "large"),
  ("quickstart", "autoencoder"),
  ("quickstart", "clip"),
)
# Those that are about something else all train as base.py does.
SAME: dict[str, tuple] = {}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Catalogue, captions, tokenizers and autoencoder; pictures 4 to 3."""
  folder = tmp_path_factory.mktemp("data")
  rng = np.random.default_rng(0)
  pictures = {
    f"{i}.png": grids.encode_png(
      rng.integers(0, 255, (48 + 3 * i, 64 + 4 * i, 3), np.uint8)
    )
    for i in range(IMAGES)
  }
  toys.write_source(
    folder / "source", [toys.row(name) for name in pictures], pictures
  )
  tiny.save_vae(f"{folder}/vae", seed=0)
  made = tiny.config(folder, folder)
  catalogue.main(made, str(folder))
  caption.main(made, str(folder))
  with tiny.compiled_once(folder):
    yield folder


def reduced(config, data, workdir):
  """A config as it is, but for the sizes of networks, pictures and the run."""
  small = tiny.get_config(str(data))
  for group in ("catalogue", "caption"):
    config[group].folder = small[group].folder
  config.encode.update(
    images=small.catalogue.folder,
    captions=small.caption.folder if config.encode.captions else "",
    caption=small.encode.caption,
    folder="{workdir}/latents",
    size=SIZE,
    bucket_step=8 if config.encode.buckets else 0,
    tokens=small.encode.tokens,
    batch_size=IMAGES,
  )
  config.train.update(steps=2, batch_size=8, warmup=0, log_every=1)
  config.train.update(checkpoint_every=2, preview_every=0, init="")
  config.train.mesh.fsdp = min(config.train.mesh.fsdp, DEVICES)
  config.train.ema_start = min(config.train.ema_start, 3)
  if config.train.task == "autoencoder":
    config.train.folders = (small.catalogue.folder,)
    config.autoencoder.size = SIZE
    config.model.vae.update(channels=(8, 16), groups=4)
  else:
    config.model.vae = small.model.vae
    config.train.folders = ("{workdir}/latents",)
    config.latent_diffusion.train_text = True
    name = config.train.task
    if name == "latent_diffusion":
      name = families.find(config.model)
    NETWORKS[name](config, small, data, workdir)
  configs.resolve(config, str(workdir))
  return config.lock()


ONE_LEVEL = {"channels": (8,), "attention": (False,), "groups": 4, "heads": 2}


def stable_diffusion(config, small, data, workdir):
  """One level, and attention in its middle."""
  model = config.model
  model.unet = ConfigDict(
    small.model.unet.to_dict() | ONE_LEVEL | {"source_width": 16}
  )
  model.text, model.tokenizer = small.model.text, small.model.tokenizer


def stable_diffusion_xl(config, small, data, workdir):
  """Two towers, pooled states and sizes, as toys.py has them."""
  made = toys.sdxl(data, workdir)
  for name in ("unet", "text", "text_2", "tokenizer", "tokenizer_2"):
    config.model[name] = made.model[name]
  config.model.unet.update(ONE_LEVEL)


def pixart(config, small, data, workdir):
  """Its blocks, and a T5 with weights, as toys.py has them."""
  made = toys.pixart(data, workdir)
  for name in ("transformer", "tokenizer"):
    config.model[name] = made.model[name]
  if not config.encode.text_states:
    config.model.text = made.model.text
    return
  t5 = hub.config({**made.model.text, "vocabulary": 60}, "t5")
  params = parity.scramble(kinds.structure("t5", t5)[1])
  hub.save(f"{workdir}/t5", "t5", t5, params)
  config.model.text = f"{workdir}/t5"
  config.latent_diffusion.train_text = False


def dit(config, small, data, workdir):
  """The blocks, and titles as classes."""
  config.encode.label = "title"
  if not config.model.tokenizer:
    # It reads another config's latents, and not the captions in them.
    config.encode.captions = ""
  config.model.classes = "{workdir}/classes.txt"
  made = toys.pixart(data, workdir).model.transformer.to_dict()
  made.pop("caption_width")
  more = {"frequency_shift": config.model.transformer.frequency_shift}
  config.model.transformer = ConfigDict({**made, **more, "out_channels": 8})
  config.latent_diffusion.train_text = False


def contrastive(config, small, data, workdir):
  """Two towers of one block each."""
  tower = dict(width=16, mlp=32, depth=1, heads=2)
  config.model.clip = ConfigDict(
    dict(
      projection=12,
      text={**tower, "positions": 8},
      vision={**tower, "image_size": 16, "patch": 8},
    )
  )
  config.model.tokenizer = small.model.tokenizer
  config.train.folders = (small.catalogue.folder, small.caption.folder)


def vqgan(config, small, data, workdir):
  """Three levels and twelve codes; LPIPS needs weights that are not here."""
  config.model.vqgan = ConfigDict(
    {**dataclasses.asdict(tiny_clip_gen.VQGAN), "sample_size": SIZE}
  )
  config.model.discriminator = ConfigDict(dict(channels=4, depth=1))
  config.autoencoder.size = SIZE
  config.autoencoder.lpips_weight = 0.0
  config.autoencoder.gan_start = 1
  config.train.folders = (small.catalogue.folder,)


def prior(config, small, data, workdir):
  """Two blocks, on codes and embeddings of random networks."""
  tiny_clip_gen.save(workdir)
  for name in ("vqgan", "clip"):
    config.model[name] = config.encode[name] = f"{workdir}/{name}"
  shape = {**tiny_clip_gen.PRIOR, "positions": 64}
  config.model.prior = ConfigDict(shape)


NETWORKS = {
  "stable_diffusion": stable_diffusion,
  "stable_diffusion_xl": stable_diffusion_xl,
  "pixart": pixart,
  "dit": dit,
  "contrastive": contrastive,
  "vqgan": vqgan,
  "prior": prior,
}


def run(made, workdir):
  """Encodes, trains, and returns the state and the losses."""
  # What a stage writes, and the run's own folder, decide nothing.
  read = made.to_json().replace(str(workdir), "")
  known = ("seed", "encode", "model", "train", "latent_diffusion")
  known = (*known, "autoencoder", "vqgan", "contrastive", "prior")
  key = json.dumps({k: json.loads(read)[k] for k in known}, sort_keys=True)
  if key not in SAME:
    if made.train.task in ("latent_diffusion", "prior"):
      encode.main(made, str(workdir))
    state = train.main(made, str(workdir))
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in text.splitlines()]
    SAME[key] = jax.device_get(state), losses, workdir
  return SAME[key]


def averaged(state):
  """Whether the average of the weights is something else than the weights."""
  ema, params = tree.flatten(state.ema), tree.flatten(state.params)
  return any(np.any(ema[path] != params[path]) for path in params)


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
  """Programs for more take longer to compile."""
  made = functools.partial(sharding.make_mesh, devices=jax.devices()[:DEVICES])
  monkeypatch.setattr(sharding, "make_mesh", made)


@pytest.mark.parametrize(
  ("name", "argument"),
  [
    pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow)
    for one in EVERY
  ],
)
def test_a_config_trains_for_two_steps(name, argument, data, tmp_path):
  config = configs.load(f"configs/{name}.py:{argument}")
  made = reduced(config, data, tmp_path)
  state, losses, _ = run(made, tmp_path)
  assert int(state.step) == 2
  assert len(losses) == 2
  assert np.all(np.isfinite(losses))
  leaves = tree.flatten(state.params)
  assert all(leaf.dtype == np.float32 for leaf in leaves.values())
  # One that starts later is a copy until then.
  assert averaged(state) == (made.train.ema_start < 2)


def test_sdxl_is_told_the_sizes_and_crops_that_were_stored(data, tmp_path):
  made = reduced(configs.load("configs/sdxl.py:256"), data, tmp_path)
  _, _, folder = run(made, tmp_path)
  made = reduced(configs.load("configs/sdxl.py:256"), data, folder)
  task = tasks.make(made)
  source = tasks.source(task, made.train.folders, "train")
  records = [source[i] for i in range(len(source))]
  batch = {k: np.stack([one[k] for one in records]) for k in task.features}
  # Pictures of 48 x 64 and more, cut at random to squares: from the left.
  assert len({tuple(size) for size in batch["size"]}) == IMAGES
  assert np.all(batch["size"][:, 0] < batch["size"][:, 1])
  assert not np.any(batch["crop"][:, 0])
  assert len(set(batch["crop"][:, 1])) > 3
  # Weights that are not zero, as some are at first.
  params = jax.eval_shape(task.init, jax.random.key(0))
  params = parity.scramble(params)
  loss = jax.jit(lambda batch: task.loss(params, batch, jax.random.key(1))[0])
  for name in ("size", "crop"):
    assert loss(batch | {name: batch[name] * 0}) != loss(batch), name


@pytest.mark.parametrize(("name", "argument"), EVERY)
def test_what_a_config_names_exists(name, argument):
  """Nothing is downloaded: rows of the tables, presets, or the run's own."""
  config = configs.load(f"configs/{name}.py:{argument}")
  model = config.model
  family = families.find(model)
  for network, kind in families.FAMILIES[family].kinds.items():
    value = model[network]
    if isinstance(value, str) and not value.startswith("{workdir}"):
      hub.config(value, kind)
      # Frozen networks bring weights, but where latents are made up.
      frozen = network != families.FAMILIES[family].denoiser
      if frozen and config.train.folders:
        assert value in published.TABLE
  for value in families.tokenizers(family, model).values():
    known = value.startswith("{workdir}") or value in tokenizer_files.HUB
    # Or a repository of the hub, which only its name can be told from.
    assert known or value == "openai/clip-vit-base-patch32"
