# SPDX-License-Identifier: Apache-2.0
"""Decoder-only language models with a cache of keys and values.

"Attention Is All You Need", arXiv 1706.03762, without the encoder. BLIP-2 and
LLaVA write captions with one, and CLIP-GEN's prior is one whose words are codes
of an image. What tells OPT (models/opt.py), LLaMA (models/llama.py) and the
prior (models/prior.py) apart is in their configs; the network is written here,
once.

A model reads embeddings, not tokens, so that states of images can stand between
those of words. It is run whole (`LM.__call__`), or some tokens at a time after
those that a cache of a fixed size remembers (`LM.extend`): first the prompts,
padded on the left, then one token after another.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cc_jax.core import sharding
from cc_jax.models import attention, biases, layers

# As the published models began.
INIT = nnx.initializers.normal(0.02)


@runtime_checkable
class Config(Protocol):
  """What a model reads of its config.

  Attributes:
    vocabulary: number of token ids V.
    width: D.
    mlp: width F within the MLP.
    depth: number of blocks L.
    heads: N.
    positions: longest text in tokens, where positions are learned.
    offset: rows of the table of positions before the first.
    rope: base of the wavelengths of rotary positions, in place of learned ones.
    act: activation of the MLP, one of `layers.ACTIVATIONS`.
    gated: whether the MLP has a gate.
    rms: whether norms are root mean squares, in place of layer norms.
    eps: of the norms.
    bias: whether the layers of blocks have biases.
    head_bias: whether the head has one.
    tied: whether the head is the table of tokens.
  """

  vocabulary: int
  width: int
  mlp: int
  depth: int
  heads: int
  positions: int
  offset: int
  rope: float | None
  act: str
  gated: bool
  rms: bool
  eps: float
  bias: bool
  head_bias: bool
  tied: bool


class Cache(NamedTuple):
  """Keys and values of the tokens so far, in arrays of a fixed size.

  Attributes:
    k: keys; S places.
    v: values.
    mask: true for places that hold a token that may be attended to.
    length: places filled, the same for all rows: prompts are padded on the
      left.
  """

  k: Float[Array, "L B S N K"]
  v: Float[Array, "L B S N K"]
  mask: Bool[Array, "B S"]
  length: Int[Array, ""]


def empty_cache(
  config: Config, batch: int, length: int, dtype: layers.Dtype
) -> Cache:
  """A cache for `batch` texts of up to `length` tokens, padding included.

  Raises:
    ValueError: the model has no positions for that many tokens.
  """
  _check_length(config, length)
  K = config.width // config.heads
  shape = (config.depth, batch, length, config.heads, K)
  # Two arrays, since a cache may be donated.
  return Cache(
    k=jnp.zeros(shape, dtype),
    v=jnp.zeros(shape, dtype),
    mask=jnp.zeros((batch, length), bool),
    length=jnp.zeros((), jnp.int32),
  )


def select(cache: Cache, rows: Int[Array, " R"]) -> Cache:
  """The cache of some of the texts, in their order; one may be there twice."""
  return cache._replace(
    k=cache.k[:, rows], v=cache.v[:, rows], mask=cache.mask[rows]
  )


def _check_length(config: Config, length: int) -> None:
  if config.rope is None and length > config.positions:
    raise ValueError(
      f"{length} tokens are too many for a model with {config.positions} "
      "learned positions; shorten prompt or answer"
    )


def norm(
  config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs
) -> nnx.LayerNorm | nnx.RMSNorm:
  """The norm of a config, statistics in float32."""
  if config.rms:
    return nnx.RMSNorm(config.width, epsilon=config.eps, dtype=dtype, rngs=rngs)
  return layers.layer_norm(config.width, config.eps, dtype=dtype, rngs=rngs)


def rotary_angles(
  positions: Int[Array, "B T"], width: int, base: float
) -> Float[Array, "B T P"]:
  """positions base^(-2i / width): how far each of P = K/2 pairs turns.

  "RoFormer", arXiv 2104.09864, eq. 15, in float32.
  """
  exponent = jnp.arange(0, width, 2, dtype=jnp.float32) / width
  return positions[..., None].astype(jnp.float32) / base**exponent


def rotate(
  x: Float[Array, "B T N K"], angles: Float[Array, "B T P"]
) -> Float[Array, "B T N K"]:
  """Turns each pair (i, i + K/2) of a head by its angle, in float32.

  arXiv 2104.09864, eq. 34, with the pairs as the published weights have them.
  """
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x.dtype)


class Attention(nnx.Module):
  """Causal attention, with or without a cache and rotary positions."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds = dict(bias=config.bias, dtype=dtype, rngs=rngs)
    self.heads = config.heads
    # As GPT-2's: the sum of 2 L branches keeps the variance of one.
    out_init = nnx.initializers.normal(0.02 * (2 * config.depth) ** -0.5)
    D = config.width
    read = dict(init=INIT, kind=biases.Projection, **kinds)
    self.q = layers.linear(D, D, **read)
    self.k = layers.linear(D, D, **read)
    self.v = layers.linear(D, D, **read)
    self.out = layers.linear(D, D, init=out_init, **kinds)

  def _project(
    self,
    x: Float[Array, "B T D"],
    angles: Float[Array, "B T P"] | None,
  ) -> list[Float[Array, "B T N K"]]:
    q, k, v = (
      layer(x).reshape(*x.shape[:2], self.heads, -1)  # [B T N K]
      for layer in (self.q, self.k, self.v)
    )
    if angles is not None:
      q, k = rotate(q, angles), rotate(k, angles)
    return [q, k, v]

  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T"] | None,
    angles: Float[Array, "B T P"] | None,
  ) -> Float[Array, "B T D"]:
    q, k, v = self._project(x, angles)
    x = attention.attention(q, k, v, mask, causal=True)
    return self.out(x.reshape(*x.shape[:2], -1))

  def extend(
    self,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T S"],
    angles: Float[Array, "B T P"] | None,
    cache: Cache,
    layer: Int[Array, ""],
  ) -> tuple[Float[Array, "B T D"], Cache]:
    q, k, v = self._project(x, angles)
    # Written into the whole cache, which a loop carries in place: a scan over
    # its layers would copy all of it for each token.
    at = (layer, 0, cache.length, 0, 0)
    cache = cache._replace(
      k=_write(cache.k, k[None], at), v=_write(cache.v, v[None], at)
    )
    x = attention.attention(q, cache.k[layer], cache.v[layer], mask)
    return self.out(x.reshape(*x.shape[:2], -1)), cache


def _write(whole: Array, part: Array, at: tuple) -> Array:
  return jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype), at)


class Block(nnx.Module):
  """x + attn(norm1(x)), then x + mlp(norm2(x))."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds = dict(dtype=dtype, rngs=rngs)
    self.norm1 = norm(config, **kinds)
    self.attn = Attention(config, **kinds)
    self.norm2 = norm(config, **kinds)
    self.mlp = layers.MLP(
      config.width,
      config.mlp,
      act=config.act,
      gated=config.gated,
      bias=config.bias,
      **kinds,
    )

  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T"] | None,
    angles: Float[Array, "B T P"] | None,
  ) -> Float[Array, "B T D"]:
    x = x + self.attn(self.norm1(x), mask, angles)
    return x + self.mlp(self.norm2(x))

  def extend(
    self,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T S"],
    angles: Float[Array, "B T P"] | None,
    cache: Cache,
    layer: Int[Array, ""],
  ) -> tuple[Float[Array, "B T D"], Cache]:
    h, cache = self.attn.extend(self.norm1(x), mask, angles, cache, layer)
    x = x + h
    return x + self.mlp(self.norm2(x)), cache


class LM(nnx.Module):
  """Embeddings of tokens -> logits of the token after each."""

  def __init__(
    self,
    config: Config,
    *,
    dtype: layers.Dtype = jnp.float32,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    self.config, self.remat = config, remat
    self.token = nnx.Embed(
      config.vocabulary, config.width, embedding_init=INIT, **kinds
    )
    self.position = (
      nnx.Embed(
        config.positions + config.offset,
        config.width,
        embedding_init=INIT,
        **kinds,
      )
      if config.rope is None
      else None
    )
    self.blocks = layers.stack(
      lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs
    )
    self.norm = norm(config, **kinds)
    self.head = (
      None
      if config.tied
      else layers.linear(
        config.width,
        config.vocabulary,
        bias=config.head_bias,
        init=INIT,
        **kinds,
      )
    )

  def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Token ids -> embeddings, without positions."""
    return self.token(tokens)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T"] | None = None,
    blocks: Any = None,
  ) -> Float[Array, "B T V"]:
    """The logits of whole texts.

    Args:
      x: embeddings.
      mask: false for padding, which is not attended to and takes no position.
      blocks: stacked ones in place of the model's own.

    Raises:
      ValueError: the model has no positions for that many tokens.
    """
    _check_length(self.config, x.shape[1])
    there = jnp.ones(x.shape[:2], bool) if mask is None else mask
    x, angles = self._place(x, jnp.cumsum(there, axis=1) * there - 1)
    with jax.named_scope("lm"):
      blocks = self.blocks if blocks is None else blocks
      x = layers.scan(blocks, x, mask, angles, remat=self.remat)
    return self._logits(x)

  def extend(
    self,
    x: Float[Array, "B T D"],
    cache: Cache,
    mask: Bool[Array, "B T"] | None = None,
    *,
    last: bool = False,
  ) -> tuple[Float[Array, "B T V"] | Float[Array, "B 1 V"], Cache]:
    """The logits of tokens after those in the cache, and the cache with them.

    Args:
      x: embeddings of the next tokens: a prompt, or one token.
      cache: of `empty_cache`, or of the call before. What does not fit any more
        overwrites the end: make it as long as prompt and answer.
      mask: false for padding.
      last: gives logits after the last token only; those of a long prompt are
        larger than all else.

    Raises:
      ValueError: more tokens than the cache has places.
    """
    T, S = x.shape[1], cache.mask.shape[1]
    if T > S:
      raise ValueError(
        f"{T} tokens do not fit into a cache of {S} places; make one with "
        f"length={T} or more"
      )
    there = jnp.ones(x.shape[:2], bool) if mask is None else mask
    before = jnp.sum(cache.mask, axis=1, keepdims=True)
    positions = (before + jnp.cumsum(there, axis=1)) * there - 1
    x, angles = self._place(x, positions)
    cache = cache._replace(mask=_write(cache.mask, there, (0, cache.length)))
    order = cache.length + jnp.arange(T)[:, None] >= jnp.arange(S)  # [T S]
    visible = cache.mask[:, None, :] & order  # [B T S]

    def step(carry, numbered):
      x, cache = carry
      layer, block = numbered
      x, cache = block.extend(x, visible, angles, cache, layer)
      return (sharding.constrain(x), cache), None

    with jax.named_scope("lm"):
      numbers = jnp.arange(self.config.depth)
      (x, cache), _ = jax.lax.scan(step, (x, cache), (numbers, self.blocks))
    cache = cache._replace(length=cache.length + T)
    return self._logits(x[:, -1:] if last else x), cache

  def step(
    self, tokens: Int[Array, " B"], cache: Cache
  ) -> tuple[Float[Array, "B V"], Cache]:
    """The logits after one more token: what models/decoding.py repeats."""
    logits, cache = self.extend(self.embed(tokens[:, None]), cache)
    return logits[:, 0], cache

  def _place(
    self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
  ) -> tuple[Float[Array, "B T D"], Float[Array, "B T P"] | None]:
    """Adds learned positions, or gives the angles of rotary ones."""
    config = self.config
    if self.position is None:
      K = config.width // config.heads
      return x, rotary_angles(positions, K, config.rope)
    # Padding has position -1: a row like any other in OPT, else the first.
    rows = jnp.maximum(positions + config.offset, 0)
    return x + self.position(rows), None

  def _logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    x = self.norm(x)
    return self.token.attend(x) if self.head is None else self.head(x)
