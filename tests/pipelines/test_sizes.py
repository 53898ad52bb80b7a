# SPDX-License-Identifier: Apache-2.0
"""Sizes by flag, and diffusers' resolution binning."""

from diffusers import image_processor
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as theirs
import numpy as np
import pytest
import torch

from cc_jax.core import config as configs
from cc_jax.pipelines import sizes

PROCESSOR = image_processor.PixArtImageProcessor
BINS = {
  256: theirs.ASPECT_RATIO_256_BIN,
  512: theirs.ASPECT_RATIO_512_BIN,
  1024: theirs.ASPECT_RATIO_1024_BIN,
}


def options(**fields):
  made = configs.load("configs/base.py").sample
  made.update(fields)
  return made


def test_a_square_needs_one_number():
  assert sizes.of(options(size=512)) == ((512, 512), (512, 512))


@pytest.mark.parametrize(
  ("aspect", "made"),
  [("16:9", (768, 1344)), ("9:16", (1344, 768)), ("0.56", (768, 1344))],
)
def test_an_aspect_ratio_is_a_frame_of_the_same_area(aspect, made):
  assert sizes.of(options(size=1024, aspect=aspect)) == (made, made)


@pytest.mark.parametrize("side", BINS)
def test_bins_are_diffusers(side):
  rng = np.random.default_rng(side)
  asked = [(side, side), *rng.integers(side // 2, 2 * side, (200, 2)).tolist()]
  for height, width in asked:
    found = sizes.of(options(size=side, height=height, width=width))
    expected = PROCESSOR.classify_height_width_bin(height, width, BINS[side])
    assert found == (expected, (height, width))


def test_without_binning_a_size_is_made_as_it_is():
  fields = dict(size=256, height=264, width=200, binning=False)
  assert sizes.of(options(**fields)) == ((264, 200), (264, 200))


@pytest.mark.parametrize("size", [(30, 44), (24, 24), (7, 60)])
def test_images_are_fitted_as_diffusers_does(size):
  images = np.random.default_rng(0).random((2, 24, 40, 3), np.float32)
  tensor = torch.tensor(images).permute(0, 3, 1, 2)
  expected = PROCESSOR.resize_and_crop_tensor(tensor, size[1], size[0])
  found = sizes.fit(images, *size)
  expected = expected.permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"height": 64}, "set both, or neither"),
    ({"height": 64, "width": 64, "aspect": "1:1"}, "are both set"),
    ({"aspect": "wide"}, "aspect='wide'; expected WIDTH:HEIGHT"),
    ({"aspect": "9:1"}, "from 1:4 to 4:1"),
    ({"aspect": "1:0"}, "expected WIDTH:HEIGHT"),
  ],
)
def test_sizes_that_cannot_be_are_said(fields, words):
  with pytest.raises(ValueError, match=words):
    sizes.of(options(**fields))
