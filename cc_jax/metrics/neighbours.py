# SPDX-License-Identifier: Apache-2.0
"""The training images that are most like a generated one: is it a copy?"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from cc_jax.metrics import features, pairwise

BANK_ROWS = 8192


class Neighbours(NamedTuple):
  """The k rows of a bank that are nearest to each query, nearest first.

  Attributes:
    cosine: from -1 to 1; of equals, the earlier row is first.
    row: in the bank.
  """

  cosine: Float[np.ndarray, "N k"]
  row: Int[np.ndarray, "N k"]


def nearest(
  queries: Float[np.ndarray, "N D"],
  bank: Float[np.ndarray, "M _"],
  k: int = 1,
) -> Neighbours:
  """Finds neighbours by the cosine of their features, exactly.

  Args:
    queries: features of generated images.
    bank: of training images; `BANK_ROWS` of it are read at a time, so it may be
      a numpy.memmap larger than memory.
    k: how many of each.

  Raises:
    ValueError: see `features.check` and `features.unit`, k is not within the
      bank.
  """
  features.check(queries=queries)
  if not 1 <= k <= len(bank):
    raise ValueError(f"k={k} neighbours in a bank of {len(bank)} images")
  x = jnp.asarray(features.unit(queries, "queries"))
  cosine = np.zeros((len(queries), 0), np.float32)
  row = np.zeros((len(queries), 0), np.int64)
  for part in pairwise.blocks(len(bank), BANK_ROWS):
    name = f"bank from row {part.start}"
    rows = np.asarray(bank[part])
    features.check(**{"queries": queries[:1], name: rows})
    y = jnp.asarray(features.unit(rows, name))
    found = [_top(x[b], y, min(k, len(rows))) for b in pairwise.blocks(len(x))]
    cosine = np.concatenate(
      [cosine, np.concatenate([values for values, _ in found])], axis=1
    )
    row = np.concatenate(
      [
        row,
        part.start + np.concatenate([at for _, at in found], dtype=np.int64),
      ],
      axis=1,
    )
    # Stable, so that of equals the earlier stays before the later.
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    cosine = np.take_along_axis(cosine, order, axis=1)
    row = np.take_along_axis(row, order, axis=1)
  return Neighbours(cosine, row)


@functools.partial(jax.jit, static_argnames="k")
def _top(
  x: Float[Array, "N D"], y: Float[Array, "M D"], k: int
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
  return tuple(jax.lax.top_k(pairwise.products(x, y), k))
