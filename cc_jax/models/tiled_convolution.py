# SPDX-License-Identifier: Apache-2.0
"""Convolutions of 3 x 3 as CPUs compute them fast: by tiles.

"Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, §2 and
§4. Along a row of the map, 4 pixels y of the output see 6 pixels x of the
input; with k the three numbers of a kernel's row,

  y = A' [(G k) * (B' x)]

has 6 products where the sum itself has 12. Each is a convolution of 3 x 1, down
the columns, of one number of all tiles. With tiles of the other axis too there
are fewer products, but more to read and write: SD's encoder is slower.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from cc_jax.models import products

NUMBERS = ("NHWC", "HWIO", "NHWC")
# Pixels of a tile.
TILE = 4
# B', G and A' of F(4, 3).
INPUT = np.array(
  [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
  ]
)
KERNEL = (
  np.array(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
  )
  / 24
)
OUTPUT = np.array(
  [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
  ]
)
# From so many channels on both sides, and so many pixels, sums for tiles cost
# less than they save: the gradient of a kernel, and all else.
CHANNELS, WIDE, PIXELS = 128, 192, 1024


def suits(x: Any, kernel: Any) -> bool:
  """Whether a map of float32 divides into tiles, and is worth the sums."""
  B, H, W, _ = x.shape
  large = B * H * W >= PIXELS and min(kernel.shape[2:]) >= CHANNELS
  return x.dtype == jnp.float32 and large and W % TILE == 0


def plain(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
  """A convolution of a map padded by one, to one of the same size, by XLA."""
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NUMBERS
  )


def _plain_gradients(x, kernel, dy):
  # `jax.vjp` would also trace `plain` itself, and its operations be counted.
  of_x = jax.linear_transpose(lambda x: plain(x, kernel), x)
  of_kernel = jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)
  return *of_x(dy), *of_kernel(dy)


@jax.custom_vjp
def convolve(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
  """`plain`, by tiles on CPUs; derivatives are by reverse mode only.

  Which it is is decided when a program is made for a platform, so that a CPU
  may compile for others.
  """
  return jax.lax.platform_dependent(x, kernel, cpu=values, default=plain)


def _forward(x, kernel):
  return convolve(x, kernel), (x, kernel)


def _backward(kept, dy):
  return jax.lax.platform_dependent(
    *kept, dy, cpu=gradients, default=_plain_gradients
  )


convolve.defvjp(_forward, _backward)


def values(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
  """`plain`, by tiles where there are channels enough."""
  wide = min(kernel.shape[2:]) >= WIDE
  return by_tiles(x, kernel) if wide else plain(x, kernel)


def by_tiles(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
  """A convolution of a map, padded by one, whose rows tiles divide."""
  factors = _times(KERNEL, [kernel[:, n : n + 1] for n in range(3)])
  made = [
    jax.lax.conv_general_dilated(
      number, factor, (1, 1), ((1, 1), (0, 0)), dimension_numbers=NUMBERS
    )
    for number, factor in zip(_numbers(x), factors, strict=True)
  ]
  pixels = jnp.stack(_times(OUTPUT, made), 3)  # [B H W/4 4 O]
  return pixels.reshape(*x.shape[:3], -1)


def gradients(
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "3 3 C O"],
  dy: Float[Array, "B H W O"],
) -> tuple[Float[Array, "B H W C"], Float[Array, "3 3 C O"]]:
  """Those of `plain`, of x and of the kernel, from that of its output.

  That of the kernel is of products of matrices: as a convolution its window
  would be the whole map, for which XLA has no quick way.
  """
  # What a pixel sees on one side sees it on the other.
  dx = values(dy, kernel[::-1, ::-1].swapaxes(2, 3))
  slopes = _times(OUTPUT.T, [dy[:, :, n::TILE] for n in range(TILE)])
  rows = range(3)
  factors = []
  for number, slope in zip(_numbers(x), slopes, strict=True):
    padded = jnp.pad(number, ((0, 0), (1, 1), (0, 0), (0, 0)))
    seen = [padded[:, row : row + x.shape[1]] for row in rows]
    gradient = [products.kernel_gradient(one, slope) for one in seen]
    factors.append(jnp.stack(gradient))
  return dx, jnp.stack(_times(KERNEL.T, factors), 1)


def _numbers(x):
  """B' x of each tile: 6 maps [B H W/4 C]."""
  B, H, W, C = x.shape
  tiles = x.reshape(B, H, W // TILE, TILE, C)
  own = [tiles[:, :, :, n] for n in range(TILE)]
  before = jnp.pad(own[-1][:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
  after = jnp.pad(own[0][:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
  return _times(INPUT, [before, *own, after])


def _times(matrix: np.ndarray, terms: Sequence[Any]) -> list[Any]:
  """A product with a few numbers, of which many are 0."""
  return [
    sum(float(a) * x for a, x in zip(row, terms, strict=True) if a)
    for row in matrix
  ]
