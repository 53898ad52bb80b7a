# SPDX-License-Identifier: Apache-2.0
"""Attention for TPUs in two Pallas kernels, forward and backward.

"FlashAttention-2", arXiv 2307.08691: nothing of size T x S is ever written to
memory. What is particular here is that channels come before tokens. A head is
then a slice of rows, which needs no padding to 128 lanes and is not moved, and
XLA's products write and read such arrays at no cost, while kernels that want
heads before tokens cost copies. Products are [S T], so that the highest over
keys is one of registers, and one of all products' factors is turned in the
kernel. Powers are of 2, which is what the hardware has.

Products do what they can of the softmax, since they pad their arrays anyway:
rows of ones beside the values sum the weights, and a row beside the keys hides
some of them.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import ad_checkpoint
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cc_jax.models import attention_blocks as blocks

# Pieces of which the products are begun before they are needed, forward and
# backward.
AHEAD, AHEAD_BACK = 2, 1
# Rows that are added to an array for what a product does at once: a register's.
MORE = 8
# What scaled products with keys that are not to be seen become. Not less: where
# the highest of nothing else is subtracted, what rounding leaves has a power.
HIDDEN = -(2.0**27)
# The name of results for a policy of what the backward pass keeps.
KEPT = "attention"
LOG2E = math.log2(math.e)


def attention(
  q: Float[Array, "B D T"],
  k: Float[Array, "B D S"],
  v: Float[Array, "B D S"],
  mask: Bool[Array, "B S"] | None,
  heads: int,
  causal: bool,
  scale: float,
  interpret: bool = False,
) -> Float[Array, "B D T"]:
  """softmax(scale q k^T) v of each head, the softmax in float32.

  Args:
    q: queries, of shapes that `attention_blocks.fits`.
    k: keys.
    v: values.
    mask: true where a key may be attended to, one at least of each row; None is
      everywhere.
    heads: into which D is cut.
    causal: token t sees keys up to t only.
    scale: of the products.
    interpret: run the kernels' steps one by one, on any device.
  """
  S = k.shape[2]
  below, more = None, 0 if S <= blocks.SHORT else -S % blocks.LANES
  if mask is not None or more:
    least = HIDDEN / (scale * LOG2E)
    hidden = jnp.zeros((1, S)) if mask is None else jnp.where(mask, 0, least)
    hidden = jnp.pad(hidden, ((0, 0), (0, more)), constant_values=least)
    below = jnp.pad(hidden[:, None], ((0, 0), (0, MORE - 1), (0, 0)))
    below = below.astype(k.dtype)
  if more:
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, more))) for x in (k, v))
  return _attention(q, k, v, below, heads, causal, scale, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _attention(q, k, v, below, heads, causal, scale, interpret):
  """The sum of `below`, [B MORE S], is added to queries' products with keys."""
  return _forward(q, k, v, below, heads, causal, scale, interpret)[0]


def _forward(q, k, v, below, heads, causal, scale, interpret):
  (B, D, T), S = q.shape, k.shape[2]
  cut = blocks.cut(D, T, S, heads, q.dtype.itemsize)
  last = S // cut.keys - 1

  def kernel(q, k, v, below, out, logs, highest, sums):
    step = pl.program_id(3)

    @pl.when((step == 0) & (last > 0))
    def _():
      highest[...] = jnp.full_like(highest, -jnp.inf)
      sums[...] = jnp.zeros_like(sums)

    queries, keys = _of_products(cut, _by_head(cut, q), k, below)
    # With rows of ones the product with values sums the weights too.
    values = [_with_ones(x) for x in _by_head(cut, v)]
    hide = _hide(causal, pl.program_id(2) * cut.queries, step * cut.keys)

    def products(piece):
      n, _, t, s = piece
      x = _dot(keys[n][s, :], queries[n][:, t], 1, 0) * (scale * LOG2E)
      return hide(x, t, s)

    for (n, _, t, s), x in _begun(blocks.pieces(cut), products, AHEAD):
      row, top = slice(n, n + 1), jnp.max(x, axis=0, keepdims=True)
      first = last == 0 and s.start == 0
      if not first:
        before = highest[row, t]
        top = jnp.maximum(before, top)
      weights = jnp.exp2(x - top).astype(v.dtype)
      x = _dot(values[n][:, s], weights, 1, 0)  # [K + 8 T]
      if not first:
        x += sums[n, :, t] * jnp.exp2(before - top)
      highest[row, t], sums[n, :, t] = top, x

    @pl.when(step == last)
    def _():
      for n, head in enumerate(blocks.heads(cut)):
        total = sums[n, cut.size : cut.size + 1, :]
        out[head, :] = (sums[n, : cut.size, :] / total).astype(out.dtype)
        row = slice(n, n + 1)
        logs[row, :] = highest[row, :] + jnp.log2(total)

  specs = _specs(cut, below, lambda b, g, t, s: (b, g, t, s))
  sums = (cut.group, cut.size + MORE, cut.queries)
  rows = jax.ShapeDtypeStruct(
    (B, heads // cut.group, cut.group, T), jnp.float32
  )
  out, logs = _call(
    kernel,
    "attention_forward",
    [(q, specs.queries), (k, specs.keys), (v, specs.keys)],
    [(q, specs.queries), (rows, specs.rows)],
    (below, specs.below),
    grid=(B, heads // cut.group, T // cut.queries, last + 1),
    sequential=1,
    scratch=[
      pltpu.VMEM((cut.group, cut.queries), jnp.float32),
      pltpu.VMEM(sums, jnp.float32),
    ],
    products=2,
    heads=heads,
    interpret=interpret,
  )
  out, logs = (ad_checkpoint.checkpoint_name(x, KEPT) for x in (out, logs))
  return out, (q, k, v, below, out, logs)


def _backward(heads, causal, scale, interpret, saved, cotangent):
  q, k, v, below, out, logs = saved
  (B, D, T), S = q.shape, k.shape[2]
  cut = blocks.cut(D, T, S, heads, q.dtype.itemsize)
  rounds, last = T // cut.queries // cut.parts, S // cut.keys - 1

  def kernel(q, k, v, below, do, out, logs, *rest):
    dq, dk, dv, q_sum, k_sum, v_sum, means = rest
    part, step, block = (pl.program_id(axis) for axis in (2, 3, 4))

    @pl.when(block == 0)
    def _():
      k_sum[...] = jnp.zeros_like(k_sum)
      v_sum[...] = jnp.zeros_like(v_sum)

    @pl.when(step == 0)
    def _():
      q_sum[block] = jnp.zeros_like(q_sum[block])

    # What the softmax's gradient subtracts, FlashAttention-2's §3.1, eq. 4.
    for n, head in enumerate(blocks.heads(cut)):
      x = do[head, :].astype(jnp.float32) * out[head, :].astype(jnp.float32)
      means[slice(n, n + 1), :] = jnp.sum(x, axis=0, keepdims=True)

    queries, keys, dos = (_by_head(cut, x) for x in (q, k, do))
    q_more, k_turned = _of_products(cut, queries, k, below)
    v_turned = v[...].T
    first = (part * rounds + block) * cut.queries
    hide = _hide(causal, first, step * cut.keys)

    def products(piece):
      n, head, t, s = piece
      x = _dot(k_turned[n][s, :], q_more[n][:, t], 1, 0) * (scale * LOG2E)
      return hide(x, t, s), _dot(v_turned[s, head], dos[n][:, t], 1, 0)

    for piece, (x, towards) in _begun(blocks.pieces(cut), products, AHEAD_BACK):
      n, head, t, s = piece
      row = slice(n, n + 1)
      weights = jnp.exp2(x - logs[row, t])
      towards = (weights * (towards - means[row, t])).astype(q.dtype)
      v_sum[head, s] += _dot(dos[n][:, t], weights.astype(do.dtype), 1, 1)
      k_sum[head, s] += _dot(queries[n][:, t], towards, 1, 1)
      q_sum[block, head, t] += _dot(keys[n][:, s], towards, 1, 0)

    @pl.when(step == last)
    def _():
      dq[...] = (q_sum[block] * scale).astype(dq.dtype)

    @pl.when(block == rounds - 1)
    def _():
      dk[...] = (k_sum[...] * scale).astype(dk.dtype)
      dv[...] = v_sum[...].astype(dv.dtype)

  specs = _specs(cut, below, lambda b, g, p, s, t: (b, g, p * rounds + t, s))
  # A block of queries is written in the last round, and none before.
  written = _specs(
    cut,
    below,
    lambda b, g, p, s, t: (b, g, p * rounds + jnp.where(s == last, t, 0), s),
  )
  of_part = pl.BlockSpec(
    (None, None, cut.group * cut.size, cut.keys),
    lambda b, g, p, s, t: (p, b, g, s),
  )
  parts = jax.ShapeDtypeStruct((cut.parts, *k.shape), k.dtype)
  sums = _sums(cut, cut.queries)
  dq, dk, dv = _call(
    kernel,
    "attention_backward",
    [
      (q, specs.queries),
      (k, specs.keys),
      (v, specs.keys),
      (cotangent, specs.queries),
      (out, specs.queries),
      (logs, specs.rows),
    ],
    [(q, written.queries), (parts, of_part), (parts, of_part)],
    (below, specs.below),
    grid=(B, heads // cut.group, cut.parts, last + 1, rounds),
    sequential=2,
    scratch=[
      pltpu.VMEM((rounds, *sums.shape), jnp.float32),
      *[_sums(cut, cut.keys)] * 2,
      pltpu.VMEM((cut.group, cut.queries), jnp.float32),
    ],
    products=5,
    heads=heads,
    interpret=interpret,
  )
  return dq, _whole(dk), _whole(dv), None


_attention.defvjp(_forward, _backward)


class _Specs(NamedTuple):
  """Which block of an array a program has."""

  queries: Any
  keys: Any
  rows: Any
  below: Any


def _specs(cut, below, place):
  """By where a program is: -> image, group, block of queries, block of keys."""
  rows = cut.group * cut.size

  def spec(shape, index):
    return pl.BlockSpec(shape, lambda *at: index(*place(*at)))

  each = 0 if below is None or len(below) == 1 else 1
  return _Specs(
    queries=spec((None, rows, cut.queries), lambda b, g, t, s: (b, g, t)),
    keys=spec((None, rows, cut.keys), lambda b, g, t, s: (b, g, s)),
    rows=spec(
      (None, None, cut.group, cut.queries), lambda b, g, t, s: (b, g, 0, t)
    ),
    below=spec((None, MORE, cut.keys), lambda b, g, t, s: (each * b, 0, s)),
  )


def _sums(cut, tokens):
  return pltpu.VMEM((cut.group * cut.size, tokens), jnp.float32)


def _call(
  kernel: Callable[..., None],
  name: str,
  inputs: Sequence[tuple[Any, Any]],
  outputs: Sequence[tuple[Any, Any]],
  below: tuple[Any, Any],
  *,
  grid: tuple[int, ...],
  sequential: int,
  scratch: Sequence[Any],
  products: int,
  heads: int,
  interpret: bool,
):
  """Runs a kernel on arrays with their specs; `below` follows q, k and v."""
  run, inputs = kernel, list(inputs)
  if below[0] is None:
    run = lambda q, k, v, *rest: kernel(q, k, v, None, *rest)
  else:
    inputs.insert(3, below)
  arrays, specs = zip(*inputs, strict=True)
  shapes, out_specs = zip(*outputs, strict=True)
  moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes))
  (B, D, T), S = inputs[0][0].shape, inputs[1][0].shape[2]
  ways = ("parallel",) * (len(grid) - sequential)
  return pl.pallas_call(
    run,
    grid=grid,
    in_specs=specs,
    out_specs=out_specs,
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes],
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=(*ways, *("arbitrary",) * sequential)
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * B * T * S * D,
      transcendentals=B * T * S * heads,
      bytes_accessed=moved,
    ),
    interpret=interpret,
    name=name,
  )(*arrays)


def _by_head(cut, ref):
  """What each head of a program has of an array, loaded once."""
  return [ref[head, :] for head in blocks.heads(cut)]


def _of_products(cut, queries, k, below):
  """Queries [K T] and keys [S K] of each head; keys have `below` beside them.

  A product adds it for nothing: channels are padded to 128 there.
  """
  if below is None:
    turned = k[...].T
    return queries, [turned[:, head] for head in blocks.heads(cut)]
  queries = [_with_ones(x) for x in queries]
  keys = [jnp.concatenate([x, below[...]]).T for x in _by_head(cut, k)]
  return queries, keys


def _with_ones(x):
  """[K T] with rows of ones."""
  return jnp.concatenate([x, jnp.ones((MORE, x.shape[1]), x.dtype)])


def _begun(
  pieces: Sequence[Any], products: Callable[[Any], Any], ahead: int
) -> Iterator[tuple[Any, Any]]:
  """Each piece with its products, of which the next are begun before.

  Or the unit for products would wait for the softmax, and that for it.
  """
  made = [products(piece) for piece in pieces[:ahead]]
  for number, piece in enumerate(pieces):
    if number + ahead < len(pieces):
      made.append(products(pieces[number + ahead]))
    yield piece, made.pop(0)


def _dot(x, y, left, right):
  """Sums over an axis of each, in float32."""
  return jax.lax.dot_general(
    x, y, (((left,), (right,)), ((), ())), preferred_element_type=jnp.float32
  )


def _hide(causal, first_query, first_key):
  """What puts a piece's products [S T] with later keys down."""

  def hide(products, t, s):
    if causal:
      place = lambda axis, first: (
        jax.lax.broadcasted_iota(jnp.int32, products.shape, axis) + first
      )
      later = place(0, first_key + s.start) > place(1, first_query + t.start)
      products = jnp.where(later, HIDDEN, products)
    return products

  return hide


def _whole(parts):
  """The sum over parts, in float32."""
  if len(parts) == 1:
    return parts[0]
  return parts.astype(jnp.float32).sum(0).astype(parts.dtype)
