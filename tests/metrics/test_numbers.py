# SPDX-License-Identifier: Apache-2.0
"""Intervals of first order, beside bootstraps that compute all anew."""

import numpy as np
import pytest

from cc_jax.metrics import (
  frechet,
  inception_score,
  intervals,
  kernel,
  manifold,
  numbers,
)


def draw(seed, count, width=6, shift=0.0):
  return np.random.default_rng(seed).standard_normal((count, width)) + shift


def widths(whole, linear):
  """Of both intervals."""
  return whole.high - whole.low, linear["high"] - linear["low"]


def test_fid_has_the_interval_of_the_slow_bootstrap():
  real, made = draw(0, 800), draw(1, 500, shift=0.3)
  gaussian = numbers.statistics(real)
  slow = intervals.bootstrap(
    lambda rows: frechet.distance(numbers.statistics(rows), gaussian),
    made,
    draws=400,
    centre=True,
  )
  found = numbers.fid(gaussian, made)
  assert found["value"] == pytest.approx(slow.value)
  one, other = widths(slow, found)
  assert other == pytest.approx(one, rel=0.15)


def test_kid_and_cmmd_have_the_intervals_of_the_slow_bootstrap():
  real, made = draw(0, 300), draw(1, 250, shift=0.4)
  for slow, fast in (
    (
      lambda rows: kernel.kid(real, rows, subsets=1).mean,
      numbers.kid(real, made, subsets=1),
    ),
    (
      lambda rows: kernel.cmmd(real, rows, sigma=10.0),
      numbers.cmmd(real, made),
    ),
  ):
    whole = intervals.bootstrap(slow, made, draws=200, centre=True)
    one, other = widths(whole, fast)
    assert other == pytest.approx(one, rel=0.25)
    assert fast["low"] < fast["value"] < fast["high"]


def test_the_inception_score_has_the_interval_of_the_slow_bootstrap():
  logits = 3 * draw(0, 400, 9)
  score = lambda rows: inception_score.inception_score(rows, splits=1).mean
  whole = intervals.bootstrap(score, logits, draws=300, centre=True)
  found = numbers.inception(logits, splits=1)
  one, other = widths(whole, found)
  assert other == pytest.approx(one, rel=0.2)


def test_means_have_the_bootstrap_itself():
  real, made = draw(0, 120), draw(1, 90, shift=0.5)
  found = numbers.shares(real, made)
  members = manifold.members(real, made)
  whole = intervals.bootstrap(np.mean, members.precision.astype(float))
  expected = numbers.number(whole)
  for name, value in found["precision"].items():
    assert value == pytest.approx(expected[name], abs=1e-12)
  assert found["recall"]["value"] == members.recall.mean()
  assert found["density"]["value"] == pytest.approx(
    manifold.density_coverage(real, made).density
  )


def test_a_caption_score_is_the_mean_over_images():
  p = np.array([[0.5, 0.5, 1e-9], [0.25, 0.25, 0.25]])
  mask = np.array([[True, True, False], [True, True, True]])
  found = numbers.captioned(np.log(p), mask)
  assert found["value"] == pytest.approx(0.375)
  assert (found["low"], found["high"]) == pytest.approx((0.25, 0.5))
  assert "has no tokens" in numbers.captioned(np.log(p), mask & False)["why"]


def test_what_cannot_be_a_number_says_why():
  real = numbers.statistics(draw(0, 40))
  few = numbers.fid(real, draw(1, 6))
  assert few["value"] is None
  assert few["why"].startswith("FID of 6 images needs more than 6")
  assert numbers.text(few) == "none"
  wide = numbers.kid(draw(0, 9), draw(0, 9, 4))
  assert "widths differ" in wide["why"]
  alone = numbers.shares(draw(0, 9), draw(1, 3))
  assert "fewer than there are" in alone["coverage"]["why"]
  text = numbers.text({"value": 12.3456, "low": 12.0, "high": 12.71})
  assert text == "12.35 (12 to 12.71)"
