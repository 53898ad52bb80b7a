# SPDX-License-Identifier: Apache-2.0
"""Residual blocks of convolutions, and what halves and doubles maps."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.models import layers, recompute


class ResnetBlock(nnx.Module):
  """x + conv(act(norm(conv(act(norm(x))) + time))), SiLU throughout.

  The residual block of arXiv 2006.11239, appendix B, with group norms.
  """

  def __init__(
    self,
    channels: int,
    out: int,
    *,
    time_width: int | None = None,
    groups: int = 32,
    eps: float = 1e-5,
    out_init: Callable = layers.INIT,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    self.norm1 = layers.group_norm(channels, groups, eps, **kinds)
    self.conv1 = layers.conv(channels, out, **kinds)
    self.time = layers.linear(time_width, out, **kinds) if time_width else None
    self.norm2 = layers.group_norm(out, groups, eps, **kinds)
    self.conv2 = layers.conv(out, out, init=out_init, **kinds)
    self.shortcut = (
      layers.conv(channels, out, 1, **kinds) if channels != out else None
    )

  def __call__(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B F"] | None = None,
  ) -> Float[Array, "B H W O"]:
    x = recompute.summed_once(x)
    h = self.conv1(layers.norm_silu(self.norm1, x))
    if self.time is not None:
      h = h + self.time(jax.nn.silu(time))[:, None, None, :]
    h = self.conv2(layers.norm_silu(self.norm2, h))
    return h + (x if self.shortcut is None else self.shortcut(x))


class Downsample(nnx.Module):
  """[B H W C] -> [B H/2 W/2 C] by a convolution with stride 2."""

  def __init__(
    self,
    channels: int,
    out: int,
    *,
    padding: Any = None,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    self.conv = layers.conv(
      channels, out, stride=2, padding=padding, dtype=dtype, rngs=rngs
    )

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J O"]:
    return self.conv(x)


class Upsample(nnx.Module):
  """[B H W C] -> [B 2H 2W C]: nearest neighbour, then a convolution."""

  def __init__(
    self, channels: int, out: int, *, dtype: layers.Dtype, rngs: nnx.Rngs
  ):
    self.conv = layers.conv(channels, out, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, "B H W C"],
    size: tuple[int, int] | None = None,
  ) -> Float[Array, "B I J O"]:
    """`size` [H W] serves maps that were odd before they were halved."""
    B, H, W, C = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C))
    x = x.reshape(B, 2 * H, 2 * W, C)
    if size is not None and size != (2 * H, 2 * W):
      # Nearest neighbour to an odd size drops the last row or column.
      x = x[:, : size[0], : size[1]]
    return self.conv(x)
