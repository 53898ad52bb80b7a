# SPDX-License-Identifier: Apache-2.0
"""All metrics of a set of images, each with its interval.

Intervals are bootstraps over images, of 95 % unless told otherwise. For means
(CLIP and caption score, precision, recall, density, coverage) they are exact;
for FID, KID, CMMD and the Inception Score they are of first order
(`intervals.linear`). The images of the other side are taken as given: those of
recall and coverage are the real ones, all others the generated ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

from cc_jax.metrics import (
  caption_score,
  clip_score,
  frechet,
  inception_score,
  intervals,
  kernel,
  manifold,
)

Number = dict[str, Any]
"""`value`, `low` and `high`; or None and `why` there is no number."""


def number(found: intervals.Interval, **more: Any) -> Number:
  """An interval as JSON has it."""
  return {"value": found.value, "low": found.low, "high": found.high, **more}


def attempt(make: Callable[[], Number]) -> Number:
  """A number, or why there is none: one metric does not stop the others."""
  try:
    return make()
  except ValueError as error:
    return {"value": None, "why": str(error)}


def statistics(rows: Float[np.ndarray, "N D"]) -> frechet.Gaussian:
  """Mean and covariance of real images' features."""
  return frechet.gaussian(frechet.moments(rows))


def fid(
  real: frechet.Gaussian, generated: Float[np.ndarray, "N D"], draws: int = 1000
) -> Number:
  """FID, or why there is none: too few images, for one."""

  def make():
    ours = frechet.gaussian(frechet.moments(generated))
    value = frechet.distance(ours, real)
    influence = frechet.influence(generated, real)
    return number(intervals.linear(value, influence, draws=draws))

  return attempt(make)


def kid(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  draws: int = 1000,
  **options: int,
) -> Number:
  """KID, the mean over subsets, and `std` over them as other tools print it."""

  def make():
    found = kernel.kid(real, generated, **options)
    influence = kernel.kid_influence(real, generated)
    whole = intervals.linear(found.mean, influence, draws=draws)
    return number(whole, std=found.std)

  return attempt(make)


def cmmd(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  draws: int = 1000,
) -> Number:
  """CMMD."""

  def make():
    value = kernel.cmmd(real, generated)
    influence = kernel.cmmd_influence(real, generated)
    return number(intervals.linear(value, influence, draws=draws))

  return attempt(make)


def shares(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  draws: int = 1000,
) -> dict[str, Number]:
  """Precision and recall (k = 3), density and coverage (k = 5)."""
  try:
    found = manifold.members(real, generated)
  except ValueError as error:
    none = {"value": None, "why": str(error)}
    return dict.fromkeys(manifold.Members._fields, none)
  return {
    name: number(mean(rows.astype(np.float64), draws))
    for name, rows in found._asdict().items()
  }


def inception(
  logits: Float[np.ndarray, "N V"], draws: int = 1000, splits: int = 10
) -> Number:
  """The Inception Score, and `std` over its parts as other tools print it."""

  def make():
    found = inception_score.inception_score(logits, splits=splits)
    influence = inception_score.influence(logits)
    whole = intervals.linear(found.mean, influence, draws=draws)
    return number(whole, std=found.std)

  return attempt(make)


def agreement(
  images: Float[np.ndarray, "N D"],
  captions: Float[np.ndarray, "N D"],
  draws: int = 1000,
) -> Number:
  """The CLIP score."""
  make = lambda: number(mean(clip_score.scores(images, captions), draws))
  return attempt(make)


def captioned(
  log_p: Float[np.ndarray, "N T"],
  mask: Bool[np.ndarray, "N T"],
  draws: int = 1000,
) -> Number:
  """The caption score."""
  make = lambda: number(mean(caption_score.scores(log_p, mask), draws))
  return attempt(make)


def mean(rows: Float[np.ndarray, "N"], draws: int) -> intervals.Interval:
  """The mean of scores with its interval."""
  value = float(rows.mean())
  return intervals.linear(value, rows - value, draws=draws)


def text(found: Mapping[str, Any]) -> str:
  """A number for a table: "12.3 (12.0 to 12.6)"."""
  if found["value"] is None:
    return "none"
  value = "{:.4g}".format
  return (
    f"{value(found['value'])} ({value(found['low'])} to {value(found['high'])})"
  )
