# SPDX-License-Identifier: Apache-2.0
"""The one entry to convolutions of maps, for devices that do some slowly.

On CPUs those of large maps in float32 are by tiles: tiled_convolution.py. Those
of 1x1 are products of matrices: the gradient of a kernel is one then, too, and
not a convolution with a window as large as the map, for which XLA has no quick
way (with AVX2 13 times slower for 192 and 64 channels of 32x32 maps). Gradients
where 3x3 kernels are large for a map are products, too (small_convolution.py):
for 1,280 channels of a map of 8x8 they take 36 ms and 31 on one core, not 67
and 41.

On TPUs the gradient of a 3x3 kernel is a convolution with a window as large as
the map. Of maps of 8x8 and less, and of 16x16 with a large kernel, XLA now and
then cuts it into windows of one pixel and 16 channels, 10 to 37 times slower
than the rest of what it does: two such took 13.6 % of SD2's step at 256 pixels.
As nine products of matrices, one for each place in the kernel, it takes what
such products take, whatever is around it.
"""

from contextlib import AbstractContextManager
import contextvars
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import scoped, sharding
from cc_jax.models import products, small_convolution, tiled_convolution

# Where gradients are products. On TPUs: the largest map, and the fewest
# channels on both sides; the largest for a kernel of so many numbers at each
# place, beside whose products copies of a map cost little.
PIXELS, CHANNELS = 64, 128
PIXELS_OF_LARGE, LARGE = 256, 1920 * 1280
# On CPUs: the fewest channels for each pixel of a batch.
PER_PIXEL = 4

_own = contextvars.ContextVar("own convolutions", default=True)


def own(whether: bool) -> AbstractContextManager[None]:
  """What is traced inside has our ways of convolving, or the compiler's alone.

  To measure what they are worth.
  """
  return scoped.holding(_own, whether)


def owns() -> bool:
  """Whether `convolve` has ways of ours here."""
  return _own.get()


def convolve(
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "I J C O"],
  strides: Any,
  padding: Any,
  **kinds: Any,
) -> Float[Array, "B H2 W2 O"]:
  """`jax.lax.conv_general_dilated`, in the way that is fast on the device."""
  if way := _way(x, kernel, strides, padding):
    return way(x, kernel)
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kinds)


def _way(x, kernel, strides, padding):
  """That of ours for such arrays, None where the compiler's is the best."""
  if not owns():
    return None
  if same(kernel, strides, padding):
    if tiled_convolution.suits(x, kernel):
      return tiled_convolution.convolve
    if suits(x, kernel):
      return small_convolution.convolve
  if sharding.platform() == "cpu" and of_pixels(x, kernel, strides, padding):
    return lambda x, kernel: products.product(x, kernel[0, 0])
  return None


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
  """Whether a map is small, so that its gradients are by products.

  Of few channels, as those of latents, the compiler's own is as good.
  """
  (B, H, W, _), (C, O) = x.shape, kernel.shape[2:]
  narrow = min(C, O)
  if narrow < CHANNELS:
    return False
  if sharding.platform() == "cpu":
    return x.dtype == jnp.float32 and narrow >= PER_PIXEL * B * H * W
  pixels = PIXELS_OF_LARGE if C * O >= LARGE else PIXELS
  short = sharding.platform() == "tpu" and x.dtype.itemsize < 4
  return short and H * W <= pixels
