# SPDX-License-Identifier: Apache-2.0
"""Attention with a mask of keys, as a column and as a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import sharding, tree
from cc_jax.models import attention, column_mask, layers, patches, pixart


def drawn(width=12, heads=2, tokens=16, sources=6):
  """Random attention with biases, tokens, states, and masks that differ."""
  structure, shapes = parity.abstract(
    lambda: layers.Attention(
      width, heads, dtype=jnp.float32, rngs=layers.keys(0)
    )
  )
  params = parity.scramble(shapes)
  rng = np.random.default_rng(0)
  x, context = (
    jnp.asarray(rng.standard_normal((2, n, width)), jnp.float32)
    for n in (tokens, sources)
  )
  mask = jnp.asarray(np.arange(sources) < np.array([[sources], [1]]))
  return structure, params, x, context, mask


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_results_and_gradients_are_those_of_a_mask(heads):
  structure, params, x, context, mask = drawn(heads=heads)

  def total(attend):
    def f(params, x, context):
      out = attend(tree.merge(structure, params), x, context, mask)
      return jnp.sum(out * jnp.cos(out)), out

    return jax.value_and_grad(f, (0, 1, 2), has_aux=True)(params, x, context)

  ((_, expected), wanted), ((_, ours), found) = (
    total(lambda attn, *args: attn(*args)),
    total(column_mask.by_column),
  )
  parity.check(ours, expected, parity.LAYER)
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    parity.check(ours, theirs, parity.LAYER)


def test_one_mask_may_serve_all_rows():
  structure, params, x, context, mask = drawn()
  attn = tree.merge(structure, params)
  found = column_mask.by_column(attn, x, context, mask[1:])
  parity.check(found, attn(x, context, mask[1:]), parity.LAYER)


def test_in_bfloat16_what_is_hidden_stays_hidden():
  structure, params, x, context, mask = drawn()
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  attn = tree.merge(structure, params)
  for layer in (attn.q, attn.k, attn.v, attn.out):
    layer.dtype = jnp.bfloat16
  x, context = x.astype(jnp.bfloat16), context.astype(jnp.bfloat16)
  other = jnp.where(mask[..., None], context, 7)
  found, again = (
    column_mask.by_column(attn, x, states, mask) for states in (context, other)
  )
  assert found.dtype == jnp.bfloat16
  assert np.all(found == again)


def test_on_a_tpu_captions_and_padded_images_reach_the_kernel(monkeypatch):
  """In one Pallas kernel, run step by step here, with the same result."""
  config = pixart.Config(
    sample_size=8, heads=2, head_width=6, depth=2, caption_width=10
  )
  structure, shapes = parity.abstract(
    lambda: pixart.PixArt(config, rngs=layers.keys(0))
  )
  model = tree.merge(structure, parity.scramble(shapes))
  rng = np.random.default_rng(0)
  xt, context = (
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in ((2, 8, 8, 4), (2, 5, 10))
  )
  mask = jnp.asarray(np.arange(5) < np.array([[4], [2]]))
  places = patches.grid(4, 4, base=4, scale=1)[None]
  shown = jnp.arange(16)[None] < 12
  run = lambda: model.on_tokens(
    patches.patchify(xt, 2),
    places,
    jnp.array([3, 800]),
    context,
    mask,
    token_mask=shown,
  )
  expected, kernels, plain = run(), [], attention.by_rows

  def by_rows(*args, **options):
    kernels.append(args[1].shape)
    return plain(*args, interpret=True, **options)

  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  monkeypatch.setattr(attention, "by_rows", by_rows)
  parity.check(run(), expected, parity.MODEL)
  # Of the image's own tokens, and of the caption's.
  assert kernels == [(2, 16, 2, 7), (2, 5, 2, 7)]
