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
  parts = {
    "unet": unet,
    "autoencoder": autoencoder,
    "clipgen": clipgen,
    "clip": clip,
    "vqgan": vqgan,
    "pixart": pixart,
    "pixel": pixel,
    "align": align,
    "scratch": scratch,
    "aesthetic": aesthetic,
  }
  if arg not in parts:
    *names, last = parts
    raise ValueError(
      f"configs/quickstart.py has {', '.join(names)} and {last}, got {arg!r}"
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
  config.quickstart = ConfigDict()
  config.quickstart.file = "configs/quickstart.py"
  config.quickstart.steps = ()
  config.quickstart.opens = (
    "opens in diffusers:\n"
    '    diffusers.DiffusionPipeline.from_pretrained("{workdir}/export")'
  )
  return parts[arg](config)


def autoencoder(config: ConfigDict) -> ConfigDict:
  config.model.vae = ConfigDict(
    dict(channels=(32, 64), layers_per_block=1, groups=8, mid_attention=False)
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


def images(config: ConfigDict) -> None:
  """The digits and their captions; how results are judged."""
  config.catalogue.source = "{workdir}/source"
  config.catalogue.min_side = 8
  config.catalogue.records_per_shard = 512

  config.caption.name = "template"
  config.caption.templates = TEMPLATES
  config.caption.vocabulary = 640
  config.caption.flags.min_words = 1
  config.encode.caption = "caption_template"
  config.encode.batch_size = 128

  config.model.tokenizer = "{workdir}/tokenizer"
  config.train.batch_size = 64
  config.train.ema_decay = 0.995
  config.train.ema_warmup = True
  config.latent_diffusion.stratified = True

  config.sample.prompts = tuple(f"a handwritten {word}" for word in WORDS)
  config.sample.each = 8
  config.sample.guidance = 2.0
  config.sample.batch_size = 100

  config.evaluate.batch_size = 100
  config.evaluate.recognise.each = 50
  config.evaluate.recognise.templates = HELD_OUT


def unet(config: ConfigDict) -> ConfigDict:
  images(config)
  config.model.vae = "{workdir}/vae"
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
  config.train.lr = 1e-3
  config.train.checkpoint_every = 500
  config.train.preview_every = 500
  config.latent_diffusion.train_text = True
  config.quickstart.steps = (
    "catalogue",
    "caption",
    # The autoencoder is a run of its own, with a config of its own.
    "train autoencoder",
    "export autoencoder",
    "encode",
    "train",
    "sample",
    "evaluate",
    "export",
  )
  return config


def clipgen(config: ConfigDict) -> ConfigDict:
  """CLIP-GEN: a prior that has never seen a caption, asked with captions."""
  images(config)
  config.encode.captions = ""
  config.encode.latents = False
  config.encode.vqgan = config.model.vqgan = "{workdir}/vqgan/export"
  config.encode.clip = config.model.clip = "{workdir}/clip/export"
  config.model.prior = ConfigDict(
    dict(width=96, depth=4, heads=4, positions=16)
  )
  config.train.task = "prior"
  config.train.steps = 1500
  config.train.batch_size = 64
  config.train.lr = 1e-3
  config.train.b2 = 0.95
  config.train.ema_decay = 0.99
  config.train.ema_warmup = True
  config.train.checkpoint_every = 500
  config.train.preview_every = 500
  config.prior.corrupt = 0.1
  config.prior.noise = 0.5
  config.prior.drop_condition = 0.1
  config.sample.top_k = 0
  config.sample.gap_captions = "{workdir}/captions"
  config.sample.gap = "nearest"  # Captions lie elsewhere than images do.
  config.evaluate.recognise.also = (
    "candidates=8",
    "gap=shift",
    "gap=shift,candidates=8",
    "gap=none",
    "gap=none,candidates=8",
    "guidance=1.0",
    "guidance=1.0,gap=shift",
    "guidance=1.0,gap=none",
    "guidance=1.0,gap=none,candidates=8",
  )
  config.quickstart.steps = (
    "catalogue",
    "caption",
    "train clip",
    "evaluate clip",
    "export clip",
    "train vqgan",
    "evaluate vqgan",
    "export vqgan",
    "encode",
    "train",
    "sample",
    "evaluate",
    "export",
  )
  config.quickstart.opens = "prior, CLIP and VQGAN, each by itself"
  return config


def transformer(config: ConfigDict, **fields: int) -> None:
  """What PixArt-alpha and DiT share, in small: shape, objective, optimiser."""
  config.model.unet = ""
  config.model.transformer = ConfigDict(
    dict(
      sample_size=4,
      patch=1,
      out_channels=8,
      heads=4,
      head_width=24,
      depth=4,
      eps=1e-6,
      **fields,
    )
  )
  config.model.schedule.kind = "linear"
  config.model.schedule.beta_start = 0.0001
  config.model.schedule.beta_end = 0.02
  # So small a network learns v in fewer steps than the paper's eps.
  config.model.prediction = "v"
  config.train.lr = 2e-3
  config.train.eps = 1e-10
  config.train.weight_decay = 0.03
  config.train.checkpoint_every = 100
  config.train.preview_every = 0


def pixart(config: ConfigDict) -> ConfigDict:
  """All three stages of PixArt-alpha, and the second without the first."""
  images(config)
  config.model.vae = "{workdir}/vae"
  config.encode.label = "title"
  text(config)
  config.quickstart.steps = (
    "catalogue",
    "caption",
    "train autoencoder",
    "export autoencoder",
    "encode",
    "train pixel",
    "sample pixel",
    "evaluate pixel",
    "export pixel",
    "train align",
    "export align",
    "catalogue aesthetic",
    "caption aesthetic",
    "encode aesthetic",
    "train aesthetic",
    "sample aesthetic",
    "evaluate aesthetic",
    "export aesthetic",
    "train scratch",
    "curve",
  )
  config.quickstart.curve = ConfigDict(
    dict(align="from the pixel stage", scratch="from random weights")
  )
  config.quickstart.curve_title = (
    "Digits recognised after steps of text-image alignment"
  )
  return config


def above(config: ConfigDict) -> None:
  """A part reads what the whole has made, a folder above its own."""
  images(config)
  config.model.vae = "{workdir}/../vae"
  config.model.tokenizer = "{workdir}/../tokenizer"
  config.model.classes = "{workdir}/../classes.txt"
  config.train.folders = ("{workdir}/../latents",)
  config.evaluate.images = "{workdir}/../catalogue"
  config.sample.gap_captions = "{workdir}/../captions"


def clip(config: ConfigDict) -> ConfigDict:
  """Both towers of a CLIP, on captioned digits."""
  above(config)
  config.train.ema_decay = 0.99
  config.train.checkpoint_every = 500
  config.evaluate.recognise.each = 0
  config.model.clip = ConfigDict(
    dict(
      projection=32,
      text=dict(width=64, mlp=128, depth=2, heads=4, positions=16),
      vision=dict(width=64, mlp=128, depth=3, heads=4, image_size=8, patch=2),
    )
  )
  config.train.task = "contrastive"
  config.train.folders = ("{workdir}/../catalogue", "{workdir}/../captions")
  config.train.steps = 600
  config.train.batch_size = 128
  config.train.lr = 2e-3
  config.train.preview_every = 0
  return config


def vqgan(config: ConfigDict) -> ConfigDict:
  """Codes of 2 x 2 pixels, against a discriminator from the 500th step."""
  above(config)
  config.train.ema_decay = 0.99
  config.train.checkpoint_every = 500
  config.evaluate.recognise.each = 0
  config.model.vqgan = ConfigDict(
    dict(
      channels=(32, 64),
      attention=(False, False),
      layers_per_block=1,
      latent_channels=16,
      codebook_size=64,
      groups=8,
      mid_attention=False,
      sample_size=8,
    )
  )
  config.model.discriminator = ConfigDict(dict(channels=16, depth=1))
  config.train.task = "vqgan"
  config.train.folders = ("{workdir}/../catalogue",)
  config.train.steps = 800
  config.train.lr = 2e-3
  config.train.b1 = 0.5
  config.train.b2 = 0.9
  config.train.weight_decay = 0.0
  config.train.preview_every = 400
  config.autoencoder.gan_weight = 0.1
  config.autoencoder.gan_start = 500
  config.vqgan.ema_decay = 0.95
  config.vqgan.restart = 0.5
  return config


def pixel(config: ConfigDict) -> ConfigDict:
  """Stage 1: a DiT that knows the ten classes."""
  above(config)
  transformer(config, classes=10, frequency_shift=0)
  config.model.text = config.model.tokenizer = ""
  config.train.steps = 500
  config.train.checkpoint_every = 250
  config.sample.prompts = tuple(WORDS)
  config.evaluate.recognise.templates = ("{title}",)
  return config


def text(config: ConfigDict) -> None:
  """A PixArt, and a T5 that learns with it: here is none that has read."""
  transformer(config, caption_width=64)
  config.model.text = ConfigDict(
    dict(width=64, mlp=128, depth=2, heads=4, head_width=16)
  )
  config.latent_diffusion.train_text = True


def align(config: ConfigDict) -> ConfigDict:
  """Stage 2: captions, from the pixel stage's weights."""
  above(config)
  text(config)
  config.train.init = "{workdir}/../pixel/export"
  config.train.steps = 500
  config.train.checkpoint_every = 50
  config.train.keep = 20  # One more where a run was stopped and went on.
  config.evaluate.recognise.each = 20
  return config


def scratch(config: ConfigDict) -> ConfigDict:
  """Stage 2 without the first: the paper's ablation."""
  align(config)
  config.train.init = ""
  return config


def aesthetic(config: ConfigDict) -> ConfigDict:
  """Stage 3: the half of the digits with the most contrast."""
  above(config)
  text(config)
  config.catalogue.source = "{workdir}/../source"
  config.catalogue.filters = ("contrast>=0.79",)
  config.caption.vocabulary = 0
  config.train.folders = ("{workdir}/latents",)
  config.train.init = "{workdir}/../align/export"
  config.train.lr = 5e-4
  config.train.steps = 150
  config.train.checkpoint_every = 150
  config.sample.picture = "{workdir}/../samples.png"
  config.evaluate.metrics = "{workdir}/../metrics.json"
  config.export.folder = "{workdir}/../export"
  return config
