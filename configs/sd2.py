# SPDX-License-Identifier: Apache-2.0
"""CommonCanvas-S: SD2's U-Net from nothing, on Creative-Commons images.

"CommonCanvas: Open Diffusion Models Trained on Creative-Commons Images",
arXiv 2310.16825, §6, and mosaicml/diffusion's SD-2-base configs: epsilon
prediction, AdamW at 1e-4 with 10,000 steps of warm-up and then constant,
batches of 2,048, 550,000 steps at 256 pixels and 850,000 more at 512, EMA over
the last 50,000. Gradients are clipped here, and norms and biases not decayed:
`--config.train.clip=0 --config.train.decay=all` is the recipe to the letter.

  cc-jax train --config=configs/sd2.py:256 --workdir=gs://BUCKET/sd2-256
  cc-jax train --config=configs/sd2.py:512 --workdir=gs://BUCKET/sd2-512 \
    --config.train.init=sd2-256-export   # a local copy, on every host
"""

import base
from ml_collections import ConfigDict

STEPS = {"256": 550_000, "512": 850_000}


def get_config(arg: str = "256") -> ConfigDict:
  if arg not in STEPS:
    raise ValueError(f"configs/sd2.py has 256 and 512, got {arg!r}")
  config = base.get_config()
  size = int(arg)
  config.name = "commoncatalog"
  config.catalogue.min_side = size
  config.encode.size = config.sample.size = size
  config.train.steps = STEPS[arg]
  if arg == "512":
    config.train.ema_start = 800_000
  return config
