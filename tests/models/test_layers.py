# SPDX-License-Identifier: Apache-2.0
"""Each layer against its counterpart in torch or diffusers."""

from diffusers.models import attention as their_attention
from diffusers.models import (
  attention_processor,
  downsampling,
  embeddings,
  resnet,
  upsampling,
)
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from cc_jax.core import tree
from cc_jax.models import layers, recompute, residual, unet, unet_blocks

KINDS = {"dtype": jnp.float32}


def build(make, module, names=unet.NAMES):
  """Our layer with the weights of theirs, by the table of the U-Net."""
  structure, shapes = parity.abstract(lambda: make(layers.keys(0)))
  return tree.merge(structure, parity.adopt(module, shapes, names))


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def first(array):
  return torch.from_numpy(array).permute(0, 3, 1, 2)


def check(ours, theirs, tolerance=parity.LAYER):
  parity.check(ours, theirs.detach().numpy(), tolerance)


@pytest.fixture(autouse=True)
def _seed():
  torch.manual_seed(0)


@pytest.mark.parametrize("out", [8, 12])
def test_resnet_block_is_diffusers(out):
  theirs = resnet.ResnetBlock2D(
    in_channels=8, out_channels=out, temb_channels=6, groups=4, eps=1e-5
  )
  ours = build(
    lambda rngs: residual.ResnetBlock(
      8, out, time_width=6, groups=4, rngs=rngs, **KINDS
    ),
    theirs,
  )
  x, time = normal(2, 5, 6, 8), normal(2, 6)
  expected = theirs(first(x), torch.from_numpy(time)).permute(0, 2, 3, 1)
  check(jax.jit(type(ours).__call__)(ours, x, time), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_diffusers(masked):
  theirs = attention_processor.Attention(
    query_dim=8, cross_attention_dim=6, heads=2, dim_head=4
  )
  ours = build(
    lambda rngs: layers.Attention(
      8, 2, source_width=6, bias=False, rngs=rngs, **KINDS
    ),
    theirs,
  )
  x, source = normal(2, 5, 8), normal(2, 7, 6)
  mask = np.arange(7)[None] < np.array([[3], [7]]) if masked else None
  hidden = None
  if masked:
    hidden = torch.from_numpy(np.where(mask, 0, -1e9)[:, None]).float()
    hidden = hidden.repeat_interleave(2, dim=0)
  expected = theirs(
    torch.from_numpy(x), torch.from_numpy(source), attention_mask=hidden
  )
  check(jax.jit(type(ours).__call__)(ours, x, source, mask), expected)


def test_gelu_in_bfloat16_is_within_its_resolution():
  x = jnp.linspace(-12, 12, 20_001).astype(jnp.bfloat16)
  exact = lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=False)
  # Before rounding, which alone is half of 2^-8 of a value.
  wide = lambda x: layers.gelu_short(x.astype(jnp.float32))
  assert float(jnp.abs(wide(x) - exact(x)).max()) < 3e-5
  slopes = [jax.vmap(jax.grad(f))(x.astype(jnp.float32)) for f in (wide, exact)]
  assert float(jnp.abs(slopes[0] - slopes[1]).max()) < 2e-4
  assert layers.gelu(x).dtype == jnp.bfloat16
  error = jnp.abs(layers.gelu(x).astype(jnp.float32) - exact(x))
  assert bool((error <= 2**-8 * jnp.abs(exact(x)) + 3e-5).all())


def test_recomputed_functions_have_the_same_gradients():
  norm = layers.group_norm(8, 2, 1e-5, dtype=jnp.bfloat16, rngs=layers.keys(0))
  x = jnp.asarray(2 + normal(2, 4, 4, 8), jnp.bfloat16)
  plain = lambda x, norm: jax.nn.silu(norm(x))
  again = lambda x, norm: layers.norm_silu(norm, x)
  expected, ours = (jax.vjp(f, x, norm) for f in (plain, again))
  parity.check(ours[0].astype(float), expected[0].astype(float), parity.LAYER)
  for a, b in zip(
    *(jax.tree.leaves(f(jnp.ones_like(x))) for _, f in (ours, expected)),
    strict=True,
  ):
    parity.check(a.astype(float), b.astype(float), parity.LAYER)


def test_functions_are_recomputed_only_where_maps_have_16_bits():
  found = []

  def kept(x):
    _, backward = jax.vjp(recompute.recomputed(jnp.sin), x)
    found.append(str(jax.make_jaxpr(backward)(x)).count("cos"))

  x = jnp.ones(3, jnp.bfloat16)
  kept(x)
  kept(x.astype(jnp.float32))
  with recompute.recomputing(False):
    kept(x)
  assert found == [1, 0, 0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_is_torch(dtype):
  theirs = torch.nn.GroupNorm(4, 12, eps=1e-5)
  torch.nn.init.normal_(theirs.weight)
  torch.nn.init.normal_(theirs.bias)
  ours = build(
    lambda rngs: layers.group_norm(12, 4, 1e-5, dtype=jnp.float32, rngs=rngs),
    theirs,
  )
  # Far from zero, where E[x^2] - E[x]^2 would lose the most.
  x = jnp.asarray(10 + normal(2, 5, 7, 12), dtype)
  expected = theirs(first(np.array(x, np.float32))).permute(0, 2, 3, 1)
  check(ours(x), expected, parity.LAYER if dtype == jnp.float32 else 1e-4)


def test_causal_attention_is_torch():
  q, k, v = (normal(2, 5, 3, 4, seed=seed) for seed in range(3))
  expected = torch.nn.functional.scaled_dot_product_attention(
    *(torch.from_numpy(a).transpose(1, 2) for a in (q, k, v)), is_causal=True
  ).transpose(1, 2)
  ours = layers.attention.attention(*map(jnp.asarray, (q, k, v)), causal=True)
  check(ours, expected)


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 1, 1, 7)])
def test_attention_with_a_bias_and_a_mask_is_torch(shape):
  q, k, v = (normal(2, length, 3, 4, seed=length) for length in (5, 7, 7))
  bias, mask = normal(*shape), np.arange(7)[None] < np.array([[3], [7]])
  hidden = np.where(mask[:, None, None], bias, -np.inf)
  expected = torch.nn.functional.scaled_dot_product_attention(
    *(torch.from_numpy(a).transpose(1, 2) for a in (q, k, v)),
    attn_mask=torch.from_numpy(hidden),
    scale=1.0,
  ).transpose(1, 2)
  ours = layers.attention.attention(
    *map(jnp.asarray, (q, k, v, mask, bias)), scale=1.0
  )
  check(ours, expected)


def test_rms_norm_is_torch():
  theirs = torch.nn.RMSNorm(8, eps=1e-6)
  torch.nn.init.normal_(theirs.weight)
  ours = build(lambda rngs: layers.rms_norm(8, rngs=rngs, **KINDS), theirs)
  x = 30 + normal(2, 5, 8)
  check(ours(jnp.asarray(x)), theirs(torch.from_numpy(x)))


def test_gated_mlp_is_the_feed_forward_of_diffusers():
  theirs = their_attention.FeedForward(8, activation_fn="geglu")
  structure, shapes = parity.abstract(
    lambda: {"mlp": layers.MLP(8, 32, gated=True, rngs=layers.keys(0), **KINDS)}
  )
  names = tuple(
    (new, old.removeprefix("ff.")) for new, old in unet.NAMES if "mlp" in new
  )
  ours = tree.merge(structure, parity.adopt(theirs, shapes, names))["mlp"]
  x = 3 * normal(2, 5, 8)
  check(ours(jnp.asarray(x)), theirs(torch.from_numpy(x)))


def test_transformer_block_is_diffusers():
  theirs = their_attention.BasicTransformerBlock(
    8, 2, 4, cross_attention_dim=6, activation_fn="geglu"
  )
  ours = build(
    lambda rngs: unet_blocks.TransformerBlock(
      8, 2, source_width=6, rngs=rngs, **KINDS
    ),
    theirs,
  )
  x, source = normal(2, 5, 8), normal(2, 7, 6)
  expected = theirs(
    torch.from_numpy(x), encoder_hidden_states=torch.from_numpy(source)
  )
  check(jax.jit(type(ours).__call__)(ours, x, source), expected)


@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
@pytest.mark.parametrize("padding", [1, 0])
def test_downsample_is_diffusers(size, padding):
  theirs = downsampling.Downsample2D(
    4, use_conv=True, padding=padding, name="op"
  )
  ours = build(
    lambda rngs: residual.Downsample(
      4,
      4,
      padding=None if padding else ((0, 1), (0, 1)),
      rngs=rngs,
      **KINDS,
    ),
    theirs,
  )
  x = normal(2, *size, 4)
  expected = theirs(first(x)).permute(0, 2, 3, 1)
  check(ours(jnp.asarray(x)), expected)


@pytest.mark.parametrize("size", [None, (6, 8), (5, 8), (5, 7)])
def test_upsample_is_diffusers_also_to_an_odd_size(size):
  theirs = upsampling.Upsample2D(4, use_conv=True)
  ours = build(lambda rngs: residual.Upsample(4, 4, rngs=rngs, **KINDS), theirs)
  x = normal(2, 3, 4, 4)
  expected = theirs(first(x), size).permute(0, 2, 3, 1)
  check(ours(jnp.asarray(x), size), expected)


def test_timestep_embedding_is_diffusers():
  t = np.array([0, 1, 499, 999])
  expected = embeddings.get_timestep_embedding(
    torch.from_numpy(t), 32, flip_sin_to_cos=True, downscale_freq_shift=0
  )
  # float32 angles near 1,000 are good to 6e-5, in torch as here.
  ours = layers.timestep_embedding(jnp.asarray(t), 32)
  assert ours.dtype == jnp.float32
  parity.check(ours, expected.numpy(), parity.MODEL)


def test_time_mlp_is_diffusers():
  theirs = embeddings.TimestepEmbedding(8, 16)
  ours = build(lambda rngs: layers.TimeMLP(8, 16, rngs=rngs, **KINDS), theirs)
  x = normal(3, 8)
  check(ours(jnp.asarray(x)), theirs(torch.from_numpy(x)))


@pytest.mark.parametrize(
  ("name", "theirs"),
  [
    ("silu", torch.nn.functional.silu),
    ("gelu", torch.nn.functional.gelu),
    ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
  ],
)
def test_activations_are_those_of_torch(name, theirs):
  x = np.linspace(-6, 6, 97, dtype=np.float32)
  check(layers.ACTIVATIONS[name](jnp.asarray(x)), theirs(torch.from_numpy(x)))


def test_norms_of_half_precision_have_float32_statistics():
  x = (1000 + normal(1, 4, 4, 8)).astype(np.float32)
  exact = jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)
  norm = layers.group_norm(8, 2, 1e-5, dtype=jnp.bfloat16, rngs=layers.keys(0))
  full = layers.group_norm(8, 2, 1e-5, dtype=jnp.float32, rngs=layers.keys(0))
  ours = norm(exact.astype(jnp.bfloat16))
  assert ours.dtype == jnp.bfloat16
  parity.check(ours.astype(jnp.float32), full(exact), 0.01)


class Shift(nnx.Module):
  """x + a bias of its own: the smallest block."""

  def __init__(self, rngs):
    self.bias = nnx.Param(jax.random.normal(rngs.params(), (3,)))

  def __call__(self, x, factor):
    return factor * x + self.bias[...]


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_is_one_block_after_another(remat):
  blocks = layers.stack(Shift, 4, layers.keys(0))
  biases = np.asarray(blocks.bias[...])
  assert biases.shape == (4, 3)
  assert len(np.unique(biases)) == 12
  expected = normal(2, 5, 3)
  x = jnp.asarray(expected)
  for bias in biases:
    expected = 2 * expected + bias
  ours = layers.scan(blocks, x, 2.0, remat=remat)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_an_unknown_remat_names_the_choices():
  choices = "none, dots, attention, full"
  with pytest.raises(ValueError, match=f"'some'; expected one of {choices}"):
    layers.checkpointed(len, "some")
