# SPDX-License-Identifier: Apache-2.0
"""The Frechet distance of two sets of features: FID, CLIP-FID, FID-k.

Of two Gaussians (arXiv 1706.08500, equation 6):

  FID = |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

The trace of the root is the sum of the roots of the eigenvalues of
C_1^(1/2) C_2 C_1^(1/2), which is symmetric: two `eigh` in float64 and no root
of a general matrix, which fails where a covariance is singular.

All is numpy in float64. FID is too large by about c / N of N images, and it
depends on how they are resized (`resize.py`): compare only equals.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from cc_jax.metrics import features


class Gaussian(NamedTuple):
  """Mean and covariance of features.

  Attributes:
    mean: over images.
    cov: of `count - 1` degrees of freedom, as numpy.cov's.
    count: number of images, None where it is not known, as of the `mu` and
      `sigma` of published files.
  """

  mean: Float[np.ndarray, "D"]
  cov: Float[np.ndarray, "D D"]
  count: int | None = None


class Moments(NamedTuple):
  """What is kept of features that were seen; float64.

  Attributes:
    count: number of images.
    mean: over images.
    scatter: the sum of (x - mean)(x - mean)'.
  """

  count: int
  mean: Float[np.ndarray, "D"]
  scatter: Float[np.ndarray, "D D"]


def moments(rows: Float[np.ndarray, "N D"]) -> Moments:
  """Of one batch of features.

  Raises:
    ValueError: see `features.check`.
  """
  features.check(features=rows)
  mean = rows.mean(axis=0, dtype=np.float64)
  centred = rows - mean
  return Moments(len(rows), mean, centred.T @ centred)


def add(seen: Moments, rows: Float[np.ndarray, "N _"]) -> Moments:
  """`merge(seen, moments(rows))` with one product of matrices.

  On two cores this takes 0.2 ms an image of 2048 features if rows come 1,024 at
  a time, 0.9 ms if 64 do, where InceptionV3 takes 118 ms.

  Raises:
    ValueError: see `features.check`.
  """
  features.check(seen=seen.mean[None], features=rows)
  count, mean = len(rows), rows.mean(axis=0, dtype=np.float64)
  total, step = seen.count + count, mean - seen.mean
  # What the two means differ by is one more row.
  weight = np.sqrt(seen.count * count / total)
  centred = np.concatenate([rows - mean, weight * step[None]])
  scatter = centred.T @ centred
  scatter += seen.scatter
  return Moments(total, seen.mean + step * (count / total), scatter)


def merge(one: Moments, other: Moments) -> Moments:
  """Of all images of both, as of two hosts (Chan et al. 1979).

  Send them as files or as bytes: jax would round them to float32.

  Raises:
    ValueError: the widths differ.
  """
  features.check(one=one.mean[None], other=other.mean[None])
  total, step = one.count + other.count, other.mean - one.mean
  between = (one.count * other.count / total) * np.outer(step, step)
  return Moments(
    total,
    one.mean + step * (other.count / total),
    one.scatter + other.scatter + between,
  )


def gaussian(seen: Moments) -> Gaussian:
  """The Gaussian of all features that were seen.

  Raises:
    ValueError: there is one image only.
  """
  if seen.count < 2:
    raise ValueError("1 image has no covariance; expected 2 or more")
  return Gaussian(seen.mean, seen.scatter / (seen.count - 1), seen.count)


def distance(
  one: Gaussian, other: Gaussian, *, allow_few: bool = False
) -> float:
  """The Frechet distance of two Gaussians, equation 6.

  Args:
    one: of generated images, say.
    other: of real ones; the order does not matter.
    allow_few: whether a covariance of no more images than it has dimensions,
      which is singular, is taken as it is. Such a number says little.

  Raises:
    ValueError: there are too few images, or the widths differ.
  """
  features.check(one=one.mean[None], other=other.mean[None])
  width = len(one.mean)
  for _, cov, count in (one, other):
    if cov.shape != (width, width) or not np.isfinite(cov).all():
      raise ValueError(
        f"a covariance of shape {cov.shape}; expected {width} x {width} finite "
        "numbers, as the mean has"
      )
    if count is not None and count <= width and not allow_few:
      raise ValueError(
        f"FID of {count} images needs more than {width}, the width of their "
        "features; make more, take KID, or set allow_few=True"
      )
  root, _ = _roots(one.cov)
  product = np.linalg.eigvalsh(root @ other.cov @ root)
  trace = np.trace(one.cov) + np.trace(other.cov)
  step = one.mean - other.mean
  found = step @ step + trace - 2 * np.sqrt(np.maximum(product, 0)).sum()
  return max(float(found), 0.0)


def fid(
  real: Float[np.ndarray, "N D"],
  generated: Float[np.ndarray, "M _"],
  *,
  allow_few: bool = False,
) -> float:
  """The Frechet distance of two sets of features; see `distance`."""
  features.check(real=real, generated=generated)
  ours, theirs = (gaussian(moments(rows)) for rows in (generated, real))
  return distance(ours, theirs, allow_few=allow_few)


def standard_error(
  generated: Float[np.ndarray, "N D"], real: Gaussian
) -> float:
  """By how much FID would differ for other images of the same model.

  std(f) / sqrt(N) of the `influence` f (the infinitesimal jackknife). Against
  the spread of fresh Gaussian images it was right to 6 % for 16 images a
  dimension, and up to 36 % too large for two.

  Raises:
    ValueError: there are no more images than dimensions, or widths differ.
  """
  found = influence(generated, real)
  return float(found.std(ddof=1) / np.sqrt(len(found)))


def influence(
  generated: Float[np.ndarray, "N D"], real: Gaussian
) -> Float[np.ndarray, "N"]:
  """What each image adds to FID, to first order, with a mean of zero.

    f(x) = 2 (x - mu_1)'(mu_1 - mu_2) + (x - mu_1)' (I - T) (x - mu_1) - const
    T = C_1^(-1/2) (C_1^(1/2) C_2 C_1^(1/2))^(1/2) C_1^(-1/2),

  T being the map that carries the first Gaussian onto the other. FID of other
  images of the same model is about FID + mean f: two `eigh`, where a bootstrap
  takes two for each draw. The real images are taken as given, and FID's bias is
  not in it.

  Raises:
    ValueError: there are no more images than dimensions, or widths differ.
  """
  features.check(generated=generated, real=real.mean[None])
  count, width = generated.shape
  if count <= width:
    raise ValueError(
      f"the error of FID of {count} images needs more than {width}, the width "
      "of their features"
    )
  ours = gaussian(moments(generated))
  root, inverse = _roots(ours.cov)
  transport = inverse @ _roots(root @ real.cov @ root)[0] @ inverse
  centred = generated - ours.mean
  found = 2 * centred @ (ours.mean - real.mean)
  found += (centred**2 - (centred @ transport) * centred).sum(axis=1)
  return found - found.mean()


def _roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The root of a covariance and its inverse, where it has no zero."""
  values, vectors = np.linalg.eigh(matrix)
  kept = values > values.max() * len(values) * np.finfo(np.float64).eps
  roots = np.sqrt(np.where(kept, values, 0.0))
  inverse = np.where(kept, 1 / np.where(kept, roots, 1.0), 0.0)
  return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T
