# SPDX-License-Identifier: Apache-2.0
"""The Inception Score, arXiv 1606.03498, section 4.

  IS = exp(E_x KL(p(y | x) || p(y))),   p(y) = E_x p(y | x)

of the classes that InceptionV3 sees: large where each image is of one class and
all classes are there. It knows no real images; it is here for tables that have
it.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from cc_jax.metrics import features


class InceptionScore(NamedTuple):
  """Mean and standard deviation over the splits."""

  mean: float
  std: float


def inception_score(
  logits: Float[np.ndarray, "N V"], *, splits: int = 10, seed: int | None = 0
) -> InceptionScore:
  """The score of images, the mean of those of equal parts of them.

  Args:
    logits: of the classes, InceptionV3's `logits_unbiased`.
    splits: number of parts; p(y) is taken over each. Parts of 5,000 images are
      usual, of fewer the score is lower.
    seed: of the order in which images are dealt to parts; None keeps theirs.

  Raises:
    ValueError: see `features.check`; there are fewer images than parts.
  """
  log_p = log_shares(logits)
  if not 1 <= splits <= len(logits):
    raise ValueError(f"splits={splits} of {len(logits)} images")
  if seed is not None:
    log_p = np.random.default_rng(seed).permutation(log_p)
  # p log p is 0 where p is.
  scores = []
  for part in np.array_split(log_p, splits):
    p = np.exp(part)
    marginal = p.mean(axis=0)
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    scores.append(np.exp((p * (part - log_marginal)).sum(axis=1).mean()))
  return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def log_shares(
  logits: Float[np.ndarray, "N V"],
) -> Float[np.ndarray, "N V"]:
  """log p(y | x) of each image, in float64.

  Raises:
    ValueError: see `features.check`.
  """
  features.check(logits=logits)
  logits = logits.astype(np.float64)
  logits -= logits.max(axis=1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def influence(logits: Float[np.ndarray, "N V"]) -> Float[np.ndarray, "N"]:
  """What each image adds to the score of all images, to first order, centred.

  The score S of all images changes by S (KL(p(y | x) || p(y)) - log S): what p
  itself changes of p(y) cancels.
  """
  log_p = log_shares(logits)
  p = np.exp(log_p)
  marginal = p.mean(axis=0)
  log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
  information = (p * (log_p - log_marginal)).sum(axis=1)
  score = np.exp(information.mean())
  return score * (information - information.mean())
