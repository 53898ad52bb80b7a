# SPDX-License-Identifier: Apache-2.0
"""Attention to tokens some of which are padding, with no mask in its core.

A column more of each head is 1 in queries, and in keys 0 or, where nobody may
look, far below: it adds to their products what a mask would. The kernels for
TPUs, which know of no mask, then serve captions and padded images, too. The
columns stand beside the weights; beside activations they would move them all.
"""

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cc_jax.core import sharding
from cc_jax.models import attention, layers

# What is added to a product of which nothing shall be left after the softmax.
FAR = -30_000.0


def attend(
  attn: layers.Attention,
  x: Float[Array, "B T D"],
  source: Float[Array, "B S D"],
  mask: Bool[Array, "#B #S"] | None,
) -> Float[Array, "B T D"]:
  """attn(x, source, mask), in the way that is fast on the device."""
  if mask is not None and sharding.platform() == "tpu":
    return by_column(attn, x, source, mask)
  return attn(x, source, mask)


def by_column(
  attn: layers.Attention,
  x: Float[Array, "B T D"],
  source: Float[Array, "B S D"],
  mask: Bool[Array, "#B #S"],
) -> Float[Array, "B T D"]:
  """attn(x, source, mask), all of whose layers have biases."""
  N, dtype = attn.heads, attn.q.dtype

  def widened(x: Float[Array, "*B E"], fill: float = 0.0):
    heads = x.reshape(*x.shape[:-1], N, -1)
    pad = [*[(0, 0)] * (heads.ndim - 1), (0, 1)]
    heads = jnp.pad(heads, pad, constant_values=fill)
    return heads.reshape(*x.shape[:-1], -1).astype(dtype)

  def project(layer: nnx.Linear, tokens: Float[Array, "B T E"], fill=0.0):
    kernel, bias = layer.kernel[...], layer.bias[...]
    return tokens @ widened(kernel) + widened(bias, fill)

  inner = attn.out.kernel.shape[0]
  hidden = jnp.where(mask, 0, FAR).astype(dtype)[..., None]  # [B S 1]
  q = project(attn.q, x, 1.0)
  k = project(attn.k, source) + hidden * widened(jnp.zeros(inner), 1.0)
  v = project(attn.v, source)
  scale = (inner // N) ** -0.5 if attn.scale is None else attn.scale
  q, k, v = (x.reshape(*x.shape[:2], N, -1) for x in (q, k, v))  # [B T N K+1]
  h = attention.attention(q, k, v, scale=scale)
  h = h.reshape(*h.shape[:2], -1) @ widened(attn.out.kernel[...].T).T
  return h + attn.out.bias[...].astype(dtype)
