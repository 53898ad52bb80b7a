# SPDX-License-Identifier: Apache-2.0
"""Latents as tokens: against loops, and torch's and diffusers' functions."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from cc_jax.models import layers, patches

PLACES = diffusers.models.embeddings.get_2d_sincos_pos_embed


def normal(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_tokens_are_patches_row_by_row_and_come_back_as_maps():
  x = normal(2, 4, 6, 3)
  tokens = np.asarray(patches.patchify(jnp.asarray(x), 2))
  assert tokens.shape == (2, 6, 12)
  # The token in the second row and third column.
  np.testing.assert_array_equal(tokens[1, 5], x[1, 2:4, 4:6].reshape(-1))
  back = patches.unpatchify(jnp.asarray(tokens), 4, 6, 2)
  np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("size", [(5, 4), (4, 5)])
def test_latents_that_do_not_divide_into_patches_are_refused(size):
  with pytest.raises(ValueError, match=r"do not divide into patches of 2 x 2"):
    patches.patchify(jnp.zeros((1, *size, 4)), 2)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (13, 5)])
@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_places_are_those_of_diffusers_also_where_maps_are_not_square(
  size, scale
):
  theirs = PLACES(32, size, base_size=16, interpolation_scale=scale)
  places = patches.grid(*size, base=16, scale=scale)
  ours = patches.position_embedding(places, 32)
  parity.check(ours, theirs.float(), parity.LAYER)


def test_an_axis_is_stretched_to_the_one_trained_on():
  places = patches.grid(4, 2, base=8, scale=2).reshape(4, 2, 2)
  np.testing.assert_allclose(places[:, 1, 0], [0, 1, 2, 3])
  np.testing.assert_allclose(places[3, :, 1], [0, 2])


def test_places_of_large_maps_are_exact():
  """The angles are in float32, in which 31.5 has 2e-6 of an error."""
  places = patches.grid(64, 64, base=64, scale=2)
  frequency = 10_000.0 ** -(np.arange(288) / 288)
  angle = places[:, ::-1, None].astype(np.float64) * frequency
  exact = np.concatenate([np.sin(angle), np.cos(angle)], -1).reshape(-1, 1152)
  ours = patches.position_embedding(places, 1152)
  parity.check(ours, exact, parity.LAYER)


def test_a_patch_is_read_as_by_a_convolution():
  layer = patches.Patch(2, 3, 5, dtype=jnp.float32, rngs=layers.keys(0))
  reference = torch.nn.Conv2d(3, 5, 2, stride=2)
  with torch.no_grad():
    kernel = np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1)
    reference.weight.copy_(torch.tensor(kernel))
    reference.bias.zero_()
    x = normal(2, 4, 6, 3)
    theirs = reference(torch.from_numpy(x).movedim(-1, 1)).flatten(2).mT
  ours = layer(patches.patchify(jnp.asarray(x), 2))
  parity.check(ours, theirs, parity.LAYER)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_initial_weights_are_as_wide_as_those_of_the_fused_matrix(parts):
  fused = torch.nn.init.xavier_uniform_(torch.empty(parts * 96, 96))
  ours = patches.fused_xavier(parts)(jax.random.key(0), (96, 96), jnp.float32)
  limit = (6 / (96 + parts * 96)) ** 0.5
  for weights in (np.asarray(ours), fused.numpy()):
    assert 0.99 * limit < np.abs(weights).max() <= limit * (1 + 1e-6)


def test_modulation_is_exact_in_half_precision():
  x = jnp.asarray(normal(1, 3, 8), jnp.bfloat16)
  scale = jnp.full((1, 1, 8), 1e-3)
  out = patches.modulate(x, jnp.zeros((1, 1, 8)), scale)
  assert out.dtype == x.dtype
  exact = (x.astype(jnp.float32) * 1.001).astype(x.dtype)
  np.testing.assert_array_equal(out, exact)
