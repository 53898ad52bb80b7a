# SPDX-License-Identifier: Apache-2.0
"""How sure is a number? Intervals and tests for metrics and for votes."""

from collections.abc import Callable, Sequence
import math
import statistics
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from cc_jax.metrics import features


class Interval(NamedTuple):
  """A number and the bounds between which it may be."""

  value: float
  low: float
  high: float


def bootstrap(
  statistic: Callable[..., float],
  *sets: np.ndarray,
  draws: int = 1000,
  level: float | int = 0.95,
  paired: bool = False,
  centre: bool = False,
  seed: int = 0,
) -> Interval:
  """The percentile interval of a statistic (Efron 1979).

  The sets are drawn again from themselves, with replacement and as many rows as
  they have; the interval is between quantiles of the statistic of these draws.
  What is not to be drawn, as the real images of a FID, the statistic holds by
  itself:

    bootstrap(np.mean, clip_scores)
    bootstrap(lambda x: frechet.fid(real, x), generated, draws=100, centre=True)

  Args:
    statistic: of arrays like `sets`.
    *sets: scores [N] or features [N D], a row for each image.
    draws: how often; FID of 2048 features takes seconds for each, of which
      `frechet.standard_error` is a cheap approximation.
    level: the share of draws within the interval.
    paired: whether the same rows are drawn of all sets, which are of the same
      prompts: for the difference of two models.
    centre: whether the draws are moved so that their mean is the value. A draw
      has only 63 % of the images, so FID and other statistics that fall with
      the number of images are larger of draws than of the set, and their plain
      interval may lie beside the value. An approximation: the width of the
      interval is kept, and the bias of the value stays.
    seed: of the draws.

  Raises:
    ValueError: a set is empty or a row is not finite, paired sets differ in
      length, or the level is not between 0 and 1.
  """
  counts = [len(rows) for rows in sets]
  if not counts or 0 in counts:
    raise ValueError(f"a bootstrap of sets of {counts} images")
  if paired and len(set(counts)) > 1:
    raise ValueError(f"paired sets of {counts} images; expected equally many")
  for place, rows in enumerate(sets):
    features.check(**{f"set {place}": rows.reshape(len(rows), -1)})
  if draws < 2:
    raise ValueError(f"draws={draws}; expected 2 or more")
  _check_level(level)
  rng = np.random.default_rng(seed)
  found = np.empty(draws)
  for draw in range(draws):
    rows = [rng.integers(counts[0], size=counts[0])] * len(sets)
    if not paired:
      rows[1:] = [rng.integers(count, size=count) for count in counts[1:]]
    found[draw] = statistic(*[s[r] for s, r in zip(sets, rows, strict=True)])
  value = float(statistic(*sets))
  if centre:
    found += value - found.mean()
  low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
  return Interval(value, float(low), float(high))


def linear(
  value: float | int,
  influence: Float[np.ndarray, "N"],
  *,
  draws: int = 1000,
  level: float | int = 0.95,
  seed: int = 0,
) -> Interval:
  """The bootstrap of a statistic that is too slow to be computed anew.

  Of each draw the statistic is value + the mean of the images' influence: exact
  for means, and for others to first order (Efron and Tibshirani 1993, chapter
  22). The bias of the value stays, and that of draws does not come in, so it
  lies within its interval.

  Args:
    value: of all images.
    influence: what each image adds, with a mean of zero.
    draws: how often.
    level: the share of draws within the interval.
    seed: of the draws.

  Raises:
    ValueError: as of `bootstrap`.
  """
  found = bootstrap(np.mean, influence, draws=draws, level=level, seed=seed)
  # Where all images add the same, rounding would put it beside the value.
  low, high = min(found.low, 0.0), max(found.high, 0.0)
  return Interval(float(value), float(value + low), float(value + high))


def wilson(
  successes: float | int, trials: int, level: float | int = 0.95
) -> Interval:
  """The interval of a share (Wilson 1927), good for few trials as well.

    (p + z^2/2n  +-  z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)

  Args:
    successes: of the trials; halves are allowed.
    trials: n; they must be independent.
    level: how often the interval holds the share.

  Raises:
    ValueError: there are no trials, or successes that are not among them.
  """
  _check_level(level)
  if trials <= 0 or not 0 <= successes <= trials:
    raise ValueError(f"{successes} successes of {trials} trials")
  z = statistics.NormalDist().inv_cdf((1 + level) / 2)
  p, n = successes / trials, trials
  middle = p + z**2 / (2 * n)
  reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  whole = 1 + z**2 / n
  # At 0 and 1 the bounds are exact, but for rounding.
  low = 0.0 if successes == 0 else (middle - reach) / whole
  high = 1.0 if successes == trials else (middle + reach) / whole
  return Interval(p, low, high)


def sign_test(wins: int, losses: int) -> float:
  """How likely so uneven a result is among equals: p, of both sides.

  Exact: min(1, 2 sum_(i <= min(wins, losses)) C(n, i) / 2^n). Ties count for
  neither and are left out (Dixon and Mood 1946).

  Raises:
    ValueError: a number is below 0.
  """
  if min(wins, losses) < 0:
    raise ValueError(f"{wins} wins and {losses} losses; expected 0 or more")
  n = wins + losses
  logs = [
    math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
    for i in range(min(wins, losses) + 1)
  ]
  tail = np.logaddexp.reduce(logs) - n * math.log(2)
  return min(1.0, 2 * math.exp(tail))


class Preference(NamedTuple):
  """Which of two models is preferred.

  Attributes:
    share: of votes for the first, a tie being half a vote.
    low: of the Wilson interval of the share.
    high: likewise; with ties the interval is too wide rather than too narrow.
    p: of the sign test, without ties.
    wins: votes for the first.
    losses: votes for the second.
    ties: votes for neither.
  """

  share: float
  low: float
  high: float
  p: float
  wins: int
  losses: int
  ties: int


def preference(votes: Sequence[int], level: float | int = 0.95) -> Preference:
  """What pairwise votes say.

  Args:
    votes: 1 for the first model, -1 for the second, 0 for neither, one vote for
      each prompt: several of one prompt are not independent, so give their
      majority.
    level: of the interval.

  Raises:
    ValueError: there is no vote, or one that is none of the three.
  """
  others = sorted(set(votes) - {-1, 0, 1})
  if others or not len(votes):
    raise ValueError(f"{len(votes)} votes with {others}; expected 1, -1 and 0")
  wins, losses, ties = (sum(v == x for v in votes) for x in (1, -1, 0))
  share, low, high = wilson(wins + ties / 2, len(votes), level)
  p = sign_test(wins, losses)
  return Preference(share, low, high, p, wins, losses, ties)


def _check_level(level: float | int) -> None:
  if not 0 < level < 1:
    raise ValueError(f"level={level}; expected between 0 and 1, as 0.95")
