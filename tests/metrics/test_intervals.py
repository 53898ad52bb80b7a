# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import scipy.stats

from cc_jax.metrics import frechet, intervals


@pytest.mark.parametrize(
  ("successes", "trials", "low", "high"),
  # Newcombe 1998, table I, method 3.
  [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_gives_the_published_intervals(successes, trials, low, high):
  found = intervals.wilson(successes, trials)
  assert found.value == successes / trials
  assert found[1:] == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(level):
  for successes in (0, 1, 7, 20, 39, 40):
    theirs = scipy.stats.binomtest(successes, 40).proportion_ci(
      level, method="wilson"
    )
    found = intervals.wilson(successes, 40, level)
    assert found[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (5, 4), (-1, 4)])
def test_impossible_shares_are_refused(successes, trials):
  with pytest.raises(ValueError, match=f"{successes} successes of {trials}"):
    intervals.wilson(successes, trials)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_impossible_levels_are_refused(level):
  with pytest.raises(ValueError, match=f"level={level}; expected between"):
    intervals.wilson(1, 2, level)
  with pytest.raises(ValueError, match=f"level={level}; expected between"):
    intervals.preference([1, -1], level)


def test_the_sign_test_is_scipys():
  for wins, losses in ((0, 0), (1, 0), (5, 5), (8, 2), (37, 63), (5100, 4900)):
    theirs = scipy.stats.binomtest(wins, wins + losses).pvalue if wins else 1
    found = intervals.sign_test(wins, losses)
    assert found == pytest.approx(theirs, rel=1e-9)
    assert found == intervals.sign_test(losses, wins)


def test_ten_of_ten_are_no_chance():
  assert intervals.sign_test(10, 0) == pytest.approx(2 / 1024, rel=1e-12)
  assert intervals.sign_test(1500, 0) == 0 or math.isfinite(
    intervals.sign_test(1500, 0)
  )


def test_fewer_than_no_wins_are_refused():
  with pytest.raises(ValueError, match="-1 wins and 3 losses"):
    intervals.sign_test(-1, 3)


def test_votes_are_counted():
  found = intervals.preference([1] * 37 + [-1] * 53 + [0] * 10)
  assert (found.wins, found.losses, found.ties) == (37, 53, 10)
  assert found.share == pytest.approx(0.42)
  assert (found.low, found.high) == intervals.wilson(42, 100)[1:]
  assert found.p == intervals.sign_test(37, 53)


def test_exchanged_models_have_the_opposite_preference():
  votes = np.random.default_rng(0).integers(-1, 2, 60).tolist()
  one = intervals.preference(votes)
  other = intervals.preference([-vote for vote in votes])
  assert one.share == pytest.approx(1 - other.share)
  assert one.low == pytest.approx(1 - other.high)
  assert one.p == other.p


@pytest.mark.parametrize("votes", [[], [1, 2], [1, -3, 0]])
def test_votes_for_nobody_are_refused(votes):
  with pytest.raises(ValueError, match=r"votes with \[.*expected 1, -1 and 0"):
    intervals.preference(votes)


def test_the_bootstrap_of_a_mean_is_scipys():
  values = np.random.default_rng(0).exponential(size=200)
  theirs = scipy.stats.bootstrap(
    (values,), np.mean, method="percentile", rng=1, n_resamples=9999
  ).confidence_interval
  found = intervals.bootstrap(np.mean, values, draws=4000)
  assert found.value == pytest.approx(values.mean())
  width = theirs.high - theirs.low
  assert found[1:] == pytest.approx(theirs, abs=0.06 * width)


def test_intervals_hold_the_mean_as_often_as_they_say():
  rng = np.random.default_rng(0)
  held = 0
  for seed in range(300):
    values = rng.standard_normal(50)
    found = intervals.bootstrap(
      np.mean, values, draws=200, level=0.9, seed=seed
    )
    held += found.low <= 0 <= found.high
  # Of 300, with four standard deviations below 0.9.
  assert 0.83 < held / 300 < 0.97


def test_pairs_stay_together():
  """Two models on one set of prompts differ less than prompts do."""
  rng = np.random.default_rng(0)
  prompts = 10 * rng.standard_normal(400)
  one = prompts + rng.standard_normal(400)
  other = prompts + 0.5 + rng.standard_normal(400)
  difference = lambda x, y: float(np.mean(y) - np.mean(x))
  paired = intervals.bootstrap(difference, one, other, paired=True)
  apart = intervals.bootstrap(difference, one, other)
  assert paired.value == apart.value
  assert 0 < paired.low < 0.5 < paired.high
  assert apart.low < 0 < apart.high


def test_the_interval_of_fid_is_about_its_value():
  rng = np.random.default_rng(0)
  real = rng.standard_normal((2000, 10))
  generated = rng.standard_normal((60, 10))
  fid = lambda rows: frechet.fid(real, rows)
  plain = intervals.bootstrap(fid, generated, draws=200)
  centred = intervals.bootstrap(fid, generated, draws=200, centre=True)
  # Draws of 38 different images are further away than 60.
  assert plain.value < plain.low
  assert centred.low < centred.value < centred.high
  width = plain.high - plain.low
  assert centred.high - centred.low == pytest.approx(width)


def test_the_cheap_error_of_fid_is_that_of_the_bootstrap():
  rng = np.random.default_rng(0)
  real = rng.standard_normal((2000, 6))
  generated = 0.8 * rng.standard_normal((800, 6)) + 0.3
  gaussian = frechet.gaussian(frechet.moments(real))
  error = frechet.standard_error(generated, gaussian)
  fid = lambda rows: frechet.distance(
    frechet.gaussian(frechet.moments(rows)), gaussian
  )
  found = intervals.bootstrap(fid, generated, draws=400, level=0.6827)
  assert (found.high - found.low) / 2 == pytest.approx(error, rel=0.15)


def test_the_bootstrap_depends_on_its_seed_only():
  values = np.arange(30.0)
  one = intervals.bootstrap(np.mean, values, seed=1)
  assert one == intervals.bootstrap(np.mean, values, seed=1)
  assert one != intervals.bootstrap(np.mean, values, seed=2)


def test_sets_that_cannot_be_drawn_are_refused():
  with pytest.raises(ValueError, match=r"bootstrap of sets of \[3, 0\]"):
    intervals.bootstrap(np.mean, np.ones(3), np.ones(0))
  with pytest.raises(ValueError, match=r"bootstrap of sets of \[\]"):
    intervals.bootstrap(np.mean)
  with pytest.raises(ValueError, match=r"paired sets of \[3, 4\] images"):
    intervals.bootstrap(np.mean, np.ones(3), np.ones(4), paired=True)
  broken = np.array([1.0, np.nan, 2.0])
  with pytest.raises(ValueError, match="set 1: row 1 is not finite"):
    intervals.bootstrap(np.mean, np.ones(3), broken)
  with pytest.raises(ValueError, match="draws=1; expected 2 or more"):
    intervals.bootstrap(np.mean, np.ones(3), draws=1)
