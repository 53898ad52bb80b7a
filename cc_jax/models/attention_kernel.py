# SPDX-License-Identifier: Apache-2.0
"""Attention of rows that fit in a TPU's fast memory, in one Pallas kernel.

A token's products with all keys are held at once, so the softmax needs no
second pass, and nothing of size T x S is ever written to memory: the idea of
"FlashAttention", arXiv 2205.14135, without its loop over blocks of keys. Heads
are slices of the last axis, as the layers before and after have them; splash,
which wants heads before tokens, would move every array twice.
"""

import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LANES = 128
# Queries of a block, keys, and elements of a block of keys, such that they and
# their gradients fit.
ROWS = 256
KEYS = 1024
ELEMENTS = 1024 * 384
# Added to products with keys that are not to be seen.
HIDDEN = -1e30


def fits(tokens: int, sources: int, width: int, heads: int) -> bool:
  """Whether queries [T D] and keys [S D] are small and regular enough."""
  regular = tokens % ROWS == 0 or (tokens < ROWS and tokens % 16 == 0)
  wide = _width(max(_rows(tokens), _up(sources)), width, heads)
  return regular and _up(sources) <= KEYS and wide is not None


def _width(tokens, width, heads):
  """Of a block: of all heads, or of those that fill the lanes, if they fit."""
  if tokens * _up(width) <= ELEMENTS:
    return width
  whole = width % LANES == 0 and LANES % (width // heads) == 0
  return LANES if whole and tokens * LANES <= ELEMENTS else None


def _up(size):
  return math.ceil(size / LANES) * LANES


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def attention(
  q: Float[Array, "B T D"],
  k: Float[Array, "B S D"],
  v: Float[Array, "B S D"],
  mask: Bool[Array, "B S"] | None,
  heads: int,
  causal: bool,
  scale: float,
  interpret: bool = False,
) -> Float[Array, "B T D"]:
  """softmax(scale q k^T) v of each head, the softmax in float32.

  Args:
    q: queries, of shapes that `fits`.
    k: keys.
    v: values.
    mask: true where a key may be attended to, one at least of each row; None is
      everywhere.
    heads: into which D is cut.
    causal: token t sees keys up to t only.
    scale: of the products.
    interpret: run the kernel's steps one by one, on any device.
  """
  return _forward(q, k, v, mask, heads, causal, scale, interpret)[0]


def _forward(q, k, v, mask, heads, causal, scale, interpret):
  size = k.shape[2] // heads

  def kernel(q, k, v, below, out):
    hide = _hide(below, causal, axis=1)
    for head in _heads(q.shape[-1], size):
      products = _dot(q[:, head], k[:, head], 1, 1)  # [T S]
      weights = _softmax(hide(products * scale), axis=1)
      x = _dot(weights.astype(v.dtype), v[:, head], 1, 0)  # [T K]
      out[:, head] = x.astype(out.dtype)

  out = _call(
    kernel,
    "attention_forward",
    [q, _pad(k), _pad(v)],
    _below(mask, k, axis=1),
    outputs="q",
    heads=heads,
    products=2,
    semantics=("parallel", "parallel", "parallel"),
    interpret=interpret,
  )
  return out[0], (q, k, v, mask)


def _backward(heads, causal, scale, interpret, saved, cotangent):
  q, k, v, mask = saved
  sources, size = k.shape[1], k.shape[2] // heads
  last = q.shape[1] // _rows(q.shape[1]) - 1

  # Products are [S T] here: of all that is multiplied only one is turned.
  def kernel(q, k, v, below, do, dq, dk, dv, k_sum, v_sum):
    @pl.when(pl.program_id(2) == 0)
    def _():
      k_sum[...] = jnp.zeros_like(k_sum)
      v_sum[...] = jnp.zeros_like(v_sum)

    hide = _hide(below, causal, axis=0)
    for head in _heads(q.shape[-1], size):
      products = _dot(k[:, head], q[:, head], 1, 1)
      weights = _softmax(hide(products * scale), axis=0)
      towards = _dot(v[:, head], do[:, head], 1, 1)
      mean = jnp.sum(weights * towards, axis=0, keepdims=True)
      towards = weights * (towards - mean) * scale
      v_sum[:, head] += _dot(weights.astype(do.dtype), do[:, head], 1, 0)
      k_sum[:, head] += _dot(towards.astype(q.dtype), q[:, head], 1, 0)
      x = _dot(towards.T.astype(k.dtype), k[:, head], 1, 0)
      dq[:, head] = x.astype(dq.dtype)

    @pl.when(pl.program_id(2) == last)
    def _():
      dk[...] = k_sum[...].astype(dk.dtype)
      dv[...] = v_sum[...].astype(dv.dtype)

  dq, dk, dv = _call(
    kernel,
    "attention_backward",
    [q, _pad(k), _pad(v), cotangent],
    _below(mask, k, axis=0),
    outputs="qkv",
    heads=heads,
    products=5,
    semantics=("parallel", "parallel", "arbitrary"),
    interpret=interpret,
  )
  return dq, dk[:, :sources], dv[:, :sources], None


attention.defvjp(_forward, _backward)


def _call(
  kernel,
  name,
  inputs,
  below,
  *,
  outputs,
  heads,
  products,
  semantics,
  interpret,
):
  """Runs a kernel for each image, group of heads and block of queries.

  `inputs` are q, k, v and then what lies as q; between them the kernel has
  `below`, or None. `outputs` names those of q, k and v of which the results
  have the shapes. Where keys are among them, sums are kept in float32 beside
  them.
  """
  (B, T, D), S = inputs[0].shape, inputs[1].shape[1]
  width = _width(max(_rows(T), S), D, heads)
  queries = pl.BlockSpec((None, _rows(T), width), lambda b, d, t: (b, t, d))
  keys = pl.BlockSpec((None, S, width), lambda b, d, t: (b, 0, d))
  spec = {"q": queries, "k": keys, "v": keys}
  shapes = [inputs["qkv".index(letter)] for letter in outputs]
  sums = [pltpu.VMEM((S, width), jnp.float32)] * (2 if "k" in outputs else 0)
  specs = [queries, keys, keys, *[queries] * (len(inputs) - 3)]
  run = kernel
  if below is None:
    run = lambda q, k, v, *rest: kernel(q, k, v, None, *rest)
  else:
    each = 0 if len(below) == 1 else 1
    place = lambda b, d, t: (each * b, 0, 0)
    inputs = [*inputs[:3], below, *inputs[3:]]
    specs.insert(3, pl.BlockSpec((None, *below.shape[1:]), place))
  moved = [*inputs, *shapes]
  return pl.pallas_call(
    run,
    grid=(B, D // width, T // _rows(T)),
    in_specs=specs,
    out_specs=[spec[letter] for letter in outputs],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes],
    scratch_shapes=sums,
    compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * B * T * S * D,
      transcendentals=B * T * S * heads,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
    ),
    interpret=interpret,
    name=name,
  )(*inputs)


def _rows(tokens):
  """Queries of a block."""
  return min(tokens, ROWS)


def _heads(width, size):
  """The slice of each head of a block on the last axis."""
  return [slice(start, start + size) for start in range(0, width, size)]


def _dot(x, y, left, right):
  """Sums over an axis of each, in float32."""
  return jax.lax.dot_general(
    x, y, (((left,), (right,)), ((), ())), preferred_element_type=jnp.float32
  )


def _below(mask, k, axis):
  """What is added to products for the keys that do not count, if any.

  [B 1 S] for products of which keys are axis 1, [B S 1] where they are axis 0;
  keys are padded here, and B is 1 where they are alike in all rows.
  """
  S = k.shape[1]
  if mask is None and S == _up(S):
    return None
  hidden = jnp.zeros((1, S)) if mask is None else jnp.where(mask, 0, HIDDEN)
  hidden = jnp.pad(hidden, ((0, 0), (0, _up(S) - S)), constant_values=HIDDEN)
  return jnp.expand_dims(hidden.astype(jnp.float32), 2 - axis)


def _hide(below, causal, axis):
  """What puts products, of which keys are an axis, of hidden keys down."""

  def hide(products):
    if below is not None:
      products = products + below[...]
    if causal:
      place = lambda axis: jax.lax.broadcasted_iota(
        jnp.int32, products.shape, axis
      )
      first = pl.program_id(2) * products.shape[1 - axis]
      later = place(axis) > place(1 - axis) + first
      products = jnp.where(later, HIDDEN, products)
    return products

  return hide


def _softmax(products, axis):
  highest = jnp.max(products, axis=axis, keepdims=True)
  weights = jnp.exp(products - highest)
  return weights / jnp.sum(weights, axis=axis, keepdims=True)


def _pad(keys):
  """[B S D] with zeros up to a whole number of lanes, if over one."""
  S = keys.shape[1]
  return jnp.pad(keys, ((0, 0), (0, _up(S) - S), (0, 0)))
