# SPDX-License-Identifier: Apache-2.0
"""Latents of buckets, padded to the square, and the network that reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from cc_jax.data import latents
from cc_jax.models import kinds, layers, patches
from cc_jax.tasks import padded

CONFIG = tiny_models.TINY["pixart"]
SQUARE = (CONFIG.sample_size // CONFIG.patch) ** 2
# Latents of 8 x 8, and narrower and wider ones, at an eighth of their frames.
SHAPES = [(8, 8), (4, 16), (14, 4), (6, 10)]


def record(height, width, seed=0):
  rng = np.random.default_rng([seed, height, width])
  mean, std = rng.normal(size=(2, height, width, 4)).astype(np.float32)
  return {
    "latent_mean": mean.reshape(-1, 4),
    "latent_std": std.reshape(-1, 4),
    "bucket": np.array((8 * height, 8 * width), np.int32),
  }


@pytest.fixture(scope="module")
def network():
  made = kinds.make("pixart", CONFIG, rngs=layers.keys(0))
  # Nothing that begins as zeros hides a difference.
  leaves, structure = jax.tree.flatten(made)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return jax.tree.unflatten(
    structure,
    [
      leaf + 0.1 * jax.random.normal(key, leaf.shape)
      for leaf, key in zip(leaves, keys, strict=True)
    ],
  )


def test_a_padded_batch_has_the_outputs_and_loss_of_each_bucket(network):
  rng = np.random.default_rng(3)
  transform = padded.make(CONFIG, SQUARE)
  examples = [record(*shape) for shape in SHAPES]
  rows = [transform(example) for example in examples]
  batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  t = jnp.array([10.0, 400.0, 700.0, 990.0])
  context = jnp.asarray(rng.normal(size=(4, 5, 10)), jnp.float32)
  mask = jnp.arange(5) < jnp.array([[5], [3], [1], [4]])
  found = network.on_tokens(
    jnp.asarray(batch["latent_mean"]),
    jnp.asarray(batch["positions"]),
    t,
    context,
    mask,
    token_mask=jnp.asarray(batch["token_mask"]),
  )
  for row, (example, (height, width)) in enumerate(
    zip(examples, SHAPES, strict=True)
  ):
    alone = slice(row, row + 1)
    xt = example["latent_mean"].reshape(1, height, width, 4)
    output = network(jnp.asarray(xt), t[alone], context[alone], mask[alone])
    count = int(batch["token_mask"][row].sum())
    tokens = found[row : row + 1, :count]
    back = patches.unpatchify(tokens, height, width, CONFIG.patch)
    np.testing.assert_allclose(back, output, rtol=1e-5, atol=1e-5)
    # The loss is the same too, as a mean over true tokens.
    target = example["latent_std"].reshape(1, height, width, 4)
    loss = np.mean(np.square(np.asarray(output)[..., :4] - target))
    kept = batch["token_mask"][row][:, None]
    # The predicted variance comes last in each pixel of a patch.
    guess = np.asarray(found[row]).reshape(SQUARE, -1, 8)[..., :4]
    errors = np.square(guess.reshape(SQUARE, -1) - batch["latent_std"][row])
    masked = np.sum(errors * kept) / (np.sum(kept) * errors.shape[-1])
    assert masked == pytest.approx(float(loss), rel=1e-5)


def test_tokens_are_those_of_the_network():
  mean = record(6, 10)["latent_mean"].reshape(6, 10, 4)
  expected = patches.patchify(jnp.asarray(mean)[None], 2)[0]
  np.testing.assert_array_equal(padded.tokens(mean, 2), expected)


def test_the_mean_alone_is_padded_too():
  example = record(4, 16)
  del example["latent_std"]
  made = padded.make(CONFIG, SQUARE)(example)
  assert "latent_std" not in made
  assert made["latent_mean"].shape == (SQUARE, 16)
  assert made["token_mask"].sum() == 16


def test_a_latent_has_the_shape_of_its_bucket():
  example = record(4, 16)
  made = latents.shaped(example)
  assert made["latent_mean"].shape == made["latent_std"].shape == (4, 16, 4)
  again = latents.shaped(made)
  np.testing.assert_array_equal(again["latent_mean"], made["latent_mean"])
  assert example["latent_mean"].ndim == 2


def test_what_does_not_fit_is_said():
  with pytest.raises(ValueError, match="the shape of its bucket of 32 x 128"):
    latents.shaped({**record(4, 16), "latent_mean": np.zeros((60, 4))})
  with pytest.raises(ValueError, match="a bucket of 20 tokens, and the square"):
    padded.make(CONFIG, SQUARE)(record(8, 10))
  with pytest.raises(ValueError, match="latents of 3 x 8 do not divide"):
    padded.make(CONFIG, SQUARE)(record(3, 8))
