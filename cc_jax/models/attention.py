# SPDX-License-Identifier: Apache-2.0
"""The one entry to the core of attention."""

import jax
from jaxtyping import Array, Bool, Float


def attention(
  q: Float[Array, "B T N K"],
  k: Float[Array, "B S N K"],
  v: Float[Array, "B S N K"],
  mask: Bool[Array, "#B #S"] | Bool[Array, "#B #T #S"] | None = None,
  bias: Float[Array, "#B #N #T #S"] | None = None,
  *,
  causal: bool = False,
  scale: float | None = None,
) -> Float[Array, "B T N K"]:
  """softmax(q k^T / sqrt(K) + bias) v, the softmax in float32.

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: true where a source token may be attended to, by all or by each.
    bias: added to the scaled products before the softmax.
    causal: token t sees source tokens up to t only.
    scale: instead of 1 / sqrt(K).
  """
  if mask is not None:
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # [B N T S]
  with jax.named_scope("attention_op"):
    return jax.nn.dot_product_attention(
      q,
      k,
      v,
      bias,
      mask=mask,
      is_causal=causal,
      scale=scale,
    )
