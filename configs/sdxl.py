# SPDX-License-Identifier: Apache-2.0
"""CommonCanvas-XL: the whole of SDXL but its text towers, from nothing.

"SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
arXiv 2307.01952, and mosaicml/diffusion's three SDXL configs: 600,000 steps at
256 pixels, 200,000 at 512, both on random crops, and 200,000 at 1,024 on aspect
buckets; AdamW at 1e-4 with 10,000 steps of warm-up in each stage, captions left
out one time in ten, for which the text is zeros. Batches are not published
there; 2,048 stands here for the first two stages (as Anyscale has it for its
first) and 512 for the last.

The network is told the size of the original, where the crop begins and the size
of the picture (§2.2). These are the `size` and `crop` that `cc-jax encode`
stored of each image, height before width as diffusers has it, so that crops and
enlarged pictures can be asked away by asking for large originals, uncut.
So images below 256 pixels are enlarged in the first stage and not left out.

  cc-jax encode --config=configs/sdxl.py:256 --workdir=gs://BUCKET/xl-256
  cc-jax train  --config=configs/sdxl.py:256 --workdir=gs://BUCKET/xl-256
  cc-jax export --config=configs/sdxl.py:256 --workdir=gs://BUCKET/xl-256
  cc-jax train  --config=configs/sdxl.py:512 --workdir=gs://BUCKET/xl-512 \
    --config.train.init=gs://BUCKET/xl-256/export

Likewise for `:1024`, whose step is compiled once for each bucket's shape.

Cost: 2,567,463,684 weights; 1.283 TFLOP an image and step at 256 pixels, 4.766
at 512, 20.284 at 1,024. `cc-jax plan --config=configs/sdxl.py:1024
--config.slice=v4-128` says days and dollars.

What to expect: no losses or scores are published for these stages; the weights
of CommonCanvas-XL ("common-canvas-xl-c/unet") are what to compare with.
"""

import base
from ml_collections import ConfigDict

STEPS = {"256": 600_000, "512": 200_000, "1024": 200_000}


def get_config(arg: str = "256") -> ConfigDict:
  if arg not in STEPS:
    raise ValueError(f"configs/sdxl.py has 256, 512 and 1024, got {arg!r}")
  config = base.get_config()
  size = int(arg)
  config.name = "commoncatalog"
  config.catalogue.min_side = size
  config.encode.size = config.sample.size = size
  config.encode.crop = "random"

  config.model.unet = "SDXL"
  config.model.text = "sdxl/text_1"
  config.model.text_2 = "sdxl/text_2"
  config.model.vae = "sdxl/vae"
  config.model.tokenizer = "sdxl/tokenizer_1"
  config.model.tokenizer_2 = "sdxl/tokenizer_2"
  config.model.zero_empty = True

  config.train.steps = STEPS[arg]
  config.train.remat = "full"
  config.train.mesh.fsdp = 4
  if arg == "256":
    config.catalogue.min_side = 128
    config.encode.enlarge = True
  if arg == "1024":
    config.encode.buckets = True
    config.train.batch_size = 512
  # Images are encoded in the step as middle squares only.
  naive, own, before, *rest = config.ablation
  config.ablation = (
    f"{naive} encode.crop=centre encode.buckets=false",
    own,
    f"{before} encode.crop=random encode.buckets={config.encode.buckets}",
    *rest,
  )
  return config
