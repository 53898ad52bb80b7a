# SPDX-License-Identifier: Apache-2.0
"""Group norm, written so that a compiler keeps the map it reads as it lies.

Statistics are sums over pixels for each channel, joined over the channels of a
group afterwards, where they are few numbers: the map itself is never reshaped
into groups, which on a TPU, whose tiles are 128 channels wide, moves it.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class GroupNorm(nnx.Module):
  """Normalises [B ... C] over all between and C / groups channels.

  "Group Normalization", arXiv 1803.08494, §3. Statistics are in float32, and
  the result in `dtype`. Of 16-bit inputs both moments are taken in one pass,
  E[x^2] - E[x]^2, of which float32 has 16 bits more than they; of others the
  variance is that of what is left without the mean.
  """

  def __init__(
    self,
    channels: int,
    groups: int,
    eps: float,
    *,
    dtype: Any,
    rngs: nnx.Rngs,
  ):
    self.groups, self.eps, self.dtype = groups, eps, dtype
    ones, zeros = nnx.initializers.ones, nnx.initializers.zeros
    self.scale = nnx.Param(ones(rngs.params(), (channels,), jnp.float32))
    self.bias = nnx.Param(zeros(rngs.params(), (channels,), jnp.float32))

  def __call__(self, x: Float[Array, "B *H C"]) -> Float[Array, "B *H C"]:
    short = x.dtype.itemsize < 4
    x = x.astype(jnp.float32)
    mean = self._mean(x)
    if short:
      var = jnp.maximum(self._mean(jnp.square(x)) - jnp.square(mean), 0)
    else:
      var = self._mean(jnp.square(x - mean))
    factor = jax.lax.rsqrt(var + self.eps) * self.scale
    return ((x - mean) * factor + self.bias).astype(self.dtype)

  def _mean(self, x):
    """Over pixels and the channels of a group, for each channel."""
    B, C = x.shape[0], x.shape[-1]
    each = x.mean(tuple(range(1, x.ndim - 1))).reshape(B, self.groups, -1)
    each = jnp.broadcast_to(each.mean(-1, keepdims=True), each.shape)
    return each.reshape(B, *[1] * (x.ndim - 2), C)
