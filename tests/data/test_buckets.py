# SPDX-License-Identifier: Apache-2.0
"""Frames against what was published, and against what they promise."""

import pytest

from cc_jax.data import buckets


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_pixarts_buckets_never_exceed_the_square(side):
  """recipes/pixart.md A.9: 40 frames, 14 token counts, 231 to 256 at 256."""
  table = buckets.buckets(side)
  assert len(set(table)) == 40
  patch = side // 16
  assert all(h % patch == w % patch == 0 for h, w in table)
  tokens = sorted({h * w // 256 for h, w in table})
  scale = (side // 256) ** 2
  assert tokens[0] == 231 * scale
  assert tokens[-1] == 256 * scale
  assert len(tokens) == 14
  ratios = [h / w for h, w in table]
  assert ratios == sorted(ratios)
  assert (ratios[0], ratios[-1]) == (0.25, 4.0)
  assert (side, side) in table


def test_pixarts_buckets_are_the_published_ones():
  keys = """0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6
    0.68 0.72 0.78 0.82 0.88 0.94 1.0 1.07 1.13 1.21 1.29 1.38 1.46 1.67 1.75
    2.0 2.09 2.4 2.5 2.89 3.0 3.11 3.62 3.75 3.88 4.0""".split()
  assert [str(round(h / w, 2)) for h, w in buckets.PIXART] == keys


@pytest.mark.parametrize(("side", "step"), [(256, 32), (512, 64), (1024, 64)])
def test_buckets_of_a_step_fill_the_square_as_far_as_they_can(side, step):
  table = buckets.buckets(side, step)
  assert (side, side) in table
  for h, w in table:
    assert h % step == w % step == 0
    assert h * w <= side * side < h * (w + step)
    assert max(h, w) <= 4 * min(h, w)


def test_buckets_refuse_a_side_that_does_not_divide():
  with pytest.raises(ValueError, match="side=500 is not a multiple of 128"):
    buckets.buckets(500)
  with pytest.raises(ValueError, match="side=500 is not a multiple of 64"):
    buckets.buckets(500, 64)


def test_the_nearest_bucket_has_the_nearest_shape():
  table = buckets.buckets(256)
  for i, (h, w) in enumerate(table):
    assert buckets.nearest_bucket(7 * h, 7 * w, table) == i
  assert table[buckets.nearest_bucket(3, 4, table)] == (224, 288)
  assert table[buckets.nearest_bucket(4, 3, table)] == (288, 224)
  assert table[buckets.nearest_bucket(1, 50, table)] == (128, 512)
