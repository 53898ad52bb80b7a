# SPDX-License-Identifier: Apache-2.0
"""Latents of aspect buckets as they are stored, and as networks take them."""

from collections.abc import Mapping
import math
from typing import Any

from jaxtyping import Shaped
import numpy as np

FEATURES = ("latent_mean", "latent_std")


def shaped(example: Mapping[str, Any]) -> dict[str, Any]:
  """A record whose latents are [H W C], as a transform of the loader.

  They are stored [T C], row by row, where buckets differ in shape; `bucket`
  says in which one this is. Others stay as they are.
  """
  made = dict(example)
  for name in set(FEATURES) & set(example):
    if example[name].ndim == 2:
      made[name] = to_map(example[name], example["bucket"])
  return made


def to_map(
  latent: Shaped[np.ndarray, "T C"], bucket: Any
) -> Shaped[np.ndarray, "H W C"]:
  """A latent that is stored row by row, of a frame of so many pixels.

  Raises:
    ValueError: it has not the frame's shape at any reduction.
  """
  height, width = (int(side) for side in bucket)
  factor = math.isqrt(height * width // len(latent))
  if len(latent) * factor**2 != height * width:
    raise ValueError(
      f"a latent of {len(latent)} values does not have the shape of its bucket "
      f"of {height} x {width} pixels"
    )
  return latent.reshape(height // factor, width // factor, -1)
