# SPDX-License-Identifier: Apache-2.0
"""Is what is generated real, and is what is real generated? Two answers.

Both take the balls around images that reach to their k-th nearest neighbour in
the same set, the image itself not counted, for the region where images of that
set are. Distances are computed in blocks (`pairwise.py`), in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from cc_jax.metrics import features, pairwise


class PrecisionRecall(NamedTuple):
  """Shares, from 0 to 1.

  Attributes:
    precision: of generated images in a ball of a real one.
    recall: of real images in a ball of a generated one.
  """

  precision: float
  recall: float


class DensityCoverage(NamedTuple):
  """Like precision and recall, but moved less by single images.

  Attributes:
    density: in how many balls of real images a generated one is, by k; 1 is
      expected where both sets are alike, and it may be larger.
    coverage: the share of real images whose ball has a generated one.
  """

  density: float
  coverage: float


class Members(NamedTuple):
  """What the four shares are means of.

  Attributes:
    precision: of each generated image, whether it is in a ball of a real one.
    recall: of each real image, whether it is in a ball of a generated one.
    density: of each generated image, in how many balls it is, by k.
    coverage: of each real image, whether its ball has a generated one.
  """

  precision: Bool[np.ndarray, "M"]
  recall: Bool[np.ndarray, "N"]
  density: Float[np.ndarray, "M"]
  coverage: Bool[np.ndarray, "N"]


def precision_recall(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  k: int = 3,
) -> PrecisionRecall:
  """Improved precision and recall, arXiv 1904.06991, equations 1 and 2.

    f(x, Y) = 1 if |x - y| <= |y - NN_k(y, Y)| of any y in Y, otherwise 0
    precision = mean of f(g, real), recall = mean of f(r, generated)

  The paper has 50,000 images of either kind, features of VGG16 and k = 3; for
  other numbers of images the shares are others.

  Raises:
    ValueError: see `features.check`; a set has no k-th neighbour.
  """
  found = members(real, generated, k, k)
  return PrecisionRecall(
    float(found.precision.mean()), float(found.recall.mean())
  )


def density_coverage(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  k: int = 5,
) -> DensityCoverage:
  """Density and coverage, arXiv 2002.09797, section 3.

    density = mean over g of (number of r with |g - r| <= |r - NN_k(r)|) / k
    coverage = mean over r of 1 if |g - r| <= |r - NN_k(r)| of any g, else 0

  Of two sets of one distribution coverage is expected to be 1 - 2^-k, about
  0.97, where there are many.

  Raises:
    ValueError: see `features.check`; a set has no k-th neighbour.
  """
  found = members(real, generated, k, k)
  return DensityCoverage(
    float(found.density.mean()), float(found.coverage.mean())
  )


def members(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  k: int = 3,
  k_density: int = 5,
) -> Members:
  """Which images are where, from three times all pairs.

  Args:
    real: features.
    generated: features of the same network.
    k: of precision and recall.
    k_density: of density and coverage.

  Raises:
    ValueError: see `features.check`; a set has no k-th neighbour.
  """
  features.check(real=real, generated=generated)
  count = min(len(real), len(generated))
  for one in (k, k_density):
    if not 1 <= one < count:
      raise ValueError(
        f"k={one} nearest neighbours among {count} images; expected 1 or more, "
        "and fewer than there are images"
      )
  x, y = pairwise.centred(real, generated)
  places = np.array([k - 1, k_density - 1])
  radii, wide = _radii(x, max(k, k_density))[:, places].T
  theirs = _radii(y, k)[:, -1]
  inside, balls = [], []
  recalled = np.zeros(len(x), bool)
  covered = np.zeros(len(x), bool)
  for block in pairwise.blocks(len(y)):
    found = _between(y[block], theirs[block], x, radii, wide)
    near, number, has, reached = map(np.asarray, found)
    inside.append(near)
    balls.append(number)
    covered |= has
    recalled |= reached
  return Members(
    np.concatenate(inside),
    recalled,
    np.concatenate(balls) / k_density,
    covered,
  )


def _radii(x: Float[Array, "N D"], k: int) -> Float[np.ndarray, "N k"]:
  """Squared distances to the k nearest neighbours in the same set."""
  own = np.arange(len(x))
  return pairwise.by_rows(lambda b: _radius(x[b], own[b], x, k), len(x))


@functools.partial(jax.jit, static_argnames="k")
def _radius(
  x: Float[Array, "N D"], own: Int[Array, "N"], y: Float[Array, "M D"], k: int
) -> Float[Array, "N k"]:
  itself = own[:, None] == jnp.arange(len(y))
  squared = jnp.where(itself, jnp.inf, pairwise.squared(x, y))
  return -jax.lax.top_k(-squared, k)[0]


@jax.jit
def _between(
  y: Float[Array, "M D"],
  radius: Float[Array, "M"],
  x: Float[Array, "N D"],
  radii: Float[Array, "N"],
  wide: Float[Array, "N"],
) -> tuple[
  Bool[Array, "M"], Int[Array, "M"], Bool[Array, "N"], Bool[Array, "N"]
]:
  """Of some y: near any x, in how many balls. Of all x: has any y, near any."""
  squared = pairwise.squared(y, x)
  within = squared <= wide
  return (
    jnp.any(squared <= radii, axis=1),
    jnp.sum(within, axis=1),
    jnp.any(within, axis=0),
    jnp.any(squared <= radius[:, None], axis=0),
  )
