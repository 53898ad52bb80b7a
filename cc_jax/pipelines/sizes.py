# SPDX-License-Identifier: Apache-2.0
"""The size at which images are made, and the one that is wanted.

A model is at its best at the frames it was trained on, so another size is made
at the nearest of PixArt-alpha's, then resized and cropped ("resolution
binning"), as diffusers' pipeline does.
"""

from typing import NamedTuple

import jax
from jaxtyping import Float
import ml_collections
import numpy as np

from cc_jax.data import buckets


class Sizes(NamedTuple):
  """Height and width in pixels that a model makes, and that are wanted."""

  made: tuple[int, int]
  wanted: tuple[int, int]


def of(options: ml_collections.ConfigDict) -> Sizes:
  """What `config.sample` says: an aspect ratio, both sides, or a square.

  Raises:
    ValueError: half of a size, or an aspect ratio that is none.
  """
  height, width, side = options.height, options.width, options.size
  if min(height, width) < 0 or bool(height) != bool(width):
    raise ValueError(
      f"sample.height={height}, sample.width={width}; set both, or neither"
    )
  if options.aspect and height:
    raise ValueError("sample.aspect and sample.height are both set; set one")
  if options.aspect:
    made = buckets.nearest_bin(buckets.ratio(options.aspect), side)
    return Sizes(made, made)
  if not height:
    return Sizes((side, side), (side, side))
  wanted = height, width
  if not options.binning:
    return Sizes(wanted, wanted)
  # Of the same ratio as text, so that the bounds on it are said alike.
  ratio = buckets.ratio(f"{width}:{height}")
  return Sizes(buckets.nearest_bin(ratio, side), wanted)


def fit(
  images: Float[np.ndarray, "N H W 3"], height: int, width: int
) -> Float[np.ndarray, "N {height} {width} 3"]:
  """Resizes images until they cover a size, and crops the middle.

  Linear between pixels and with no smoothing, as diffusers has it.
  """
  H, W = images.shape[1:3]
  if (H, W) == (height, width):
    return images
  scale = max(height / H, width / W)
  rows, columns = max(height, int(H * scale)), max(width, int(W * scale))
  shape = len(images), rows, columns, images.shape[-1]
  resized = jax.image.resize(images, shape, "linear", antialias=False)
  top, left = (rows - height) // 2, (columns - width) // 2
  return np.asarray(resized[:, top : top + height, left : left + width])
