# SPDX-License-Identifier: Apache-2.0
"""CommonCanvas-S: SD2's U-Net from nothing, on Creative-Commons images.

"CommonCanvas: Open Diffusion Models Trained on Creative-Commons Images",
arXiv 2310.16825, §6, and mosaicml/diffusion's SD-2-base configs: epsilon
prediction, AdamW at 1e-4 with 10,000 steps of warm-up and then constant,
batches of 2,048, 550,000 steps at 256 pixels and 850,000 more at 512. `256` and
`512` are ours: bfloat16, gradients clipped to 1, norms and biases not decayed,
and an average of the weights (EMA) from the first step on, which costs little
here since weights, moments and average are split over four chips each
(`mesh.fsdp`). `paper` and `paper-512` are the published numbers: no clipping,
all weights decayed, an average of the last 50,000 steps only. Its float16 is
bfloat16 here, and captions are left out anew in each step, where it drew that
once for all.

  cc-jax train --config=configs/sd2.py:256 --workdir=gs://BUCKET/sd2-256
  cc-jax export --config=configs/sd2.py:256 --workdir=gs://BUCKET/sd2-256
  cc-jax train --config=configs/sd2.py:512 --workdir=gs://BUCKET/sd2-512 \
    --config.train.init=gs://BUCKET/sd2-256/export

`launch/common_canvas.sh` has all the steps before and after. On other numbers
of devices than multiples of four, set --config.train.mesh.fsdp, to 1 on one.

Cost: 865,910,724 weights; 0.543 TFLOP an image and step at 256 pixels, 2.413 at
512, so 612 and 4,201 EFLOP for the two stages. `cc-jax plan
--config=configs/sd2.py:256 --config.slice=v4-128` says days and dollars.

What to expect: the published run (on LAION) ended at a loss of about 0.132 at
256 pixels and 0.113 at 512. Raters preferred S-C to SD2 in 37 % of pairs and
S-NC in 38 % (§6.3). Ten million images did as well as a billion (§5.2).
"""

import base
from ml_collections import ConfigDict

STEPS = {256: 550_000, 512: 850_000}
SIZES = {"256": 256, "512": 512, "paper": 256, "paper-512": 512}


def get_config(arg: str = "256") -> ConfigDict:
  if arg not in SIZES:
    raise ValueError(
      f"configs/sd2.py has 256, 512, paper and paper-512, got {arg!r}"
    )
  config = base.get_config()
  size = SIZES[arg]
  config.name = "commoncatalog"
  config.catalogue.min_side = size
  config.encode.size = config.sample.size = size
  config.train.steps = STEPS[size]
  config.train.mesh.fsdp = 4
  first, *rest = config.ablation
  config.ablation = (
    f"{first} train.mesh.fsdp=1",
    *rest,
    "weights split over four: train.mesh.fsdp=4",
  )
  if arg.startswith("paper"):
    config.train.clip = 0.0
    config.train.decay = "all"
    # Until then the average is a copy: in the first stage there is none.
    config.train.ema_start = 800_000 if size == 512 else STEPS[size]
  return config
