# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import parity
from PIL import Image
import pytest
import torch

from cc_jax.metrics import resize

# Smaller, larger, the same, one of each.
SIZES = [(512, 512), (64, 75), (299, 299), (640, 211), (256, 300)]


def pictures(height, width, count=2):
  rng = np.random.default_rng(height + width)
  return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def pillow(images):
  """As clean-fid resizes: each channel as floats."""
  resized = [
    Image.fromarray(image[..., channel].astype(np.float32)).resize(
      (299, 299), Image.Resampling.BICUBIC
    )
    for image in images
    for channel in range(3)
  ]
  made = np.stack(resized).reshape(len(images), 3, 299, 299)
  return np.moveaxis(made, 1, -1)


def torchs(images):
  """As pytorch-fid resizes."""
  x = torch.tensor(np.moveaxis(images, -1, 1)).float()
  x = torch.nn.functional.interpolate(
    x, (299, 299), mode="bilinear", align_corners=False
  )
  return np.moveaxis(x.numpy(), 1, -1)


def tensorflow_1(images):
  """TensorFlow 1's resize_bilinear, pixel by pixel: no centres, no edges."""
  _, height, width, _ = images.shape
  images = images.astype(np.float64)
  down, across = np.float32(height / 299), np.float32(width / 299)
  made = np.empty((len(images), 299, 299, 3))
  for i in range(299):
    y = np.float32(i) * down
    top, bottom = int(y), min(int(y) + 1, height - 1)
    for j in range(299):
      x = np.float32(j) * across
      left, right = int(x), min(int(x) + 1, width - 1)
      dy, dx = y - top, x - left
      above = images[:, top, left] * (1 - dx) + images[:, top, right] * dx
      below = images[:, bottom, left] * (1 - dx) + images[:, bottom, right] * dx
      made[:, i, j] = above * (1 - dy) + below * dy
  return made


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clean_is_pillows_bicubic(height, width):
  images = pictures(height, width)
  expected = (pillow(images) - 128) / 128
  parity.check(resize.to_inception(images), expected, parity.LAYER)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_legacy_pytorch_is_torchs_bilinear(height, width):
  images = pictures(height, width)
  expected = torchs(images) / 127.5 - 1
  ours = resize.to_inception(images, "legacy_pytorch")
  parity.check(ours, expected, parity.LAYER)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_legacy_tensorflow_is_tensorflow_1s_bilinear(height, width):
  images = pictures(height, width, count=1)
  expected = (tensorflow_1(images) - 128) / 128
  ours = resize.to_inception(images, "legacy_tensorflow")
  parity.check(ours, expected, parity.LAYER)


def test_the_modes_differ_where_images_shrink():
  images = pictures(512, 512)
  made = [np.asarray(resize.to_inception(images, m)) for m in resize.MODES]
  for i in range(3):
    assert np.abs(made[i] - made[i - 1]).max() > 0.2


def test_images_of_the_right_size_stay_as_they_are():
  images = pictures(299, 299)
  for mode, (_, shift, scale) in resize.MODES.items():
    ours = resize.to_inception(images, mode)
    expected = (images.astype(np.float32) - shift) / scale
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_weights_of_a_pixel_sum_to_one():
  for source, target in ((1, 5), (5, 1), (17, 299), (1000, 299), (2, 2)):
    for weights in (
      resize.bicubic(source, target),
      resize.bilinear(source, target),
      resize.bilinear(source, target, centred=False),
    ):
      assert weights.shape == (target, source)
      np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


def test_it_runs_within_a_compiled_function():
  images = pictures(64, 75)
  compiled = jax.jit(resize.to_inception)(images)
  np.testing.assert_allclose(compiled, resize.to_inception(images), atol=1e-6)


def test_an_unknown_mode_is_refused():
  with pytest.raises(
    ValueError, match="unknown mode 'cubic'; expected clean, "
  ):
    resize.to_inception(pictures(64, 75), "cubic")
