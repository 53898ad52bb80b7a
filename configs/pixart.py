# SPDX-License-Identifier: Apache-2.0
"""PixArt-alpha in its stages, each from the export of the one before.

"PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic
Text-to-Image Synthesis", arXiv 2310.00426, §2.2 and table 4; what the paper
leaves open is as in its code.

  pixel           a DiT, conditioned on the classes of labelled images: 256
                  pixels, 300,000 steps of 1,024
  align           text, on dense captions: 256 pixels, 150,000 steps of 11,392
  aesthetic_256   fine images: 90,000 steps of 11,392
  aesthetic_512   100,000 steps of 2,560
  aesthetic_1024  all aspect ratios, 16,000 steps of 384

  P=configs/pixart.py W=gs://BUCKET/pixart
  cc-jax encode --config=$P:pixel --workdir=$W/pixel
  cc-jax train  --config=$P:pixel --workdir=$W/pixel
  cc-jax export --config=$P:pixel --workdir=$W/pixel
  cc-jax train  --config=$P:align --workdir=$W/align \
    --config.train.init=$W/pixel/export

`--config.encode.images` and `.captions` say where a catalogue is that several
stages share. On other numbers of devices than multiples of four, set
--config.train.mesh.fsdp, to 1 on one. Captions are LLaVA's, by the paper's
prompt:

  cc-jax caption --config=$P:align --workdir=$W/align

The learning rate of the paper is 2e-5 throughout; its code multiplies it by the
root of batch / 256, which is `train.lr_batch=256`. Weight decay is 0.03 in the
code, on all weights (`train.decay=all`). DiT's own weights would save the first
stage, and are CC-BY-NC: `train.init=dit-xl-2/transformer` is refused unless
`catalogue.collection` is "non-commercial".
"""

import base
from ml_collections import ConfigDict

# Size, steps, batch and days of one V100 of table 4.
STAGES = {
  "pixel": (256, 300_000, 128 * 8, 88),
  "align": (256, 150_000, 178 * 64, 672),
  "aesthetic_256": (256, 90_000, 178 * 64, 416),
  "aesthetic_512": (512, 100_000, 40 * 64, 320),
  "aesthetic_1024": (1024, 16_000, 12 * 32, 160),
}
# All of these together: 753 days of an A100, for 28,400 dollars.
A100_DAYS, DOLLARS = 753, 28_400
PROMPT = "Describe this image and its style in a very detailed manner"


def get_config(arg: str = "align") -> ConfigDict:
  if arg not in STAGES:
    *names, last = STAGES
    raise ValueError(
      f"configs/pixart.py has {', '.join(names)} and {last}, got {arg!r}"
    )
  size, steps, batch, days = STAGES[arg]
  config = base.get_config()
  config.name = f"pixart_{arg}"
  config.catalogue.min_side = size
  config.encode.size = config.sample.size = size
  config.encode.tokens = 120
  config.model.unet = ""
  config.model.vae = "sd-vae-ft-ema"
  config.model.schedule = ConfigDict(
    dict(
      kind="linear",
      beta_start=0.0001,
      beta_end=0.02,
      steps=1000,
      zero_snr=False,
    )
  )
  config.train.steps = steps
  config.train.batch_size = batch
  config.train.lr = 2e-5
  config.train.warmup = 1000
  config.train.eps = 1e-10
  config.train.weight_decay = 0.03
  config.train.clip = 0.01
  config.train.ema_decay = 0.9999
  # To write and read what "dots" keeps takes a TPU longer than to compute it
  # again, and it would not fit beside the paper's batches. Attention of 1,024
  # tokens and more is worth it.
  config.train.remat = "full" if size == 256 else "attention"
  config.train.mesh.fsdp = 4
  config.sample.guidance = 4.5
  share = days / sum(stage[-1] for stage in STAGES.values())
  config.plan.published.update(
    what="arXiv 2310.00426, table 4",
    chip="NVIDIA A100-SXM4-40GB",
    days=A100_DAYS * share,
    dollars=DOLLARS * share,
    # As NVIDIA rates it; the paper does not say what was drawn.
    watts=400.0,
  )
  if arg == "pixel":
    classes(config)
  else:
    captions(config, size)
  return config


def classes(config: ConfigDict) -> None:
  """Images whose title is their class."""
  config.encode.label = "title"
  config.encode.captions = ""
  config.model.text = config.model.tokenizer = ""
  config.model.transformer = ConfigDict(
    # As its authors compute it, and PixArt: diffusers' frequencies differ.
    dict(sample_size=32, out_channels=8, eps=1e-6, frequency_shift=0)
  )
  config.sample.prompts = ("cat", "dog")
  # Classes are read of what was encoded before.
  naive, own, _, *rest = config.ablation
  fields = naive.replace("latent_diffusion.from_images=true ", "")
  config.ablation = (fields, own, *rest)


def captions(config: ConfigDict, size: int) -> None:
  """Dense captions, of which T5's states are stored."""
  config.caption.captioner = "llava"
  config.caption.name = "llava"
  config.caption.prompt = PROMPT
  config.caption.length = 200
  config.encode.caption = "caption_llava"
  config.encode.text_states = True
  config.train.preview_every = 0  # A preview would need T5 beside the training.
  config.model.clean = True
  config.model.text = "t5-xxl"
  config.model.tokenizer = "t5-xxl/tokenizer"
  config.model.transformer = {256: "XL_256", 512: "XL_512", 1024: "XL_1024"}[
    size
  ]
  if size == 1024:
    # Frames of all aspect ratios, padded to one shape for one program.
    config.encode.buckets = True
    config.latent_diffusion.padded = True
  # The naive step has T5 in it, too, and squares.
  naive, own, before, *rest = config.ablation
  config.ablation = (
    f"{naive} encode.text_states=false encode.buckets=false "
    "latent_diffusion.padded=false",
    own,
    f"{before} encode.text_states=true encode.buckets={config.encode.buckets} "
    f"latent_diffusion.padded={config.latent_diffusion.padded}",
    *rest,
  )
