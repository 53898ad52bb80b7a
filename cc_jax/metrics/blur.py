# SPDX-License-Identifier: Apache-2.0
"""Blurred images, for FID-k.

DALL-E (arXiv 2102.12092, section 3.1) and CogView (arXiv 2105.13290) report FID
also of images, real and generated alike, through a Gaussian filter of radius k
of 0, 1, 2, 4 and 8 at 256 x 256 pixels: what is left are coarse things, and not
an autoencoder's details. Their filters are not published; here the radius is
the standard deviation in pixels, as in Pillow's GaussianBlur, which comes close
to a Gaussian by three boxes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from cc_jax.metrics import resize

RADII = (0, 1, 2, 4, 8)
REACH = 4.0  # standard deviations, beyond which the filter is cut


def gaussian(
  size: int, radius: float | int
) -> Float[np.ndarray, "{size} {size}"]:
  """The filter along one side as a matrix; edge pixels go on beyond it."""
  reach = int(REACH * radius + 0.5)
  offset = np.arange(-reach, reach + 1)
  weight = np.exp(-0.5 * (offset / radius) ** 2)
  place = np.clip(np.arange(size)[:, None] + offset, 0, size - 1)
  matrix = np.zeros((size, size))
  rows = np.arange(size)[:, None]
  np.add.at(matrix, (rows, place), weight / weight.sum())
  return matrix


def blur(
  images: UInt8[Array | np.ndarray, "B H W C"], radius: float | int
) -> UInt8[Array, "B H W C"]:
  """Images through a Gaussian filter, rounded to bytes again.

  Args:
    images: bytes; FID-k blurs them before they are resized.
    radius: the standard deviation in pixels; 0 changes nothing.

  Raises:
    ValueError: the radius is below 0.
  """
  if radius < 0:
    raise ValueError(f"radius={radius}; expected 0 or more")
  if radius == 0:
    return jnp.asarray(images)
  _, height, width, _ = images.shape
  blurred = resize.separable(
    jnp.asarray(images), gaussian(height, radius), gaussian(width, radius)
  )
  return jnp.round(jnp.clip(blurred, 0, 255)).astype(jnp.uint8)
