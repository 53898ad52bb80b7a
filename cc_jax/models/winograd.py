# SPDX-License-Identifier: Apache-2.0
"""Convolutions of 3 x 3 with fewer products: Winograd's method.

"Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, §4.1,
F(2x2, 3x3). Of the output a tile of 2 x 2 pixels is A'[(G g G') * (B' d B)]A, d
the tile of 4 x 4 pixels of the input that it sees and g the kernel: 16 products
of channels where the plain sum has 36. models/convolution.py uses it on CPUs.

A product is one of matrices for all tiles together, [T C] [C O] with T the
tiles. Some rows of tiles are worked on at a time, so that what goes from one
step to the next stays in a cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

# Arrays by their row and column in a tile.
Tile = Sequence[Sequence[Any]]

# Numbers of the transformed input and output that are worked on at once.
CHUNK = 2**22
# G, and what makes 16 numbers of the 9 of a kernel.
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], "f4")
FACTORS = np.kron(G, G)


def convolution(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
  """A convolution of a map padded by one; height and width are even."""
  B, H, W, _ = x.shape
  O = kernel.shape[-1]
  # One product in place of a program for each of the 16.
  factors = _product(FACTORS, kernel.reshape(9, -1)).reshape(4, 4, -1, O)

  def rows(part):
    inputs = both(_input, windows(part))
    products = [
      [_flat(one) @ factor for one, factor in zip(*pair, strict=True)]
      for pair in zip(inputs, factors, strict=True)
    ]
    (a, b), (c, d) = both(_output, products)
    tiles = (B, part.shape[1] // 2 - 1, W // 2, O)
    upper, lower = (
      jnp.stack([left.reshape(tiles), right.reshape(tiles)], 3)
      for left, right in ((a, b), (c, d))
    )
    return jnp.stack([upper, lower], 2).reshape(B, part.shape[1] - 2, W, O)

  count = chunks(x.shape, O)
  padded = _pad(x)
  if count == 1:
    return rows(padded)
  step = H // count
  parts = jax.lax.map(
    lambda n: rows(_rows(padded, n * step, step + 2)), jnp.arange(count)
  )
  return jnp.moveaxis(parts, 0, 1).reshape(B, H, W, O)


def kernel_gradient(
  x: Float[Array, "B H W C"], dy: Float[Array, "B H W O"]
) -> Float[Array, "3 3 C O"]:
  """The gradient of the kernel of `convolution`, from that of its output."""
  H, C, O = x.shape[1], x.shape[3], dy.shape[3]

  def rows(part, slopes):
    inputs = both(_input, windows(part))
    outputs = both(_slope, [_halves(half, 2) for half in _halves(slopes, 1)])
    return jnp.stack(
      [
        _flat(one).T @ _flat(slope)
        for pair in zip(inputs, outputs, strict=True)
        for one, slope in zip(*pair, strict=True)
      ]
    )

  count = chunks(x.shape, O)
  padded = _pad(x)
  if count == 1:
    products = rows(padded, dy)
  else:
    step = H // count

    def add(total, n):
      part = _rows(padded, n * step, step + 2)
      return total + rows(part, _rows(dy, n * step, step)), None

    zeros = jnp.zeros((16, C, O), x.dtype)
    products = jax.lax.scan(add, zeros, jnp.arange(count))[0]
  return _product(FACTORS.T, products.reshape(16, -1)).reshape(3, 3, C, O)


def chunks(shape: Sequence[int], out: int) -> int:
  """How many parts the rows of a map of this shape are cut into."""
  B, H, W, C = shape
  size = 4 * B * H * W * (C + out)
  rows = H // 2
  counts = (count for count in range(1, rows) if rows % count == 0)
  return next((count for count in counts if size <= count * CHUNK), rows)


def both(transform: Callable[[Any], list[Any]], tile: Any) -> Tile:
  """A transform of tiles: of their rows, then of their columns."""
  rows = [transform(row) for row in tile]
  columns = [transform(column) for column in zip(*rows, strict=True)]
  return list(zip(*columns, strict=True))


def windows(x: Float[Array, "B H W C"]) -> Tile:
  """The 4 x 4 pixels that each tile of 2 x 2 sees, of a padded map."""
  _, H, W, _ = x.shape
  return [
    [
      x[:, row : row + H - 3 : 2, column : column + W - 3 : 2]
      for column in range(4)
    ]
    for row in range(4)
  ]


def _input(d):  # B'
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _output(m):  # A'
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _slope(y):  # A
  return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _product(a, b):
  return jnp.matmul(a, b, precision="highest")


def _pad(x):
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _rows(x, start, count):
  return jax.lax.dynamic_slice_in_dim(x, start, count, 1)


def _halves(x, axis):
  """The even and the odd entries along an axis."""
  size = x.shape[axis]
  return [jax.lax.slice_in_dim(x, first, size, 2, axis) for first in (0, 1)]


def _flat(x):
  return x.reshape(-1, x.shape[-1])
