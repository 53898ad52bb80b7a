# SPDX-License-Identifier: Apache-2.0
"""Speed on this machine, nothing to be read or downloaded.

  cc-jax bench --config=configs/bench.py:forward --workdir=runs/bench

measures the networks of Stable Diffusion 2 one by one, forward and backward,
beside diffusers' and transformers' in torch on the same random weights: the
U-Net at 32 x 32 latents, the autoencoder's encoder at 256 pixels and the text
tower. `:train` takes the train step of a small U-Net (batches of 8, float32,
AdamW, clipping and EMA) in turn with the same one in torch. `:caption` and
`:beam` write captions of 20 tokens for 16 images with a small BLIP-2, greedily
and with five beams, beside transformers' `generate`. `:prior` writes the 256
codes of 4 images with a prior of CLIP-GEN of 8 blocks and width 512, beside a
loop in torch that runs the whole prefix each time. `:loader` measures the
loader on made-up records of SD2 at 256 pixels.

  cc-jax bench --config=configs/bench.py:ablation --workdir=runs/bench \
    --config.ablate=true

builds up the speed of a whole small train step of 64 pixels (an autoencoder, a
text tower, a U-Net of 51 M weights, float32, batches of 8) from the naive one
to ours, see `ablation` in configs/base.py. Spreading needs several devices: two
of a CPU by `--config.cpu_devices=2`.

On a GPU `:sd2_256` and `:sd2_512` take the whole step of SD2's U-Net in
bfloat16 beside diffusers' under torch.compile, channels last. Both have their
weights there at once, so neither may take all memory beforehand:

  XLA_PYTHON_CLIENT_PREALLOCATE=false cc-jax bench \
    --config=configs/bench.py:sd2_256 --workdir=runs/bench
"""

import base
from ml_collections import ConfigDict

# Images of a step, which fit 80 GB with torch's beside ours.
BATCH = {"sd2_256": 64, "sd2_512": 16}
SMALL = dict(
  channels=(64, 128, 256),
  attention=(False, True, True),
  heads=(2, 4, 8),
  source_width=256,
  linear_projection=True,
)

# The latents have 16 x 16 pixels.
VAE = dict(channels=(64, 128, 256), layers_per_block=2)
TEXT = dict(width=256, mlp=1024, depth=6, heads=4)


def get_config(arg: str = "forward") -> ConfigDict:
  args = ("forward", "train", "loader", "caption", "beam", "prior", "ablation")
  args += (*BATCH,)
  if arg not in args:
    raise ValueError(f"configs/bench.py has {', '.join(args)}, got {arg!r}")
  config = base.get_config()
  config.bench.steps = 0
  if arg == "loader":
    return config
  config.bench.loader_seconds = 0.0
  if arg == "ablation":
    config.bench.steps = 7
    config.encode.size = 64
    config.model.vae = ConfigDict(VAE)
    config.model.text = ConfigDict(TEXT)
    config.model.unet = ConfigDict(SMALL | dict(channels=(128, 256, 320)))
    config.train.folders = ()
    config.train.batch_size = 8
    config.train.dtype = "float32"
    return config
  config.bench.compare = "torch"
  if arg == "forward":
    config.bench.networks = ("unet", "vae", "text")
  elif arg in ("caption", "beam"):
    config.bench.caption.captioner = "blip2"
    config.bench.caption.decoding = "greedy" if arg == "caption" else "beam"
  elif arg == "prior":
    config.bench.repeats = 1  # One of torch takes minutes.
    config.bench.prior.batch_size = 4
    config.bench.prior.update(dict(width=512, depth=8, heads=8))
  else:
    config.bench.steps = 20
    # Made-up latents.
    config.train.folders = ()
    config.model.vae = "SD"
    config.train.batch_size = BATCH.get(arg, 8)
    if arg == "train":
      config.model.unet = ConfigDict(SMALL)
      config.train.dtype = "float32"
    else:
      config.encode.size = int(arg.removeprefix("sd2_"))
      config.bench.channels_last = config.bench.torch_compile = True
  return config
