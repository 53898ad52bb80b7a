# SPDX-License-Identifier: Apache-2.0
"""Squares of pixels beside transformers' own image processors."""

import io

import jax.numpy as jnp
import numpy as np
import pictures
from PIL import Image
import pytest
from transformers.models.blip import image_processing_pil_blip as blip
from transformers.models.clip import image_processing_pil_clip as clip
from transformers.models.llava import image_processing_pil_llava as llava

from cc_jax.data import images, squares
from cc_jax.models import clip_vision

SHAPES = [(48, 64), (64, 48), (50, 50), (31, 97), (300, 201), (9, 400)]
SQUARE = {"height": 28, "width": 28}
THEIRS = {
  "squash": blip.BlipImageProcessorPil(size=SQUARE),
  "crop": clip.CLIPImageProcessorPil(
    size={"shortest_edge": 28}, crop_size=SQUARE
  ),
  "pad": llava.LlavaImageProcessorPil(
    size=SQUARE, crop_size=SQUARE, do_pad=True
  ),
}


def picture(height, width):
  rng = np.random.default_rng(height)
  small = rng.integers(0, 256, (5, 7, 3), np.uint8)
  smooth = Image.fromarray(small).resize((width, height))
  noise = rng.integers(0, 40, (height, width, 3))
  return (np.asarray(smooth) * 0.8 + noise).astype(np.uint8)


def saved(image, kind="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize("way", squares.WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_the_processors_of_transformers(way, shape):
  image = picture(*shape)
  made = squares.decode(saved(image), 28, way)
  ours = clip_vision.normalise(jnp.float32(made) / 127.5 - 1)
  theirs = THEIRS[way](Image.fromarray(image), return_tensors="np")
  theirs = theirs["pixel_values"][0].transpose(1, 2, 0)
  np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", squares.WAYS)
def test_a_large_jpeg_decoded_in_part_is_nearly_the_same(way):
  image = picture(700, 1000)
  data = saved(image, "JPEG", quality=95)
  whole = squares.square(images.decode(data), 28, way)
  part = squares.decode(data, 28, way)
  assert np.abs(np.int32(whole) - part).mean() < 2
  assert np.abs(np.int32(whole) - part).max() < 20


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (50, 50)])
def test_the_middle_square_may_come_first(shape):
  image = picture(*shape)
  side = min(shape)
  top, left = ((n - side) // 2 for n in shape)
  middle = image[top : top + side, left : left + side]
  # Never made larger.
  made = squares.decode(saved(image), 28, "squash", middle=512)
  np.testing.assert_array_equal(made, squares.square(middle, 28, "squash"))
  made = squares.decode(saved(image), 28, "squash", middle=32)
  smaller = squares.square(middle, 32, "squash")
  np.testing.assert_array_equal(made, squares.square(smaller, 28, "squash"))


def test_the_bars_of_a_padded_picture_have_the_mean_colour():
  made = squares.square(picture(20, 60), 30, "pad")
  mean = np.array(clip_vision.MEAN) * 255
  for row in (made[0], made[-1]):
    np.testing.assert_allclose(row, np.broadcast_to(mean, row.shape), atol=1)


def test_what_cannot_be_decoded_and_other_ways_are_errors():
  with pytest.raises(images.ImageError, match="truncated"):
    squares.decode(pictures.saved(pictures.scene(), "PNG")[:200], 28, "crop")
  with pytest.raises(ValueError, match="resize='zoom'; expected one of squash"):
    squares.square(picture(4, 4), 4, "zoom")
