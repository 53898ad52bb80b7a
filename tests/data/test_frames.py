# SPDX-License-Identifier: Apache-2.0
"""Frames of images: which one, where, and what is too small."""

import numpy as np
import pictures
import pytest

from cc_jax.data import buckets, frames, images, passes


def example(height, width, key="a"):
  picture = pictures.saved(pictures.scene(height, width), "PNG")
  return {"key": key, "image": picture}


def test_a_square_is_cut_from_the_middle():
  one = example(48, 64)
  cover = frames.cut(one, frames.make(32))
  expected = images.decode_cover(one["image"], 32, 32)
  np.testing.assert_array_equal(cover.image, expected.image)
  np.testing.assert_array_equal(cover.crop, expected.crop)
  np.testing.assert_array_equal(cover.size, (48, 64))


def test_an_image_under_the_size_is_a_reject_or_enlarged():
  found = frames.cut(example(48, 31), frames.make(32))
  assert found == passes.Reject("too_small", detail="48 x 31 for 32 x 32")
  cover = frames.cut(example(48, 31), frames.make(32, enlarge=True))
  assert cover.image.shape == (32, 32, 3)
  assert isinstance(frames.cut(example(32, 32), frames.make(32)), images.Cover)


def test_an_image_that_does_not_cover_its_bucket_is_a_reject():
  made = frames.make(32, bucketed=True, step=4)
  # 16 x 64 is its bucket, so the shorter side may be under the size.
  assert frames.cut(example(16, 64), made).image.shape == (16, 64, 3)
  assert frames.cut(example(15, 60), made).reason == "too_small"


def test_an_image_gets_the_bucket_of_its_shape():
  made = frames.make(128, bucketed=True, enlarge=True)
  assert len(made.table) == 40
  for shape in ((100, 100), (90, 200), (200, 90), (110, 400)):
    cover = frames.cut(example(*shape), made)
    nearest = buckets.nearest_bucket(*shape, made.table)
    assert cover.image.shape[:2] == made.table[nearest]


def test_an_image_longer_than_any_bucket_is_a_reject():
  made = frames.make(16, bucketed=True, step=4, enlarge=True)
  assert frames.cut(example(20, 81), made).reason == "too_long"
  assert isinstance(frames.cut(example(20, 80), made), images.Cover)
  square = frames.make(16)
  assert isinstance(frames.cut(example(20, 81), square), images.Cover)


def test_a_random_crop_follows_from_seed_and_key():
  def lefts(seed):
    made = frames.make(16, crop="random", seed=seed)
    covers = [frames.cut(example(16, 64, str(k)), made) for k in range(24)]
    return [int(cover.crop[1]) for cover in covers]

  assert lefts(1) == lefts(1) != lefts(2)
  assert min(lefts(1)) < 12
  assert max(lefts(1)) > 36
  assert len(set(lefts(1))) > 12


def test_a_broken_image_is_a_reject():
  broken = {"key": "a", "image": example(16, 16)["image"][:90]}
  assert frames.cut(broken, frames.make(8)).reason.startswith("image_")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"crop": "left"}, r"encode\.crop='left'; expected centre or random"),
    ({"size": 0}, "expected pixels"),
    ({"bucketed": True, "size": 100}, "side=100 is not a multiple of 128"),
  ],
)
def test_what_has_no_frames_is_an_error(settings, message):
  with pytest.raises(ValueError, match=message):
    frames.make(**({"size": 16} | settings))
