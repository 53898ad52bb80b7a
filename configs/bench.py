# SPDX-License-Identifier: Apache-2.0
"""Speed on this machine, nothing to be read or downloaded.

  cc-jax bench --config=configs/bench.py:forward --workdir=runs/bench

measures the networks of Stable Diffusion 2 one by one, forward and backward,
beside diffusers' and transformers' in torch on the same random weights: the
U-Net at 32 x 32 latents, the autoencoder's encoder at 256 pixels and the text
tower. `:caption` and `:beam` write captions of 20 tokens for 16 images with a
small BLIP-2, greedily and with five beams, beside transformers' `generate`.
`:loader` measures the loader on made-up records of SD2 at 256 pixels.
"""

import base
from ml_collections import ConfigDict


def get_config(arg: str = "forward") -> ConfigDict:
  if arg not in ("forward", "loader", "caption", "beam"):
    raise ValueError(
      f"configs/bench.py has forward, loader, caption and beam, got {arg!r}"
    )
  config = base.get_config()
  config.bench.steps = 0
  if arg == "forward":
    config.bench.loader_seconds = 0.0
    config.bench.networks = ("unet", "vae", "text")
    config.bench.compare = "torch"
  if arg in ("caption", "beam"):
    config.bench.loader_seconds = 0.0
    config.bench.compare = "torch"
    config.bench.caption.captioner = "blip2"
    config.bench.caption.decoding = "greedy" if arg == "caption" else "beam"
  return config
