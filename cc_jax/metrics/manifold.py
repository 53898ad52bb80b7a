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
from jaxtyping import Array, Float, Int
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
  x, y = _sets(real, generated, k)
  return PrecisionRecall(
    float(np.mean(_inside(y, x, _radii(x, k)) > 0)),
    float(np.mean(_inside(x, y, _radii(y, k)) > 0)),
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
  x, y = _sets(real, generated, k)
  radii = _radii(x, k)
  return DensityCoverage(
    float(np.mean(_inside(y, x, radii)) / k),
    float(np.mean(_nearest(x, y) <= radii)),
  )


def _sets(real, generated, k):
  features.check(real=real, generated=generated)
  count = min(len(real), len(generated))
  if not 1 <= k < count:
    raise ValueError(
      f"k={k} nearest neighbours among {count} images; expected 1 or more, and "
      "fewer than there are images"
    )
  return pairwise.centred(real, generated)


def _radii(x: Float[Array, "N D"], k: int) -> Float[np.ndarray, "N"]:
  """Squared distances to the k-th nearest neighbour in the same set."""
  own = np.arange(len(x))
  found = [_radius(x[b], own[b], x, k) for b in pairwise.blocks(len(x))]
  return np.concatenate(found)


@functools.partial(jax.jit, static_argnames="k")
def _radius(
  x: Float[Array, "N D"], own: Int[Array, "N"], y: Float[Array, "M D"], k: int
) -> Float[Array, "N"]:
  itself = own[:, None] == jnp.arange(len(y))
  squared = jnp.where(itself, jnp.inf, pairwise.squared(x, y))
  return -jax.lax.top_k(-squared, k)[0][:, -1]


def _inside(x, y, radii):
  """In how many balls around y each x is."""
  return pairwise.by_rows(lambda rows: _count(rows, y, radii), x)


@jax.jit
def _count(
  x: Float[Array, "N D"], y: Float[Array, "M D"], radii: Float[Array, "M"]
) -> Int[Array, "N"]:
  return jnp.sum(pairwise.squared(x, y) <= radii, axis=1)


def _nearest(x, y):
  """Squared distances of each x to the nearest y."""
  return pairwise.by_rows(lambda rows: _smallest(rows, y), x)


@jax.jit
def _smallest(
  x: Float[Array, "N D"], y: Float[Array, "M D"]
) -> Float[Array, "N"]:
  return jnp.min(pairwise.squared(x, y), axis=1)
