# SPDX-License-Identifier: Apache-2.0
"""Photographs at 64 pixels on two CPU cores, or on any one accelerator.

3,409 photographs of clothes (CC0 1.0, github.com/alexeygrigorev/
clothing-dataset-small) in ten classes, each with its class as title. Any other
folder of images does as well, if it has a metadata.jsonl that states a title
and a licence for each: --config.catalogue.source=FOLDER.

  SMALL=configs/clothing.py:autoencoder  TEXT=configs/clothing.py:unet
  RUN=runs/clothing
  cc-jax catalogue --config=$TEXT  --workdir=$RUN
  cc-jax caption   --config=$TEXT  --workdir=$RUN
  cc-jax train     --config=$SMALL --workdir=$RUN/autoencoder
  cc-jax export    --config=$SMALL --workdir=$RUN/autoencoder
  cc-jax encode    --config=$TEXT  --workdir=$RUN
  cc-jax train     --config=$TEXT  --workdir=$RUN
  cc-jax sample    --config=$TEXT  --workdir=$RUN
  cc-jax evaluate  --config=$TEXT  --workdir=$RUN
  cc-jax export    --config=$TEXT  --workdir=$RUN

An autoencoder (64 pixels to 16 x 16 latents of 4 channels), then a U-Net and a
text tower trained together on captions made of the titles.

Seen on two cores that others used too: catalogue and captions 4 seconds; the
autoencoder's 1,600 steps 6 minutes, encoding 13 seconds. More steps are
--config.train.steps=N.

`:pixart` is PixArt-alpha on the same latents: its first stage on ten classes
(`:pixel`), its second on captions, from what the first has learned. After the
first four commands:

  P=configs/clothing.py
  cc-jax encode   --config=$P:pixart --workdir=$RUN
  cc-jax train    --config=$P:pixel  --workdir=$RUN/pixel
  cc-jax export   --config=$P:pixel  --workdir=$RUN/pixel
  cc-jax train    --config=$P:pixart --workdir=$RUN
  cc-jax sample   --config=$P:pixart --workdir=$RUN
  cc-jax evaluate --config=$P:pixart --workdir=$RUN
  cc-jax export   --config=$P:pixart --workdir=$RUN

Its two stages took 13 and 10 minutes there; README.md has what came of it.

`:clipgen` is CLIP-GEN: two towers of a CLIP (`:clip`) and a VQGAN (`:vqgan`),
then a prior that never reads a caption. After the first two commands:

  C=configs/clothing.py
  for part in clip vqgan; do
    cc-jax train    --config=$C:$part --workdir=$RUN/$part
    cc-jax evaluate --config=$C:$part --workdir=$RUN/$part
    cc-jax export   --config=$C:$part --workdir=$RUN/$part
  done
  cc-jax encode   --config=$C:clipgen --workdir=$RUN/clipgen
  cc-jax train    --config=$C:clipgen --workdir=$RUN/clipgen
  cc-jax sample   --config=$C:clipgen --workdir=$RUN/clipgen
  cc-jax evaluate --config=$C:clipgen --workdir=$RUN/clipgen
  cc-jax export   --config=$C:clipgen --workdir=$RUN/clipgen

CLIP and VQGAN took 8 and 12 minutes beside the tests, the prior 105 beside a
compiler; README.md has what came of it.
"""

import base
from ml_collections import ConfigDict

TEMPLATES = (
  "a photo of a {title}",
  "a photo of {title}",
  "a picture of a {title}, seen from the front",
  "clothes: {title}",
)
# Of both autoencoders: 64 pixels to 16 x 16.
LEVELS = dict(
  channels=(16, 32, 64), layers_per_block=1, groups=8, mid_attention=False
)
CLASSES = "dress hat longsleeve pants shirt shoes shorts t-shirt".split()


def get_config(arg: str = "unet") -> ConfigDict:
  parts = {
    "unet": unet,
    "autoencoder": autoencoder,
    "pixart": pixart,
    "pixel": pixel,
    "clipgen": clipgen,
    "clip": clip,
    "vqgan": vqgan,
  }
  if arg not in parts:
    *names, last = parts
    raise ValueError(
      f"configs/clothing.py has {', '.join(names)} and {last}, got {arg!r}"
    )
  config = base.get_config()
  config.name = "clothing"
  # XLA's convolutions use one core each, so a batch is split over two devices.
  config.cpu_devices = 2
  config.encode.size = config.sample.size = config.autoencoder.size = 64
  config.encode.tokens = 16
  config.train.dtype = "float32"
  config.train.log_every = 20
  config.train.keep = 1
  config.train.schedule = "cosine"
  return parts[arg](config)


def autoencoder(config: ConfigDict) -> ConfigDict:
  config.model.vae = ConfigDict(dict(latent_channels=4, **LEVELS))
  config.train.task = "autoencoder"
  reconstruction(config)
  config.train.warmup = 50
  config.train.checkpoint_every = 400
  config.train.preview_every = 800
  config.export.folder = "{workdir}/../vae"
  return config


def unet(config: ConfigDict) -> ConfigDict:
  images(config)
  config.model.text = ConfigDict(
    dict(width=64, mlp=256, depth=2, heads=4, positions=16)
  )
  config.model.unet = ConfigDict(
    dict(
      channels=(32, 64, 128),
      attention=(False, True, True),
      linear_projection=True,
      layers_per_block=1,
      heads=(1, 2, 4),
      source_width=64,
      groups=16,
    )
  )
  config.latent_diffusion.train_text = True
  return config


def pixart(config: ConfigDict) -> ConfigDict:
  """Text, from the weights of the classes' stage."""
  images(config)
  transformer(config, caption_width=64)
  config.encode.label = "title"
  config.model.text = ConfigDict(
    dict(width=64, mlp=128, depth=2, heads=4, head_width=16)
  )
  config.latent_diffusion.train_text = True
  config.train.init = "{workdir}/pixel/export"
  config.train.steps = 1200
  config.sample.guidance = 4.0
  return config


def pixel(config: ConfigDict) -> ConfigDict:
  """A DiT that knows the ten classes."""
  below(config)
  transformer(config, classes=10, frequency_shift=0)
  config.model.text = config.model.tokenizer = ""
  config.sample.prompts = tuple(CLASSES)
  config.evaluate.recognise.templates = ("{title}",)
  return config


def clipgen(config: ConfigDict) -> ConfigDict:
  """A prior that has seen no caption, asked with captions."""
  below(config)
  config.encode.images = "{workdir}/../catalogue"
  config.encode.captions = ""
  config.encode.latents = False
  config.encode.vqgan = config.model.vqgan = "{workdir}/../vqgan/export"
  config.encode.clip = config.model.clip = "{workdir}/../clip/export"
  config.model.prior = ConfigDict(
    dict(width=128, depth=4, heads=4, positions=256)
  )
  config.train.task = "prior"
  config.train.folders = ("{workdir}/latents",)
  config.train.steps = 4000
  config.train.batch_size = 16
  config.train.b2 = 0.95
  config.prior.dropout = 0.1
  config.prior.corrupt = 0.1
  config.prior.noise = 0.5
  config.prior.drop_condition = 0.1
  config.sample.gap = "nearest"
  config.sample.candidates = 8
  config.sample.batch_size = 64
  config.evaluate.recognise.each = 10
  config.evaluate.recognise.also = ("candidates=1", "candidates=1,gap=none")
  return config


def clip(config: ConfigDict) -> ConfigDict:
  """Both towers, on the photographs and their captions."""
  below(config)
  config.model.clip = ConfigDict(
    dict(
      projection=64,
      text=dict(width=64, mlp=128, depth=2, heads=4, positions=16),
      vision=dict(width=128, mlp=256, depth=4, heads=4, image_size=64, patch=8),
    )
  )
  config.evaluate.recognise.each = 0
  config.train.task = "contrastive"
  config.train.folders = ("{workdir}/../catalogue", "{workdir}/../captions")
  config.train.steps = 500
  config.train.batch_size = 128
  config.train.preview_every = 0
  return config


def vqgan(config: ConfigDict) -> ConfigDict:
  """Codes of 4 x 4 pixels, against a discriminator in the last quarter."""
  below(config)
  config.model.vqgan = ConfigDict(
    dict(
      attention=(False,) * 3,
      latent_channels=16,
      codebook_size=256,
      sample_size=64,
      **LEVELS,
    )
  )
  config.model.discriminator = ConfigDict(dict(channels=32, depth=2))
  config.evaluate.recognise.each = 0
  config.train.task = "vqgan"
  reconstruction(config)
  config.train.b1 = 0.5
  config.train.b2 = 0.9
  config.train.weight_decay = 0.0
  config.autoencoder.gan_weight = 0.1
  config.autoencoder.gan_start = 1200
  config.vqgan.ema_decay = 0.95
  config.vqgan.restart = 0.5
  return config


def reconstruction(config: ConfigDict) -> None:
  """How both autoencoders are trained: small batches, for many steps."""
  config.train.folders = ("{workdir}/../catalogue",)
  config.train.steps = 1600
  config.train.batch_size = 8
  config.train.lr = 2e-3
  config.train.ema_decay = 0.99


def below(config: ConfigDict) -> None:
  """A part in a folder of its own, below what all parts read."""
  images(config)
  config.model.vae = "{workdir}/../vae"
  config.model.tokenizer = "{workdir}/../tokenizer"
  config.model.classes = "{workdir}/../classes.txt"
  config.train.folders = ("{workdir}/../latents",)
  config.evaluate.images = "{workdir}/../catalogue"
  config.sample.gap_captions = "{workdir}/../captions"


def transformer(config: ConfigDict, **fields: int) -> None:
  """What PixArt-alpha and DiT share, in small."""
  config.model.unet = ""
  config.model.transformer = ConfigDict(
    dict(
      sample_size=16,
      out_channels=8,
      heads=4,
      head_width=36,
      depth=6,
      eps=1e-6,
      **fields,
    )
  )
  config.model.schedule.kind = "linear"
  config.model.schedule.beta_start = 0.0001
  config.model.schedule.beta_end = 0.02
  # So small a network learns v in fewer steps than the paper's eps.
  config.model.prediction = "v"
  config.train.steps = 2000
  config.train.batch_size = 32
  config.train.lr = 2e-3
  config.train.weight_decay = 0.03
  config.train.checkpoint_every = 500
  config.train.preview_every = 0


def images(config: ConfigDict) -> None:
  """The photographs and their captions; how a denoiser is trained."""
  config.catalogue.source = "../shared/data/clothing"
  config.catalogue.min_side = 64
  config.catalogue.records_per_shard = 1024

  config.caption.templates = TEMPLATES
  config.caption.vocabulary = 640
  config.caption.flags.min_words = 1
  config.encode.batch_size = 32

  config.model.vae = "{workdir}/vae"
  config.model.tokenizer = "{workdir}/tokenizer"
  config.train.steps = 800
  config.train.batch_size = 64
  config.train.lr = 1e-3
  config.train.warmup = 50
  config.train.ema_decay = 0.995
  config.train.ema_warmup = True
  config.train.checkpoint_every = 200
  config.train.preview_every = 400
  config.latent_diffusion.stratified = True

  config.sample.prompts = tuple(f"a photo of a {name}" for name in CLASSES)
  config.sample.each = 8
  config.sample.guidance = 2.0
  config.sample.batch_size = 32
  config.evaluate.batch_size = 32
  # Of a support vector machine, which tells 59 % of held-out photographs.
  config.evaluate.recognise.each = 20
  config.evaluate.recognise.side = 16
