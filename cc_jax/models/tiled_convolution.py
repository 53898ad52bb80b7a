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

from cc_jax.models import products, recompute

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
# less than they save.
CHANNELS, PIXELS = 128, 128
# Up to so many pixels for each channel a kernel is large for a map.
LARGE = 4


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


def plain_gradient(
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "3 3 C O"],
  dy: Float[Array, "B H W O"],
) -> Float[Array, "B H W C"]:
  """That of `plain`'s x, by XLA.

  `jax.vjp` would also trace `plain` itself, and its operations be counted.
  """
  (dx,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(dy)
  return dx


def _plain_gradients(x, kernel, dy):
  of_kernel = jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)
  return plain_gradient(x, kernel, dy), *of_kernel(dy)


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
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "3 3 C O"] | Float[Array, "3 3 O C"],
  turned: bool = False,
) -> Float[Array, "B H W O"]:
  """`plain`, by tiles.

  Where the kernel is large for the map, each convolution of 3 x 1 is three
  products of matrices, which take the kernel as it is: turned, XLA on CPUs
  would write each of its numbers for itself, which takes as long as the rest.

  Args:
    x: a map, whose rows tiles divide.
    kernel: of the convolution.
    turned: the last two axes of the kernel are the other way round.
  """
  B, H, W, _ = x.shape
  factors = _times(KERNEL, [kernel[:, n] for n in range(3)])
  large = B * H * W <= LARGE * min(kernel.shape[2:])
  column = _by_products if large else _by_convolution
  made = [
    column(number, factor, turned)
    for number, factor in zip(_numbers(x), factors, strict=True)
  ]
  pixels = jnp.stack(_times(OUTPUT, made), 3)  # [B H W/4 4 O]
  return pixels.reshape(*x.shape[:3], -1)


def _by_convolution(number, factor, turned):
  factor = factor.swapaxes(1, 2) if turned else factor
  return jax.lax.conv_general_dilated(
    number, factor[:, None], (1, 1), ((1, 1), (0, 0)), dimension_numbers=NUMBERS
  )


def _by_products(number, factor, turned):
  pairs = zip(_seen(number), factor, strict=True)
  if turned:
    return sum(jnp.einsum("bhwf,df->bhwd", one, row) for one, row in pairs)
  return sum(one @ row for one, row in pairs)


def gradients(
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "3 3 C O"],
  dy: Float[Array, "B H W O"],
) -> tuple[Float[Array, "B H W C"], Float[Array, "3 3 C O"]]:
  """Those of `plain`, of x and of the kernel, from that of its output.

  That of the kernel is of products of matrices: as a convolution its window
  would be the whole map, for which XLA has no quick way.
  """
  dy = recompute.written(dy)
  slopes = _times(OUTPUT.T, [dy[:, :, n::TILE] for n in range(TILE)])
  factors = []
  for number, slope in zip(_numbers(x), slopes, strict=True):
    gradient = [products.kernel_gradient(one, slope) for one in _seen(number)]
    factors.append(jnp.stack(gradient))
  dkernel = jnp.stack(_times(KERNEL.T, factors), 1)
  # What a pixel sees on one side sees it on the other.
  return values(dy, kernel[::-1, ::-1], turned=True), dkernel


def _seen(number):
  """The rows that those of the output see: above them, the same and below."""
  padded = jnp.pad(number, ((0, 0), (1, 1), (0, 0), (0, 0)))
  return [padded[:, row : row + number.shape[1]] for row in range(3)]


def _numbers(x):
  """B' x of each tile: 6 maps [B H W/4 C]."""
  B, H, W, C = x.shape
  tiles = recompute.written(x).reshape(B, H, W // TILE, TILE, C)
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
