# SPDX-License-Identifier: Apache-2.0
"""Sets of features, a row for each image: what every metric asks of them."""

from jaxtyping import Float
import numpy as np


def check(**sets: np.ndarray) -> None:
  """Refuses sets of which no number can be made; names are for the message.

  Raises:
    ValueError: a set is not of rows, or is empty, a row is not finite, or sets
      are not equally wide.
  """
  for name, rows in sets.items():
    if rows.ndim != 2 or 0 in rows.shape:
      raise ValueError(
        f"{name}: features of shape {rows.shape}; expected [N D], a row for "
        "each image"
      )
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
      raise ValueError(
        f"{name}: row {broken[0]} is not finite, as are {len(broken)} of "
        f"{len(rows)} rows; leave these images out, or compute in float32"
      )
  widths = {name: rows.shape[1] for name, rows in sets.items()}
  if len(set(widths.values())) > 1:
    found = ", ".join(f"{width} of {name}" for name, width in widths.items())
    raise ValueError(f"widths differ, {found}; take all from one network")


def unit(rows: Float[np.ndarray, "N D"], name: str) -> np.ndarray:
  """Rows [N D] of length 1, in float32.

  Raises:
    ValueError: a row is zero and has no direction.
  """
  length = np.linalg.norm(rows.astype(np.float64), axis=1)
  if not length.all():
    raise ValueError(f"{name}: row {length.argmin()} is zero")
  return (rows / length[:, None]).astype(np.float32)
