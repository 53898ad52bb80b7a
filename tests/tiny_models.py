# SPDX-License-Identifier: Apache-2.0
"""A small config of each kind of network, for tests of what serves all."""

from cc_jax.models import autoencoder, clip, dit, lpips, pixart, t5, unet

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
  "clip_text": clip.TextConfig(
    vocabulary=50, width=16, mlp=24, depth=2, heads=2, positions=8
  ),
  "dit": dit.Config(sample_size=8, heads=2, head_width=8, depth=2, classes=5),
  "pixart": pixart.Config(
    sample_size=8, heads=2, head_width=12, depth=2, caption_width=10
  ),
  "lpips": lpips.Config(channels=(4, 4, 6, 8, 8)),
  "t5": t5.Config(
    vocabulary=50, width=16, mlp=24, depth=2, heads=3, head_width=4
  ),
}
