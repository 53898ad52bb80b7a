# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits in minutes on two CPU cores: the whole pipeline, small.

  bash launch/quickstart.sh

runs all stages; or one by one, after `cc-jax quickstart` has made its source:

  cc-jax train --config=configs/quickstart.py:autoencoder \
    --workdir=runs/quickstart/autoencoder
  cc-jax train --config=configs/quickstart.py:unet --workdir=runs/quickstart
"""

import base
from ml_collections import ConfigDict

TEMPLATES = (
  "a handwritten {title}",
  "the digit {title}",
  "a {title} written by hand",
  "a small picture of the number {title}",
  "{title}",
  "someone wrote a {title}",
  "a scan of a {title} in pencil",
  "an image of the handwritten digit {title}",
)
HELD_OUT = (
  "the number {title}, written by hand",
  "a picture of a {title}",
  "a scan of the digit {title}",
  "a handwritten digit: {title}",
)
WORDS = "zero one two three four five six seven eight nine".split()


def get_config(arg: str = "unet") -> ConfigDict:
  parts = {"unet": unet, "autoencoder": autoencoder}
  if arg not in parts:
    raise ValueError(
      f"configs/quickstart.py has unet and autoencoder, got {arg!r}"
    )
  config = base.get_config()
  config.name = "digits"
  # XLA's convolutions use one core each, so a batch is split over two devices.
  config.cpu_devices = 2
  config.encode.size = config.sample.size = config.autoencoder.size = 8
  config.encode.tokens = 16
  config.train.dtype = "float32"
  config.train.log_every = 50
  config.train.keep = 1
  config.train.warmup = 50
  config.train.schedule = "cosine"
  return parts[arg](config)


def autoencoder(config: ConfigDict) -> ConfigDict:
  config.model.vae = ConfigDict(
    dict(
      channels=(32, 64),
      layers_per_block=1,
      groups=8,
      mid_attention=False,
    )
  )
  config.train.task = "autoencoder"
  config.train.folders = ("{workdir}/../catalogue",)
  config.train.steps = 400
  config.train.batch_size = 32
  config.train.lr = 4e-3
  config.train.ema_decay = 0.99
  config.train.checkpoint_every = 200
  config.train.preview_every = 400
  config.export.folder = "{workdir}/../vae"
  return config


def unet(config: ConfigDict) -> ConfigDict:
  config.catalogue.source = "{workdir}/source"
  config.catalogue.min_side = 8
  config.catalogue.records_per_shard = 512

  config.caption.name = "template"
  config.caption.templates = TEMPLATES
  config.caption.vocabulary = 640
  config.caption.flags.min_words = 1
  config.encode.caption = "caption_template"
  config.encode.batch_size = 128

  config.model.vae = "{workdir}/vae"
  config.model.tokenizer = "{workdir}/tokenizer"
  config.model.text = ConfigDict(
    dict(width=64, mlp=256, depth=2, heads=4, positions=16)
  )
  config.model.prediction = "v"
  config.model.unet = ConfigDict(
    dict(
      sample_size=4,
      channels=(64,),
      # The middle always has one, which is enough for one word.
      attention=(False,),
      linear_projection=True,
      layers_per_block=1,
      heads=4,
      source_width=64,
      groups=8,
    )
  )

  config.train.steps = 1000
  config.train.batch_size = 64
  config.train.lr = 2e-3
  config.train.ema_decay = 0.995
  config.train.ema_warmup = True
  config.train.checkpoint_every = 500
  config.train.preview_every = 500
  config.latent_diffusion.train_text = True
  config.latent_diffusion.stratified = True

  config.sample.prompts = tuple(f"a handwritten {word}" for word in WORDS)
  config.sample.each = 8
  config.sample.guidance = 2.0
  config.sample.batch_size = 100

  config.evaluate.batch_size = 100
  config.evaluate.recognise.each = 50
  config.evaluate.recognise.templates = HELD_OUT

  config.quickstart = ConfigDict()
  config.quickstart.autoencoder = "configs/quickstart.py:autoencoder"
  return config
