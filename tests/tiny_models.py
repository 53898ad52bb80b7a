# SPDX-License-Identifier: Apache-2.0
"""A small config of each kind of network, for tests of what serves all."""

from cc_jax.models import (
  autoencoder,
  blip2,
  clip,
  clip_dual,
  clip_vision,
  discriminator,
  dit,
  inception,
  llama,
  llava,
  lpips,
  opt,
  pixart,
  prior,
  t5,
  unet,
  vqgan,
)

OPT = opt.Config(
  vocabulary=50, width=16, mlp=24, depth=2, heads=2, positions=24
)
LLAMA = llama.Config(vocabulary=50, width=16, mlp=24, depth=2, heads=2)
CLIP_TEXT = clip.TextConfig(
  vocabulary=50, width=16, mlp=24, depth=2, heads=2, positions=8
)
CLIP_VISION = clip_vision.VisionConfig(
  width=16, mlp=24, depth=2, heads=2, image_size=8, patch=4
)
TINY = {
  "unet": unet.Config(
    channels=(8, 16),
    attention=(False, True),
    layers_per_block=1,
    heads=2,
    groups=4,
    source_width=12,
  ),
  "autoencoder": autoencoder.Config(channels=(8, 16), groups=4),
  "clip_text": CLIP_TEXT,
  "clip_vision": CLIP_VISION,
  "clip": clip_dual.Config(CLIP_TEXT, CLIP_VISION, projection=12),
  "vqgan": vqgan.Config(
    channels=(8, 16),
    attention=(False, True),
    groups=4,
    codebook_size=20,
    codebook_width=6,
    eps=1e-5,
  ),
  "discriminator": discriminator.Config(channels=4, depth=2),
  "dit": dit.Config(sample_size=8, heads=2, head_width=8, depth=2, classes=5),
  "pixart": pixart.Config(
    sample_size=8, heads=2, head_width=12, depth=2, caption_width=10
  ),
  "lpips": lpips.Config(channels=(4, 4, 6, 8, 8)),
  "inception": inception.Config(classes=9, divisor=16),
  "t5": t5.Config(
    vocabulary=50, width=16, mlp=24, depth=2, heads=3, head_width=4
  ),
  "opt": OPT,
  "llama": LLAMA,
  "blip2": blip2.Config(
    blip2.VisionConfig(
      width=12, mlp=24, depth=2, heads=2, image_size=8, patch=4
    ),
    blip2.QFormerConfig(width=8, mlp=12, depth=2, heads=2, source_width=12),
    OPT,
    queries=3,
  ),
  "llava": llava.Config(CLIP_VISION, LLAMA, image_token=49),
  "prior": prior.Config(
    vocabulary=50, width=16, depth=2, heads=2, positions=9, condition=12
  ),
}
