# SPDX-License-Identifier: Apache-2.0
"""Latents of buckets, padded to the square, and the network that reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny
import tiny_models
import toys

from cc_jax.core import tree
from cc_jax.data import latents
from cc_jax.diffusion import schedule as schedules
from cc_jax.models import families, kinds, layers, patches
from cc_jax.tasks import latent_diffusion, padded
from cc_jax.tasks import task as tasks

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


@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_have_the_same_loss_and_gradients(shape, network):
  """One shape a bucket, and one for all: the task's own errors."""
  (height, width), patch = shape, CONFIG.patch
  rng = np.random.default_rng(5)
  x0, eps = jnp.asarray(rng.normal(size=(2, 3, height, width, 4)), jnp.float32)
  t = jnp.array([0, 300, 900])
  context = jnp.asarray(rng.normal(size=(3, 5, 10)), jnp.float32)
  conditions = {"context": context, "mask": jnp.ones((3, 5), bool)}
  structure, params = tree.split(network)
  schedule = schedules.linear()
  example = padded.make(CONFIG, SQUARE)(record(height, width))
  places = {
    name: jnp.tile(jnp.asarray(example[name])[None], (3, *[1] * n))
    for name, n in (("positions", 2), ("token_mask", 1))
  }

  def as_tokens(x):
    tokens = patches.patchify(x, patch)
    # Padding is anything: noise too.
    tokens = jnp.pad(
      tokens,
      ((0, 0), (0, SQUARE - tokens.shape[1]), (0, 0)),
      constant_values=7.0,
    )
    return tokens.reshape(3, SQUARE, -1, 4)

  def loss(params, x0, eps, places, mask):
    networks = {"transformer": tree.merge(structure, params)}
    predict = lambda xt: families.output(
      "pixart", networks, xt, t, conditions, places
    )
    found = latent_diffusion.errors(predict, schedule, "eps", x0, eps, t, mask)
    return sum(jnp.mean(rows) for rows in found.values()), found

  both = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, plain), grads = both(params, x0, eps, None, None)
  mask = places["token_mask"][..., None, None]
  (_, found), padded_grads = both(
    params, as_tokens(x0), as_tokens(eps), places, mask
  )
  assert set(found) == {"mse", "vb"}
  for name, rows in found.items():
    np.testing.assert_allclose(rows, plain[name], rtol=1e-5)
  flat, other = tree.flatten(grads), tree.flatten(padded_grads)
  # Gradients that are zero but for rounding, as of the keys' biases, are small
  # beside the largest.
  largest = max(float(jnp.max(jnp.abs(grad))) for grad in flat.values())
  for path, grad in flat.items():
    allowed = 1e-4 * float(jnp.max(jnp.abs(grad))) + 1e-6 * largest
    np.testing.assert_allclose(other[path], grad, rtol=0, atol=allowed)


@pytest.mark.parametrize("micro", [False, True])
def test_a_task_trains_on_padded_buckets(micro, tmp_path_factory, tmp_path):
  data = tiny.shared(tmp_path_factory)
  fields = dict(
    encode__buckets=True,
    encode__size=64,
    latent_diffusion__padded=True,
    model__transformer=dict(
      sample_size=32,
      heads=2,
      head_width=12,
      depth=2,
      caption_width=16,
      micro_conditions=micro,
    ),
  )
  task = tasks.make(toys.pixart(data, tmp_path, **fields))
  assert not task.bucketed
  frames = [(64, 64), (128, 32), (32, 112)]
  rows = []
  for n, (height, width) in enumerate(frames):
    example = record(height // 2, width // 2, n)
    example |= {
      "bucket": np.array((height, width), np.int32),
      "size": np.array((5 * height, 5 * width), np.int32),
      "crop": np.zeros(2, np.int32),
      "tokens": np.arange(8, dtype=np.int32),
    }
    rows.append(task.transform(example))
  batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
  assert batch["latent_mean"].shape == (3, 256, 16)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  params = parity.scramble(shapes, 1)
  run = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
  (loss, metrics), grads = run(params, batch, jax.random.key(1))
  assert np.isfinite(loss)
  assert set(metrics) == {"mse", "vb"}
  # What is behind a bucket's tokens changes nothing.
  hidden = ~batch["token_mask"][..., None]
  noisy = {**batch, "latent_mean": jnp.where(hidden, 5, batch["latent_mean"])}
  (again, _), _ = run(params, noisy, jax.random.key(1))
  assert float(again) == pytest.approx(float(loss), rel=1e-5)
  # The network is told size and ratio, and learns from them.
  for name in ("size", "ratio") if micro else ():
    assert np.any(grads["transformer"][name]["up"]["kernel"]), name
  for name in ("size", "bucket"):
    other = {**batch, name: batch[name] * 2 + jnp.array([0, 16])}
    moved = float(run(params, other, jax.random.key(1))[0][0])
    assert (moved != float(loss)) == micro, name


def test_padding_without_buckets_is_refused(tmp_path_factory, tmp_path):
  data = tiny.shared(tmp_path_factory)
  with pytest.raises(ValueError, match=r"padded is for .* encode.buckets"):
    tasks.make(toys.pixart(data, tmp_path, latent_diffusion__padded=True))
