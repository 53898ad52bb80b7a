# SPDX-License-Identifier: Apache-2.0
"""The one entry to convolutions of maps, for devices that do some slowly.

On CPUs those of large maps in float32 are by tiles: tiled_convolution.py. Those
of 1x1 are products of matrices: the gradient of a kernel is one then, too, and
not a convolution with a window as large as the map, for which XLA has no quick
way (with AVX2 13 times slower for 192 and 64 channels of 32x32 maps).

On TPUs the gradient of a 3x3 kernel is a convolution with a window as large as
the map. Of maps of 8x8 and less XLA now and then cuts it into windows of one
pixel and 16 channels, 10 to 37 times slower than the rest of what it does: two
such took 13.6 % of SD2's step. As nine products of matrices, one for each place
in the kernel, it takes what such products take, whatever is around it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import sharding
from cc_jax.models import products, tiled_convolution

# Of the largest map for which it is done; and the fewest on both sides.
PIXELS, CHANNELS = 64, 128


def convolve(
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "I J C O"],
  strides: Any,
  padding: Any,
  **kinds: Any,
) -> Float[Array, "B H2 W2 O"]:
  """`jax.lax.conv_general_dilated`, in the way that is fast on the device."""
  if same(kernel, strides, padding):
    if tiled_convolution.suits(x, kernel):
      return tiled_convolution.convolve(x, kernel)
    if sharding.platform() == "tpu" and suits(x, kernel):
      return small(x, kernel)
  if sharding.platform() == "cpu" and of_pixels(x, kernel, strides, padding):
    return products.product(x, kernel[0, 0])
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kinds)


def same(kernel: Any, strides: Any, padding: Any) -> bool:
  """Whether a convolution is 3x3 and gives a map of the same size."""
  return (
    kernel.shape[:2] == (3, 3)
    and tuple(strides) == (1, 1)
    and [tuple(pad) for pad in padding] == [(1, 1), (1, 1)]
  )


def of_pixels(x: Any, kernel: Any, strides: Any, padding: Any) -> bool:
  """Whether a convolution in float32 is a product for each pixel by itself."""
  return (
    x.dtype == jnp.float32
    and kernel.shape[:3] == (1, 1, x.shape[-1])
    and tuple(strides) == (1, 1)
    and [tuple(pad) for pad in padding] == [(0, 0), (0, 0)]
  )


def suits(x: Any, kernel: Any) -> bool:
  """Whether a map is small and of 16 bits, so that its gradient may be slow.

  Of few channels, as those of latents, the compiler's own is as good.
  """
  return (
    x.dtype.itemsize < 4
    and x.shape[1] * x.shape[2] <= PIXELS
    and min(kernel.shape[2:]) >= CHANNELS
  )


def _forward(x, kernel):
  return tiled_convolution.plain(x, kernel), (x, kernel)


def _backward(saved, cotangent):
  x, kernel = saved
  plain = lambda x: tiled_convolution.plain(x, kernel)
  (towards,) = jax.vjp(plain, x)[1](cotangent)
  return towards, kernel_gradient(x, cotangent)


# `plain` with `kernel_gradient`.
small = jax.custom_vjp(tiled_convolution.plain)
small.defvjp(_forward, _backward)


def kernel_gradient(
  x: Float[Array, "B H W C"], cotangent: Float[Array, "B H W O"]
) -> Float[Array, "3 3 C O"]:
  """Of `plain`: at each place in the kernel a product over all pixels.

  In the type of the maps, as the compiler's own gradient is: where a batch is
  split, devices send each other 16 bits and not 32.
  """
  _, H, W, _ = x.shape
  padded = jnp.pad(cotangent, ((0, 0), (1, 1), (1, 1), (0, 0)))

  def product(i, j):
    # Output pixel (h, w) reads x at (h + i - 1, w + j - 1).
    read = padded[:, 2 - i : 2 - i + H, 2 - j : 2 - j + W]
    return jnp.einsum("bhwc,bhwd->cd", x, read)

  rows = [jnp.stack([product(i, j) for j in range(3)]) for i in range(3)]
  return jnp.stack(rows)
