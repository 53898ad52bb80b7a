# SPDX-License-Identifier: Apache-2.0
"""CommonCanvas-L: SDXL's U-Net with SD2's text tower, from nothing.

The paper's largest model (arXiv 2310.16825, §5.2 and §6): SD2 is too small for
the data, so the body of SDXL's U-Net takes its place, with 1,024 channels of
text and without micro-conditions, on the latents of SDXL's autoencoder. Its
numbers of steps and batches are not published; those of CommonCanvas-S stand
here (configs/sd2.py), with our clipping, decay and average from the start.

  cc-jax train --config=configs/common_canvas_l.py:256 \
    --workdir=gs://BUCKET/l-256
  cc-jax export --config=configs/common_canvas_l.py:256 \
    --workdir=gs://BUCKET/l-256
  cc-jax train --config=configs/common_canvas_l.py:512 \
    --workdir=gs://BUCKET/l-512 --config.train.init=gs://BUCKET/l-256/export

The latents are of another autoencoder than SD2's, so `cc-jax encode` makes them
anew with this config. Float32 weights, both moments and the average are 38 GB:
more than a v4 chip has, hence split over four (`mesh.fsdp`).

Cost: 2,391,824,644 weights; 1.206 TFLOP an image and step at 256 pixels, 4.689
at 512, 2.2 and 1.9 times SD2's. `cc-jax plan
--config=configs/common_canvas_l.py:256 --config.slice=v4-128` says days and
dollars.

What to expect: raters preferred L-NC to SD2 about as often as not (§6.3).
"""

import base
from ml_collections import ConfigDict

STEPS = {"256": 550_000, "512": 850_000}


def get_config(arg: str = "256") -> ConfigDict:
  if arg not in STEPS:
    raise ValueError(f"configs/common_canvas_l.py has 256 and 512, got {arg!r}")
  config = base.get_config()
  size = int(arg)
  config.name = "commoncatalog"
  config.catalogue.min_side = size
  config.encode.size = config.sample.size = size
  config.model.unet = "COMMON_CANVAS_L"
  config.model.vae = "sdxl/vae"
  config.train.steps = STEPS[arg]
  config.train.remat = "full"
  config.train.mesh.fsdp = 4
  return config
