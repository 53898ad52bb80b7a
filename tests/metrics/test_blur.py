# SPDX-License-Identifier: Apache-2.0
import numpy as np
from PIL import Image, ImageFilter
import pytest
import scipy.ndimage

from cc_jax.metrics import blur


def pictures(height=64, width=80):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("radius", [0.5, 1, 2, 4, 8])
def test_the_filter_is_scipys(radius):
  images = pictures()
  sigma = (0, radius, radius, 0)
  expected = scipy.ndimage.gaussian_filter(
    images.astype(np.float64), sigma, mode="nearest"
  )
  found = np.asarray(blur.blur(images, radius))
  assert found.dtype == np.uint8
  # Rounding, and what float32 adds to it.
  assert np.abs(found - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("radius", [1, 2, 4, 8])
def test_pillows_filter_of_the_same_radius_comes_close(radius):
  # A smooth picture with an edge: of noise less is left than boxes differ by.
  place = np.linspace(0, 1, 96)
  image = np.zeros((96, 96, 3), np.uint8)
  image[..., 0] = 255 * place[:, None] * place
  image[30:60, 30:60, 1] = 255
  theirs = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
  found = np.asarray(blur.blur(image[None], radius))[0]
  difference = np.abs(found.astype(int) - np.asarray(theirs))
  assert difference.mean() < 0.5
  # At the border Pillow repeats the edge for each of its boxes.
  assert difference.max() <= 8
  inside = slice(2 * radius, -2 * radius)
  assert difference[inside, inside].max() <= 4


def test_no_radius_changes_nothing():
  images = pictures()
  assert np.array_equal(blur.blur(images, 0), images)


def test_one_colour_stays():
  images = np.full((1, 20, 30, 3), 201, np.uint8)
  # The filter of radius 8 reaches beyond both edges.
  assert np.array_equal(blur.blur(images, 8), images)


def test_blurs_add_up_by_their_squares():
  size, inside = 200, slice(60, 140)
  both = blur.gaussian(size, 3) @ blur.gaussian(size, 4)
  np.testing.assert_allclose(
    both[inside], blur.gaussian(size, 5)[inside], atol=1e-4
  )


def test_a_negative_radius_is_refused():
  with pytest.raises(ValueError, match="radius=-1; expected 0 or more"):
    blur.blur(pictures(), -1)
