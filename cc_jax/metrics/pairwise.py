# SPDX-License-Identifier: Apache-2.0
"""All pairs of two sets, some rows at a time.

30,000 x 30,000 distances would be 3.6 GB; of `ROWS` x 30,000 there are 123 MB.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

ROWS = 1024


def blocks(count: int, rows: int = ROWS) -> Iterator[slice]:
  """Slices of so many rows, which together are all; the last may be short."""
  for start in range(0, count, rows):
    yield slice(start, min(start + rows, count))


def by_rows(
  fn: Callable[[slice], Any], count: int
) -> Shaped[np.ndarray, "N ..."]:
  """What a function gives for each row, of `ROWS` at a time."""
  return np.concatenate([fn(part) for part in blocks(count)])


def products(
  x: Float[Array, "N D"], y: Float[Array, "M D"]
) -> Float[Array, "N M"]:
  """x y', in float32 also where a device would take fewer bits."""
  return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def squared(
  x: Float[Array, "N D"], y: Float[Array, "M D"]
) -> Float[Array, "N M"]:
  """|x - y|^2 = |x|^2 + |y|^2 - 2 x y'; of `centred` sets less is lost."""
  lengths = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
  return jnp.maximum(lengths - 2 * products(x, y), 0)


def centred(
  x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]
) -> tuple[Float[Array, "N D"], Float[Array, "M D"]]:
  """Both less the mean of the first, which changes no distance."""
  mean = x.mean(axis=0, dtype=np.float64)
  return jnp.float32(x - mean), jnp.float32(y - mean)
