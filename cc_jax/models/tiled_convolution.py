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
CHANNELS, PIXELS = 64, 512
# A kernel of so many numbers a pixel of a tile takes longer to be arranged for
# XLA's convolution than the sum of three products of matrices takes.
NUMBERS_A_PIXEL = 32


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
  return jax.lax.platform_dependent(x, kernel, cpu=by_tiles, default=plain)


def _forward(x, kernel):
  return convolve(x, kernel), (x, kernel)


def _backward(kept, dy):
  return jax.lax.platform_dependent(
    *kept, dy, cpu=gradients, default=_plain_gradients
  )


convolve.defvjp(_forward, _backward)


def by_tiles(
  x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
  """A convolution of a map, padded by one, whose rows tiles divide."""
  return _tiles(x, _factors(kernel))


def _tiles(x, factors):
  """As `by_tiles`, of three matrices [6 C O], one for each row of a kernel."""
  B, H, W, _ = x.shape
  numbers = _numbers(x)
  if factors[0][0].size < NUMBERS_A_PIXEL * B * H * (W // TILE):
    kernels = jnp.stack(factors, 1)[:, :, None]  # [6 3 1 C O]
    products = [
      jax.lax.conv_general_dilated(
        number, kernel, (1, 1), ((1, 1), (0, 0)), dimension_numbers=NUMBERS
      )
      for number, kernel in zip(numbers, kernels, strict=True)
    ]
  else:
    stacked = jax.lax.optimization_barrier(jnp.stack(numbers))
    # Without a barrier each would be written once more, with its padding.
    rows = jax.lax.optimization_barrier(
      [jnp.einsum("nbhwc,nce->nbhwe", stacked, one) for one in factors]
    )
    edges = ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0))
    padded = [jnp.pad(row, edges) for row in rows]
    products = list(sum(one[:, :, n : n + H] for n, one in enumerate(padded)))
  pixels = jnp.stack(_times(OUTPUT, products), 3)  # [B H W/4 4 O]
  return pixels.reshape(B, H, W, -1)


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
  factors = jax.lax.optimization_barrier(_factors(kernel[::-1, ::-1]))
  dx = _tiles(dy, [one.swapaxes(1, 2) for one in factors])
  slopes = _times(OUTPUT.T, [dy[:, :, n::TILE] for n in range(TILE)])
  C, O = kernel.shape[2:]
  factors = [
    (_rows(number) @ slope.reshape(-1, O)).reshape(3, C, O)
    for number, slope in zip(_numbers(x), slopes, strict=True)
  ]
  return dx, jnp.stack(_times(KERNEL.T, factors), 1)


def _factors(kernel):
  """G k of each row of a kernel: 3 times [6 C O]."""
  return [jnp.stack(_times(KERNEL, list(row))) for row in kernel]


def _rows(x: Float[Array, "B H W C"]) -> Float[Array, "3*C B*H*W"]:
  """What each pixel sees down a column, channels first.

  XLA has quick products of matrices for what is so, and a slow one for the sum
  over the first axis of both; it would undo what no barrier holds.
  """
  _, H, _, C = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
  first = jax.lax.optimization_barrier(padded.transpose(3, 0, 1, 2))
  seen = jnp.stack([first[:, :, row : row + H] for row in range(3)])
  return jax.lax.optimization_barrier(seen.reshape(3 * C, -1))


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
