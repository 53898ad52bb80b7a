# SPDX-License-Identifier: Apache-2.0
"""The one entry to convolutions, and how CPUs compute them fast.

On accelerators a convolution is what XLA makes of it. On CPUs XLA computes the
gradient of a kernel as a convolution with a window as large as the map, on
copies in another order of the axes; here it is a product of matrices for each
place of the kernel. Wide convolutions of 3 x 3 go by Winograd's method, and
what looks at each pixel once, as 1 x 1 and patches do, is one product.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.models import winograd

# From so many channels on both sides Winograd's method saves more than its sums
# cost, where there are as many pixels as would read the kernel often enough.
WIDE, PIXELS = 64, 256
# Up to so many inputs of an output pixel are put side by side.
NARROW = 64


class Window(NamedTuple):
  """How a kernel goes over a map: arguments of `conv_general_dilated`."""

  strides: tuple[int, int]
  padding: tuple[tuple[int, int], ...]
  options: tuple[tuple[str, Any], ...]


def convolution(
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "h w _ O"],
  strides: Sequence[int],
  padding: Any,
  **options: Any,
) -> Float[Array, "B I J O"]:
  """`jax.lax.conv_general_dilated` of maps, with the arguments of flax.

  Which way it goes is decided when a program is made for a platform, so that a
  CPU may compile for others. In float32 derivatives are by reverse mode only;
  other types, dilation and groups are left to XLA everywhere.
  """
  dilation = {
    *(options.get("lhs_dilation") or ()),
    *(options.get("rhs_dilation") or ()),
  }
  groups = options.get("feature_group_count", 1)
  if x.dtype != jnp.float32 or dilation - {1} or groups != 1:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(
      x.shape[1:3], kernel.shape[:2], strides, padding
    )
  window = Window(
    tuple(strides), tuple(map(tuple, padding)), tuple(options.items())
  )
  return _convolution(window, x, kernel)


def _plain(window, x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, window.strides, window.padding, **dict(window.options)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(window, x, kernel):
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(forward, window),
    default=functools.partial(_plain, window),
  )


def _kept(window, x, kernel):
  return _convolution(window, x, kernel), (x, kernel)


def _backward(window, kept, dy):
  return jax.lax.platform_dependent(
    *kept,
    dy,
    cpu=functools.partial(gradients, window),
    default=functools.partial(_gradients, window),
  )


_convolution.defvjp(_kept, _backward)


def _gradients(window, x, kernel, dy):
  return _input_gradient(window, x, kernel, dy), _kernel_gradient(
    window, x, kernel, dy
  )


def _input_gradient(window, x, kernel, dy):
  transposed = jax.linear_transpose(lambda x: _plain(window, x, kernel), x)
  return transposed(dy)[0]


def _kernel_gradient(window, x, kernel, dy):
  return jax.linear_transpose(lambda k: _plain(window, x, k), kernel)(dy)[0]


def forward(
  window: Window, x: Float[Array, "B H W C"], kernel: Float[Array, "h w C O"]
) -> Float[Array, "B I J O"]:
  """A convolution on a CPU."""
  if is_patches(window, x, kernel):
    y = _patches(x, kernel.shape)
    O = kernel.shape[-1]
    return (y @ kernel.reshape(-1, O)).reshape(*y.shape[:3], O)
  if by_winograd(window, x, kernel):
    return winograd.convolution(x, kernel)
  return _plain(window, x, kernel)


def gradients(
  window: Window,
  x: Float[Array, "B H W C"],
  kernel: Float[Array, "h w C O"],
  dy: Float[Array, "B I J O"],
) -> tuple[Float[Array, "B H W C"], Float[Array, "h w C O"]]:
  """The gradients of `forward` of both, from that of its output."""
  h, w, _, O = kernel.shape
  slopes = dy.reshape(-1, O)
  if is_patches(window, x, kernel):
    dx = slopes @ kernel.reshape(-1, O).T
    dk = _patches(x, kernel.shape).reshape(len(slopes), -1).T @ slopes
    return _unpatched(dx, x.shape, kernel.shape), dk.reshape(kernel.shape)
  # What a pixel of the output sees on one side, one of the input is seen from
  # on the other.
  if window.strides == (1, 1):
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    sides = [
      (size - 1 - low, size - 1 - high)
      for size, (low, high) in zip((h, w), window.padding, strict=True)
    ]
    dx = forward(window._replace(padding=tuple(sides)), dy, turned)
  else:
    dx = _input_gradient(window, x, kernel, dy)
  if by_winograd(window, x, kernel):
    return dx, winograd.kernel_gradient(x, dy)
  if h * w > 9:
    return dx, _kernel_gradient(window, x, kernel, dy)
  seen = _seen(window, x, kernel.shape, dy.shape)
  if math.prod(kernel.shape[:3]) <= NARROW:
    dk = jnp.concatenate(seen, -1).reshape(len(slopes), -1).T @ slopes
  else:
    flat = [place.reshape(len(slopes), -1) for place in seen]
    dk = jnp.stack([place.T @ slopes for place in flat])
  return dx, dk.reshape(kernel.shape)


def is_patches(window: Window, x: Any, kernel: Any) -> bool:
  """Whether each pixel is seen once: 1 x 1, or strides as large as a kernel."""
  size = kernel.shape[:2]
  return (
    not any(map(any, window.padding))
    and window.strides == size
    and not any(
      side % part for side, part in zip(x.shape[1:3], size, strict=True)
    )
  )


def by_winograd(window: Window, x: Any, kernel: Any) -> bool:
  """Whether Winograd's method computes this, and fast."""
  B, H, W, _ = x.shape
  return (
    kernel.shape[:2] == (3, 3)
    and window.strides == (1, 1)
    and window.padding == ((1, 1), (1, 1))
    and not (H % 2 or W % 2)
    and min(kernel.shape[2:]) >= WIDE
    and B * H * W >= PIXELS
  )


def _patches(x, shape):
  """[B H W C] -> [B I J h w C], with the last three as one."""
  B, H, W, C = x.shape
  h, w = shape[:2]
  x = x.reshape(B, H // h, h, W // w, w, C).swapaxes(2, 3)
  return x.reshape(B, H // h, W // w, h * w * C)


def _unpatched(x, shape, kernel):
  """The way back."""
  B, H, W, C = shape
  h, w = kernel[:2]
  return x.reshape(B, H // h, W // w, h, w, C).swapaxes(2, 3).reshape(shape)


def _seen(window, x, kernel, out):
  """Of each place of a kernel, the pixels that it is over: [B I J C]."""
  x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
  (a, b), (_, I, J, _) = window.strides, out
  return [
    x[:, i : i + a * (I - 1) + 1 : a, j : j + b * (J - 1) + 1 : b]
    for i in range(kernel[0])
    for j in range(kernel[1])
  ]
