# SPDX-License-Identifier: Apache-2.0
"""CLIP-GEN at 256 pixels: text to image, with no text in training.

"CLIP-GEN", arXiv 2203.00386; what the paper does not say is as in HFAiLab's
implementation of it and in taming-transformers. The parts, in order:

  P=configs/clipgen.py R=runs/clipgen
  cc-jax catalogue --config=$P:prior  --workdir=$R  # a source, as elsewhere
  cc-jax train     --config=$P:vqgan  --workdir=$R/vqgan
  cc-jax export    --config=$P:vqgan  --workdir=$R/vqgan
  cc-jax encode    --config=$P:prior  --workdir=$R
  cc-jax train     --config=$P:prior  --workdir=$R
  cc-jax sample    --config=$P:prior  --workdir=$R
  cc-jax export    --config=$P:prior  --workdir=$R

A VQGAN of others needs no first part: --config.model.vqgan and
--config.encode.vqgan may be taming's or HFAiLab's file. CLIP is OpenAI's
ViT-B/32; `:clip` trains small towers on captioned images where there is none.

`:vqgan`: Adam with beta (0.5, 0.9) at 4.5e-6 times the batch, no decay; L1 and
LPIPS, the discriminator after 250,000 steps with 0.8 times the adaptive weight,
beta 0.25 on the codebook's term. `:prior`: GPT-2 medium, AdamW with beta
(0.9, 0.95), decay 0.01 of matrices, 5e-4 times batch / 256, 20 of 200 epochs of
warm-up, cosine to 0, dropout 0.1 (but of attention's weights); `:large` is
GPT-2 large. Noise, dropped conditions and corrupted codes are off, as
published. Epochs are those of MS-COCO's 118,287 images: --config.train.steps
and .warmup for others. The prior's weights are split over four devices each; on
other numbers than multiples of four, set --config.train.mesh.fsdp, to 1 on one.
"""

import base
from ml_collections import ConfigDict

IMAGES = 118_287  # MS-COCO's 2017 training set.
LPIPS = "lpips"  # A folder with its two files; models/lpips.py says from where.


def get_config(arg: str = "prior") -> ConfigDict:
  parts = {"prior": prior, "large": large, "vqgan": vqgan, "clip": clip}
  if arg not in parts:
    raise ValueError(
      f"configs/clipgen.py has prior, large, vqgan and clip, got {arg!r}"
    )
  config = base.get_config()
  config.name = "images"
  config.model.clip = "clip-vit-b32"
  config.model.vqgan = "{workdir}/vqgan/export"
  config.model.tokenizer = "openai/clip-vit-base-patch32"
  return parts[arg](config)


def vqgan(config: ConfigDict) -> ConfigDict:
  config.model.vqgan = "F16_16384"
  config.train.task = "vqgan"
  config.train.folders = ("{workdir}/../catalogue",)
  config.train.batch_size = 64
  config.train.steps = 1_000_000
  config.train.lr = 4.5e-6 * config.train.batch_size
  config.train.warmup = 0
  config.train.b1 = 0.5
  config.train.b2 = 0.9
  config.train.weight_decay = 0.0
  config.train.clip = 0.0
  config.train.dtype = "float32"
  config.autoencoder.lpips_weight = 1.0
  config.autoencoder.lpips = LPIPS
  config.autoencoder.gan_weight = 0.8
  config.autoencoder.gan_start = 250_000
  return config


def prior(config: ConfigDict) -> ConfigDict:
  config.encode.captions = ""
  config.encode.latents = False
  config.encode.vqgan = config.model.vqgan
  config.encode.clip = config.model.clip
  config.model.prior = "MEDIUM"
  config.train.task = "prior"
  config.train.batch_size = 256
  epoch = IMAGES // config.train.batch_size
  config.train.steps = 200 * epoch
  config.train.warmup = 20 * epoch
  config.train.schedule = "cosine"
  config.train.lr = 5e-4 * config.train.batch_size / 256
  config.train.b2 = 0.95
  config.train.clip = 0.0
  config.train.remat = "full"  # Faster on a TPU than others, and smaller.
  config.train.mesh.fsdp = 4
  config.prior.dropout = 0.1
  config.sample.guidance = 1.0
  # HFAiLab's demo draws 64 and shows the best 8.
  config.sample.candidates = 8
  config.sample.batch_size = 64
  return config


def large(config: ConfigDict) -> ConfigDict:
  config = prior(config)
  config.model.prior = "LARGE"
  return config


def clip(config: ConfigDict) -> ConfigDict:
  config.model.tokenizer = "{workdir}/../tokenizer"
  config.model.clip = ConfigDict(
    dict(
      projection=256,
      text=dict(width=256, mlp=1024, depth=6, heads=4, positions=77),
      vision=dict(
        width=384, mlp=1536, depth=8, heads=6, image_size=128, patch=16
      ),
    )
  )
  config.train.task = "contrastive"
  config.train.folders = ("{workdir}/../catalogue", "{workdir}/../captions")
  config.train.batch_size = 1024
  config.train.steps = 20_000
  config.train.lr = 1e-3
  config.train.warmup = 1000
  config.train.schedule = "cosine"
  config.train.weight_decay = 0.1
  config.train.b2 = 0.98
  config.train.preview_every = 0
  return config
