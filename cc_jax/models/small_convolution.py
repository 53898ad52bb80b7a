# SPDX-License-Identifier: Apache-2.0
"""Gradients of 3x3 convolutions of small maps: nine products of matrices.

One for each place in the kernel, over all pixels; `convolution.py` says where
they are faster than what the compiler makes of a convolution.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import sharding
from cc_jax.models import products, tiled_convolution


def _forward(x, kernel):
  return tiled_convolution.plain(x, kernel), (x, kernel)


def _backward(saved, cotangent):
  x, kernel = saved
  if sharding.platform() == "cpu":
    towards = gradient(kernel, cotangent)
  else:
    towards = tiled_convolution.plain_gradient(x, kernel, cotangent)
  return towards, kernel_gradient(x, cotangent)


# `tiled_convolution.plain`; derivatives are by reverse mode only.
convolve = jax.custom_vjp(tiled_convolution.plain)
convolve.defvjp(_forward, _backward)


def gradient(
  kernel: Float[Array, "3 3 C O"], cotangent: Float[Array, "B H W O"]
) -> Float[Array, "B H W C"]:
  """Of the map, on CPUs: as a convolution it would have the kernel turned.

  XLA on CPUs turns it number by number, which for a map of 8x8 and 1,280
  channels takes as long as the convolution itself.
  """
  return sum(
    moved(jnp.einsum("bhwf,df->bhwd", cotangent, kernel[i, j]), i - 1, j - 1)
    for i in range(3)
    for j in range(3)
  )


def kernel_gradient(
  x: Float[Array, "B H W C"], cotangent: Float[Array, "B H W O"]
) -> Float[Array, "3 3 C O"]:
  """Of the kernel.

  In the type of the maps, as the compiler's own gradient is: where a batch is
  split, devices send each other 16 bits and not 32.
  """
  on_cpu = sharding.platform() == "cpu"
  product = products.kernel_gradient if on_cpu else _kernel_gradient

  def place(i, j):
    return product(x, moved(cotangent, i - 1, j - 1))

  rows = [jnp.stack([place(i, j) for j in range(3)]) for i in range(3)]
  return jnp.stack(rows)


def _kernel_gradient(x, cotangent):
  # The order and the barrier of that of products.py are for CPUs.
  return jnp.einsum("bhwd,bhwf->df", x, cotangent)


def moved(
  x: Float[Array, "B H W C"], down: int, right: int
) -> Float[Array, "B H W C"]:
  """A map moved by up to one pixel each way, zeros where it was not.

  Output pixel (h, w) reads input pixel (h + i - 1, w + j - 1) for the place
  (i, j): what is of the output moves by (i - 1, j - 1) to be where it is read.
  """
  _, H, W, _ = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return padded[:, 1 - down : 1 - down + H, 1 - right : 1 - right + W]
