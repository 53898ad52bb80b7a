# SPDX-License-Identifier: Apache-2.0
"""Maximum mean discrepancies of two sets of features: KID and CMMD.

MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), x and y of the two sets. In all
sums it is k - 1 that is added: the ones cancel, and of float32 nothing is lost
to them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from cc_jax.metrics import features, pairwise


class Kid(NamedTuple):
  """KID, without the factor of 1000 that some tables have.

  Attributes:
    mean: over the subsets; it may be below zero.
    std: over the subsets, which share images: less than the spread of fresh
      ones where a subset is not small against its set.
  """

  mean: float
  std: float


def kid(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  *,
  subsets: int = 100,
  size: int = 1000,
  seed: int = 0,
) -> Kid:
  """The Kernel Inception Distance, arXiv 1801.01401.

  k(x, y) = (x'y / D + 1)^3, and of m images of either set, drawn without
  replacement,

    MMD^2 = (sum_(i != j) k(x_i, x_j) + k(y_i, y_j)) / (m (m - 1))
            - 2 sum_ij k(x_i, y_j) / m^2,

  which has no bias: it is comparable between numbers of images.

  Args:
    real: features of InceptionV3, `pooled`.
    generated: likewise.
    subsets: how many draws are averaged.
    size: of a subset; all images where there are fewer.
    seed: of the draws.

  Raises:
    ValueError: see `features.check`; fewer than two images; no subset.
  """
  features.check(real=real, generated=generated)
  drawn = min(size, len(real), len(generated))
  if drawn < 2 or subsets < 1:
    raise ValueError(
      f"KID of {subsets} subsets of {drawn} images; expected one or more of "
      "two or more"
    )
  rng = np.random.default_rng(seed)
  draw = lambda rows: jnp.float32(
    rows[rng.choice(len(rows), drawn, replace=False)]
  )
  found = []
  for _ in range(subsets):
    within, between = _polynomial_sums(draw(real), draw(generated))
    within, between = np.float64(within).sum(), np.float64(between).sum()
    found.append(within / (drawn * (drawn - 1)) - 2 * between / drawn**2)
  return Kid(float(np.mean(found)), float(np.std(found)))


def cmmd(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  *,
  sigma: float = 10.0,
  scale: float = 1000.0,
) -> float:
  """CMMD, arXiv 2401.09603: MMD^2 of CLIP's image embeddings.

  k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) of embeddings of length 1, which they
  are given here, with means over all pairs, those of an image with itself too,
  as the authors have it (Gretton et al. 2012, equation 5): it has a bias of the
  order of 1 / N.

  Args:
    real: image embeddings of a CLIP, for the authors' numbers ViT-L/14 at 336
      pixels, of the middle square resized to that by Pillow's bicubic.
    generated: likewise.
    sigma: the width of the kernel.
    scale: what MMD^2 is multiplied by.

  Raises:
    ValueError: see `features.check` and `features.unit`.
  """
  features.check(real=real, generated=generated)
  x = jnp.asarray(features.unit(real, "real"))
  y = jnp.asarray(features.unit(generated, "generated"))

  def mean(one, other):
    sums = [
      np.float64(_gaussian_sums(one[rows], other, jnp.float32(sigma))).sum()
      for rows in pairwise.blocks(len(one))
    ]
    return sum(sums) / (len(one) * len(other))

  return float(scale * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))


def kid_influence(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  *,
  anchors: int = 4096,
  seed: int = 0,
) -> Float[np.ndarray, "M"]:
  """What each generated image adds to KID, to first order, centred.

    h(y) = 2 (E k(y, y') - E k(x, y)),

  the means taken over `anchors` images of either set, which is drawn where
  there are more.

  Raises:
    ValueError: see `features.check`.
  """
  features.check(real=real, generated=generated)
  rng = np.random.default_rng(seed)
  draw = lambda rows: jnp.float32(
    rows[rng.choice(len(rows), min(anchors, len(rows)), replace=False)]
  )
  x, y = draw(real), draw(generated)
  found = 2 * pairwise.by_rows(
    lambda b: np.float64(_polynomial_means(jnp.float32(generated[b]), y, x)),
    len(generated),
  )
  return found - found.mean()


def cmmd_influence(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  *,
  sigma: float = 10.0,
  scale: float = 1000.0,
  anchors: int = 4096,
  seed: int = 0,
) -> Float[np.ndarray, "M"]:
  """The same of CMMD; see `kid_influence` and `cmmd`."""
  features.check(real=real, generated=generated)
  rng = np.random.default_rng(seed)
  draw = lambda rows: jnp.asarray(
    rows[rng.choice(len(rows), min(anchors, len(rows)), replace=False)]
  )
  x = draw(features.unit(real, "real"))
  ours = features.unit(generated, "generated")
  y, width = draw(ours), jnp.float32(sigma)
  found = pairwise.by_rows(
    lambda b: (
      np.float64(_gaussian_sums(ours[b], y, width)) / len(y)
      - np.float64(_gaussian_sums(ours[b], x, width)) / len(x)
    ),
    len(ours),
  )
  return 2 * scale * (found - found.mean())


@jax.jit
def _polynomial_means(
  x: Float[Array, "N D"], one: Float[Array, "M D"], other: Float[Array, "K D"]
) -> Float[Array, "N"]:
  """Means over one set less means over the other of k - 1."""

  def mean(rows):
    z = pairwise.products(x, rows) / x.shape[1]
    return jnp.mean(z * (3 + z * (3 + z)), axis=1)

  return mean(one) - mean(other)


@jax.jit
def _polynomial_sums(
  x: Float[Array, "N D"], y: Float[Array, "N D"]
) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
  """Sums over rows of k - 1, within both sets and between them."""

  def kernel(one, other):
    z = pairwise.products(one, other) / x.shape[1]
    return z * (3 + z * (3 + z))

  apart = ~jnp.eye(len(x), dtype=bool)
  within = jnp.sum(kernel(x, x) + kernel(y, y), axis=1, where=apart)
  return within, jnp.sum(kernel(x, y), axis=1)


@jax.jit
def _gaussian_sums(
  x: Float[Array, "N D"], y: Float[Array, "M D"], sigma: Float[Array, ""]
) -> Float[Array, "N"]:
  """Sums over rows of k - 1."""
  squared = pairwise.squared(x, y)
  return jnp.sum(jnp.expm1(-squared / (2 * sigma**2)), axis=1)
