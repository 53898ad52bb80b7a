# SPDX-License-Identifier: Apache-2.0
"""Layers that several models share.

The letters, in signatures, comments and einsums of every model:

  B batch   T tokens   S source tokens   D width   F MLP width   N heads
  K head width   V vocabulary   L layers   H W C height, width, channels
  x0 data   xt noised   eps noise   v velocity   t timestep   z latents

Weights are float32; `dtype` is the type of the computation; norms, softmax
and timestep sinusoids are float32 throughout.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num
import numpy as np

from cc_jax.core import sharding
from cc_jax.models import (
  attention,
  attention_kernel,
  biases,
  convolution,
  norms,
  products,
  recompute,
)

Dtype = Any

# torch's default for linear and convolutional layers, from which the
# published recipes start: uniform with variance 1 / (3 fan_in).
INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
ZEROS = nnx.initializers.zeros_init()


class HostCount(nnx.RngCount):
  """Counts in a number of the host where Flax does in an array.

  Under a trace Flax asks that array for its sharding at each key, and JAX
  answers with an error that lists all that led to it: quadratic in the size of
  a network, and 80 % of the time that tracing SD2 took.
  """

  def get_value(self, **index: Any) -> Any:
    return self.get_raw_value()

  def set_value(self, value: Any, **index: Any) -> None:
    self.set_raw_value(value)


def keys(seed: Any) -> nnx.Rngs:
  """The keys of nnx.Rngs(seed), of a number or a key, at less cost.

  For the initial weights of a module that is made under a trace.
  """
  rngs = nnx.Rngs(seed)
  rngs.default.count = HostCount(np.uint32(0), tag="default")
  return rngs


# a, b, c of Phi(x) ~ (1 + tanh(x (a + b x^2 + c x^4))) / 2, fitted.
PHI = (0.797500808, 0.0370120837, -0.000352562299)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """GELU with the exact error function, as in torch.

  Of 16-bit inputs within 3e-5 of it before rounding, see `gelu_short`.
  """
  if x.dtype.itemsize >= 4:
    return jax.nn.gelu(x, approximate=False)
  return gelu_short(x.astype(jnp.float32)).astype(x.dtype)


def gelu_short(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """x Phi(x) within 3e-5, a hundredth of the step of bfloat16 at 1.

  One hyperbolic tangent of a polynomial, which a TPU has in hardware; its error
  function is two polynomials and a quotient.
  """
  a, b, c = PHI
  square = jnp.minimum(jnp.square(x), 36)  # Phi is 0 or 1 beyond.
  inner = x * (a + square * (b + square * c))
  return 0.5 * x * (1 + jnp.tanh(inner))


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """GELU by its tanh approximation."""
  return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
  "silu": jax.nn.silu,
  "relu": jax.nn.relu,
  "gelu": gelu,
  "gelu_tanh": gelu_tanh,
  "quick_gelu": quick_gelu,
}


def linear(
  width: int,
  out: int,
  *,
  bias: bool = True,
  init: Callable = INIT,
  kind: type[nnx.Linear] = nnx.Linear,
  dtype: Dtype,
  rngs: nnx.Rngs,
) -> nnx.Linear:
  """[... width] -> [... out]."""
  return kind(
    width,
    out,
    use_bias=bias,
    kernel_init=init,
    dot_general=products.dot_general,
    dtype=dtype,
    rngs=rngs,
  )


def conv(
  channels: int,
  out: int,
  size: int = 3,
  *,
  stride: int = 1,
  padding: Any = None,
  bias: bool = True,
  init: Callable = INIT,
  dtype: Dtype,
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """[B H W channels] -> [B H/stride W/stride out], padded by size // 2."""
  half = size // 2
  return nnx.Conv(
    channels,
    out,
    (size, size),
    strides=stride,
    padding=((half, half), (half, half)) if padding is None else padding,
    use_bias=bias,
    kernel_init=init,
    conv_general_dilated=convolution.convolve,
    dtype=dtype,
    rngs=rngs,
  )


def group_norm(
  channels: int,
  groups: int,
  eps: float,
  *,
  dtype: Dtype,
  rngs: nnx.Rngs,
) -> norms.GroupNorm:
  """Normalises [B H W C] over H, W and C / groups channels."""
  return norms.GroupNorm(channels, groups, eps, dtype=dtype, rngs=rngs)


def layer_norm(
  width: int,
  eps: float = 1e-5,
  *,
  affine: bool = True,
  dtype: Dtype,
  rngs: nnx.Rngs,
) -> nnx.LayerNorm:
  """Normalises [... D] over D; without `affine` it has no weights."""
  return nnx.LayerNorm(
    width,
    epsilon=eps,
    use_bias=affine,
    use_scale=affine,
    # Both moments in one pass where activations have 16 bits.
    use_fast_variance=jnp.dtype(dtype).itemsize < 4,
    dtype=dtype,
    rngs=rngs,
  )


def rms_norm(
  width: int, eps: float = 1e-6, *, dtype: Dtype, rngs: nnx.Rngs
) -> nnx.RMSNorm:
  """Divides [... D] by its root mean square over D: arXiv 1910.07467."""
  return nnx.RMSNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
  """Multi-head attention, to itself or to source tokens.

  "Attention Is All You Need", arXiv 1706.03762, §3.2. Initial weights of k and
  v are by `source_init`, where they are not by `init` as those of q.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    head_width: int | None = None,
    source_width: int | None = None,
    bias: bool = True,
    out_bias: bool = True,
    causal: bool = False,
    scale: float | None = None,
    init: Callable = INIT,
    source_init: Callable | None = None,
    out_init: Callable = INIT,
    dtype: Dtype,
    rngs: nnx.Rngs,
  ):
    inner = heads * (head_width or width // heads)
    source = source_width or width
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    read = dict(bias=bias, kind=biases.Projection, **kinds)
    source_init = source_init or init
    self.heads, self.causal, self.scale = heads, causal, scale
    self.q = linear(width, inner, init=init, **read)
    self.k = linear(source, inner, init=source_init, **read)
    self.v = linear(source, inner, init=source_init, **read)
    self.out = linear(inner, width, bias=out_bias, init=out_init, **kinds)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    source: Float[Array, "B S E"] | None = None,
    mask: Bool[Array, "#B #S"] | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
  ) -> Float[Array, "B T D"]:
    source = x if source is None else source
    q, k, v = (
      layer(tokens).reshape(*tokens.shape[:2], self.heads, -1)  # [B T N K]
      for layer, tokens in ((self.q, x), (self.k, source), (self.v, source))
    )
    x = attention.attention(
      q, k, v, mask, bias, causal=self.causal, scale=self.scale
    )
    return self.out(x.reshape(*x.shape[:2], -1))


class MLP(nnx.Module):
  """down(act(up(x))), or with a gate down(up(x) * act(gate(x))).

  The gated form is GEGLU for GELU: arXiv 2002.05202, eq. 5.
  """

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    act: str = "gelu",
    gated: bool = False,
    bias: bool = True,
    out: int | None = None,
    init: Callable = INIT,
    dtype: Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(bias=bias, init=init, dtype=dtype, rngs=rngs)
    self.act = act
    self.up = linear(width, hidden, **kinds)
    self.gate = linear(width, hidden, **kinds) if gated else None
    self.down = linear(hidden, out or width, **kinds)

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B O"]:
    act = ACTIVATIONS[self.act]
    if self.gate is None:
      return self.down(recompute.recomputed(act)(self.up(x)))
    gated = recompute.recomputed(lambda up, gate: up * act(gate))
    return self.down(gated(self.up(x), self.gate(x)))


def norm_silu(
  norm: Callable, x: Float[Array, "B H W C"]
) -> Float[Array, "B H W C"]:
  """SiLU of a norm."""
  return recompute.recomputed(lambda x, norm: jax.nn.silu(norm(x)))(x, norm)


def timestep_embedding(
  t: Num[Array, "*B"], width: int, *, period: float = 10_000, shift: int = 0
) -> Float[Array, "*B width"]:
  """[cos, sin] of t at width / 2 frequencies, in float32.

  "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, appendix B; the
  cosines first, and frequencies period^(-i / (width / 2 - shift)), as in
  diffusers with `flip_sin_to_cos` and a `downscale_freq_shift` of `shift`.
  """
  half = width // 2
  exponent = jnp.arange(half, dtype=jnp.float32) / (half - shift)
  frequency = jnp.exp(-math.log(period) * exponent)
  angle = t.astype(jnp.float32)[..., None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeMLP(nnx.Module):
  """Linear, SiLU, linear: how a network reads a vector of conditions."""

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    init: Callable = INIT,
    dtype: Dtype,
    rngs: nnx.Rngs,
  ):
    self.up = linear(width, hidden, init=init, dtype=dtype, rngs=rngs)
    self.down = linear(hidden, hidden, init=init, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B F"]:
    return self.down(jax.nn.silu(self.up(x)))


REMAT = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  # What is small and dear: what a TPU's kernel gives, and what a gate reads.
  "attention": jax.checkpoint_policies.save_only_these_names(
    attention_kernel.KEPT, recompute.KEPT
  ),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def checkpointed(f: Callable, remat: str) -> Callable:
  """`f`, of whose results the backward pass keeps only what `remat` names.

  "none" keeps all, "dots" the products of weights, "attention" what a TPU's
  kernel for it gives and what gates multiply, "full" nothing.
  """
  if remat == "none":
    return f
  if remat not in REMAT:
    choices = ", ".join(["none", *REMAT])
    raise ValueError(f"unknown remat {remat!r}; expected one of {choices}")
  return jax.checkpoint(f, policy=REMAT[remat])


def stack(make: Callable, depth: int, rngs: nnx.Rngs) -> Any:
  """Makes `depth` copies of a block, weights stacked on a first axis L."""
  return jax.vmap(make)(rngs.split(depth))


def scan(
  blocks: Any,
  x: Float[Array, "B T D"],
  *args: Any,
  remat: str = "none",
) -> Float[Array, "B T D"]:
  """Runs stacked blocks one after another, so that compile time does not grow.

  `args` go to every block; `remat` names what the backward pass keeps.
  """

  def step(x, block):
    return sharding.constrain(block(x, *args)), None

  step = checkpointed(step, remat)
  if len(jax.tree.leaves(blocks)[0]) == 1:
    # A loop would write what the backward pass reads to a second place.
    return step(x, jax.tree.map(lambda leaf: leaf[0], blocks))[0]
  return jax.lax.scan(step, x, blocks)[0]
