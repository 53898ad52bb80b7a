# SPDX-License-Identifier: Apache-2.0
"""Is the thing that was asked for in the picture? For simple pictures.

A support vector machine learns the labels of real images from a few grey
pixels, and says what it sees in generated ones. It serves where classes are
plain (digits, clothes); it is no measure of beauty.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
import numpy as np

# scikit-learn's own recipe for its digits, whose values run from 0 to 16.
RANGE, GAMMA = 16.0, 0.001


def pixels(
  images: Float[np.ndarray, "N H W 3"], side: int
) -> Float[np.ndarray, "N P"]:
  """Mean grey of side x side cells, from 0 to 16; P is side squared.

  Raises:
    ValueError: the images do not divide into cells.
  """
  count, height, width, _ = images.shape
  if height % side or width % side:
    raise ValueError(f"{height} x {width} images do not divide into {side}")
  grey = images @ np.array([0.299, 0.587, 0.114])
  cells = grey.reshape(count, side, height // side, side, width // side)
  return RANGE * cells.mean((2, 4)).reshape(count, -1)


def fit(
  images: Float[np.ndarray, "N H W 3"], labels: Sequence[str], side: int
) -> Any:
  """A classifier of images in [0, 1].

  Raises:
    ValueError: fewer than two labels, or scikit-learn is not installed.
  """
  try:
    from sklearn import svm
  except ImportError:
    raise ValueError(
      "recognition needs scikit-learn; pip install 'cc_jax[quickstart]'"
    ) from None
  if len(set(labels)) < 2:
    raise ValueError(f"recognition needs two labels or more, got {set(labels)}")
  scale = GAMMA * 64 / side**2
  return svm.SVC(gamma=scale, C=10.0).fit(pixels(images, side), list(labels))


def recognised(
  classifier: Any,
  images: Float[np.ndarray, "N H W 3"],
  labels: Sequence[str],
  side: int,
) -> float:
  """The share of images in [0, 1] that are seen as their label."""
  found = classifier.predict(pixels(images, side))
  return float(np.mean(found == np.asarray(labels)))
