# SPDX-License-Identifier: Apache-2.0
"""Latents of all aspect buckets as one shape: tokens, padded to the square's.

No bucket has more tokens than the square (data/buckets.py), so a transformer
over patches needs one program for all of them, where a U-Net needs one each:
"PixArt-alpha", arXiv 2310.00426, §3, for TPUs. It reads them by `on_tokens`;
`latent_diffusion.padded` asks for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Shaped
import numpy as np

from cc_jax.data import latents
from cc_jax.models import patches, pixart


def make(
  config: pixart.Config, count: int
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """A transform for the loader.

  Of each record it makes `latent_mean` and `latent_std`, where there is one,
  tokens [T P] with zeros behind them, and adds

    positions   float32 [T 2], of `patches.grid`; zeros behind
    token_mask  bool [T], false where a token is padding

  so that a loss is a mean over the true ones.

  Args:
    config: of the transformer, for its patches and positions.
    count: tokens of the square T.
  """
  patch = config.patch

  def transform(example: Mapping[str, Any]) -> dict[str, Any]:
    made = latents.shaped(example)
    height, width, _ = made["latent_mean"].shape
    for name in set(latents.FEATURES) & set(made):
      made[name] = pad(tokens(made[name], patch), count)
    places = patches.grid(
      height // patch,
      width // patch,
      base=config.sample_size // patch,
      scale=config.interpolation_scale,
    )
    made["positions"] = pad(places, count)
    made["token_mask"] = np.arange(count) < len(places)
    return made

  return transform


def tokens(
  latent: Shaped[np.ndarray, "H W C"], patch: int
) -> Shaped[np.ndarray, "T P"]:
  """As `patches.patchify`, of one latent and on the host.

  Raises:
    ValueError: height or width does not divide into patches.
  """
  H, W, C = latent.shape
  if H % patch or W % patch:
    raise ValueError(
      f"latents of {H} x {W} do not divide into patches of {patch} x {patch}; "
      "encode in buckets whose sides are multiples of both reductions"
    )
  x = latent.reshape(H // patch, patch, W // patch, patch, C)
  return x.swapaxes(1, 2).reshape(-1, patch * patch * C)


def pad(
  rows: Shaped[np.ndarray, "S P"], count: int
) -> Shaped[np.ndarray, "{count} P"]:
  """Zeros behind the rows, up to `count`.

  Raises:
    ValueError: there are more.
  """
  if len(rows) > count:
    raise ValueError(
      f"a bucket of {len(rows)} tokens, and the square has {count}; pad to the "
      "square of the size that was encoded"
    )
  return np.pad(rows, ((0, count - len(rows)), (0, 0)))
