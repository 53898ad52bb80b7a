# SPDX-License-Identifier: Apache-2.0
"""Pooling over 3 x 3 positions, for inception.py."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


def _windows(
  x: Float[Array, "B H W C"],
  join: Callable[[Array, Array], Array],
  stride: int = 1,
) -> Float[Array, "B I J C"]:
  """Joins the positions of windows of 3 x 3: three rows, then three columns.

  As slices, which XLA fuses; on CPUs its own windows go value by value.
  """
  for axis in (1, 2):
    last = x.shape[axis] - 2
    x = functools.reduce(
      join,
      [
        jax.lax.slice_in_dim(x, start, last + start, stride, axis)
        for start in range(3)
      ],
    )
  return x


def halve(x: Float[Array, "B H W C"]) -> Float[Array, "B I J C"]:
  """The maximum of 3 x 3 positions at every second one, none at the border."""
  return _windows(x, jnp.maximum, stride=2)


def _padded(x: Float[Array, "B H W C"], value: float) -> Array:
  border = ((0, 0), (1, 1), (1, 1), (0, 0))
  return jnp.pad(x, border, constant_values=value)


def maximum(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """The maximum of the 3 x 3 positions around each."""
  return _windows(_padded(x, -jnp.inf), jnp.maximum)


def _inside(side: int) -> np.ndarray:
  """How many of three positions around each of a row are of the row."""
  place = np.arange(side)
  return 3 - (place == 0) - (place == side - 1)


def average(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """The mean of those 3 x 3 positions around each that are in the image."""
  rows, columns = (_inside(side) for side in x.shape[1:3])
  count = np.outer(rows, columns)[..., None].astype(x.dtype)
  return _windows(_padded(x, 0.0), jnp.add) / count
