# SPDX-License-Identifier: Apache-2.0
"""The one entry to the core of attention."""

from contextlib import AbstractContextManager
import contextvars

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cc_jax.core import scoped, sharding
from cc_jax.models import attention_blocks, attention_kernel

# "auto" takes the best there is for the device and the lengths, "einsum" XLA's
# own everywhere: to measure what the rest is worth.
CHOICES = ("auto", "einsum")
# Widest heads of cuDNN's kernels on all GPUs that have them, and what divides.
WIDEST, MULTIPLE = 128, 8
_choice = contextvars.ContextVar("attention", default="auto")


def check(choice: str) -> None:
  """Raises a ValueError for what is not one of `CHOICES`."""
  if choice not in CHOICES:
    raise ValueError(
      f"unknown attention {choice!r}; expected one of {', '.join(CHOICES)}"
    )


def using(choice: str) -> AbstractContextManager[None]:
  """What is traced inside has its attention computed so, see `CHOICES`."""
  check(choice)
  return scoped.holding(_choice, choice)


def choice() -> str:
  """How attention is computed here, see `CHOICES`."""
  return _choice.get()


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
  plain = bias is None and (mask is None or mask.ndim == 2)
  kernel = _kernel(q) if plain else None
  if kernel is not None:
    if mask is not None:
      mask = jnp.broadcast_to(mask, k.shape[:2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with jax.named_scope("attention_op"):
      return kernel(q, k, v, mask, causal, scale)
  if mask is not None:
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # [B N T S]
  with jax.named_scope("attention_op"):
    if bias is None and not causal and _divides_last(q):
      return divided_last(q, k, v, mask, scale)
    return jax.nn.dot_product_attention(
      q,
      k,
      v,
      bias,
      mask=mask,
      is_causal=causal,
      scale=scale,
    )


def _divides_last(q):
  return (
    choice() == "auto"
    and sharding.platform() == "cpu"
    and q.dtype == jnp.float32
  )


def divided_last(
  q: Float[Array, "B T N K"],
  k: Float[Array, "B S N K"],
  v: Float[Array, "B S N K"],
  mask: Bool[Array, "#B 1 #T #S"] | None,
  scale: float | None,
) -> Float[Array, "B T N K"]:
  """`attention` whose softmax is divided by its sums after the product with v.

  That is fewer numbers, and on a CPU XLA writes the quotients once more in
  another order: 21 ms forward and backward instead of 57 for 8 rows of 256
  tokens and 4 heads of 32 on one core with AVX2, torch's 23. Derivatives are
  by reverse mode only.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))  # [B N T K]
  products = _scores(q, k)
  if mask is not None:
    products = jnp.where(mask, products, jnp.finfo(products.dtype).min / 2)
  top = jax.lax.stop_gradient(products.max(-1, keepdims=True))
  weights = jnp.exp(products - top)
  x = jnp.einsum("bnts,bnsk->bntk", weights, v)
  return (x / weights.sum(-1, keepdims=True)).swapaxes(1, 2)


@jax.custom_vjp
def _scores(q, k):
  return jnp.einsum("bntk,bnsk->bnts", q, k)


def _scores_gradients(saved, cotangent):
  q, k = saved
  # With the narrower matrix first, as in products.py: 2.2 ms instead of 4.1 for
  # the rows above. For 1,024 tokens and 5 heads of 64 all of attention, forward
  # and backward, takes 430 ms instead of 558.
  turned = jnp.einsum("bntk,bnts->bnks", q, cotangent)
  of_k = jax.lax.optimization_barrier(turned).swapaxes(2, 3)
  return jnp.einsum("bnts,bnsk->bntk", cotangent, k), of_k


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_gradients)


def _kernel(q):
  """The kernel for such arrays, None where XLA's own way is the best."""
  if choice() != "auto":
    return None
  B, T, N, K = q.shape
  if sharding.platform() == "tpu" and attention_blocks.fits(T, N * K, N):
    return sharding.by_head(B, N, by_columns)
  if sharding.platform() == "gpu" and _is_nvidia():
    fits = q.dtype.itemsize == 2 and K <= WIDEST and K % MULTIPLE == 0
    # One token, as when captions are written, has no products to be kept.
    return by_cudnn if fits and T > 1 else None
  return None


def _is_nvidia():
  """Whether GPUs here are NVIDIA's, from Ampere on; before, they are Teslas."""
  return jax.devices()[0].device_kind.startswith("NVIDIA")


def by_columns(
  q: Float[Array, "B T N K"],
  k: Float[Array, "B S N K"],
  v: Float[Array, "B S N K"],
  mask: Bool[Array, "B S"] | None,
  causal: bool,
  scale: float,
  *,
  interpret: bool = False,
) -> Float[Array, "B T N K"]:
  """See `attention_kernel.attention`, for arrays as they are here."""
  turned = (x.reshape(*x.shape[:2], -1).swapaxes(1, 2) for x in (q, k, v))
  x = attention_kernel.attention(
    *turned, mask, q.shape[2], causal, scale, interpret
  )
  return x.swapaxes(1, 2).reshape(q.shape)


def by_cudnn(
  q: Float[Array, "B T N K"],
  k: Float[Array, "B S N K"],
  v: Float[Array, "B S N K"],
  mask: Bool[Array, "B S"] | None,
  causal: bool,
  scale: float,
) -> Float[Array, "B T N K"]:
  """`attention` by cuDNN's kernels, which keep no products of q and k.

  For training JAX asks even lengths of them, of arrays without a mask, too: an
  odd one, such as the 77 tokens of a caption, gets one more that none sees.
  """
  (B, T), S = q.shape[:2], k.shape[1]
  even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
  q, k, v = even(q), even(k), even(v)
  lengths = None
  if mask is not None:
    mask = jnp.pad(mask, ((0, 0), (0, S % 2)))[:, None, None]
    mask = jnp.broadcast_to(mask, (B, 1, q.shape[1], k.shape[1]))
  elif S % 2:
    lengths = jnp.full(B, S, jnp.int32)
  x = jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=mask,
    is_causal=causal,
    scale=scale,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
  )
  return x[:, :T]
