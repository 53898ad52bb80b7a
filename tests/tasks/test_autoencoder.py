# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's loss: its parts, their weights, and that it goes down."""

import io
import types

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import parity
from PIL import Image
import pytest
from scipy import integrate

from cc_jax.core import config as configs
from cc_jax.core import tree
from cc_jax.models import hub, kinds, lpips
from cc_jax.tasks import autoencoder, task

SIZE, BATCH = 16, 4
VAE = {"channels": (8,), "groups": 4, "mid_attention": False}


def make_config(**options):
  config = configs.load("configs/base.py")
  config.train.task = "autoencoder"
  config.train.dtype = "float32"
  config.model.vae = ConfigDict(VAE)
  config.autoencoder.size = SIZE
  config.autoencoder.update(options)
  return config


def batch():
  """Squares of one colour on another."""
  rng = np.random.default_rng(0)
  pixels = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
  pixels[:] = rng.integers(256, size=(BATCH, 1, 1, 3))
  pixels[:, 4:10, 5:12] = rng.integers(256, size=(BATCH, 1, 1, 3))
  return {"image": jnp.asarray(pixels)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A folder of a narrow LPIPS, its heads not negative."""
  folder = str(tmp_path_factory.mktemp("lpips"))
  config = lpips.Config(channels=(4, 4, 4, 4, 4))
  params = parity.scramble(kinds.structure("lpips", config)[1])
  params["heads"] = jax.tree.map(jnp.abs, params["heads"])
  hub.save(folder, "lpips", config, params)
  return folder


@pytest.fixture(scope="module")
def trained(weights):
  """The task with all three parts, its weights, and its compiled gradient.

  `gradient(loss, params, key, name)` is of one part alone, or of "loss".
  """
  config = make_config(kl_weight=0.1, lpips_weight=0.5, lpips=weights)
  made = task.make(config)
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  parts = ("loss", "lpips")

  @jax.jit
  def compiled(loss, params, key, choice):
    def chosen(params):
      total, metrics = loss(params, batch(), key)
      metrics = {"loss": total, **metrics}
      return sum(choice[name] * metrics[name] for name in parts), metrics

    return jax.grad(chosen, has_aux=True)(params)

  def gradient(loss, params, key, part="loss"):
    choice = {name: jnp.float32(name == part) for name in parts}
    return compiled(loss, params, key, choice)

  return types.SimpleNamespace(
    config=config,
    task=made,
    params=parity.scramble(shapes),
    gradient=gradient,
  )


def test_the_loss_is_the_weighted_sum_of_its_parts(trained):
  _, metrics = trained.gradient(
    trained.task.loss, trained.params, jax.random.key(1)
  )
  assert metrics.keys() == {"loss", "l1", "kl", "lpips", "latent_std"}
  for name in ("l1", "kl", "lpips"):
    assert metrics[name] > 0
  total = metrics["l1"] + 0.1 * metrics["kl"] + 0.5 * metrics["lpips"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_the_parts_are_means_over_pixels(trained):
  """KL is summed over the latent and divided over pixels and channels."""
  key = jax.random.key(1)
  _, metrics = trained.gradient(trained.task.loss, trained.params, key)
  config = hub.config(trained.config.model.vae, "autoencoder")
  structure, _ = kinds.structure("autoencoder", config)
  loaded = hub.load(trained.config.autoencoder.lpips, "lpips")
  distance, _ = kinds.structure("lpips", loaded.config)
  x = batch()["image"] / 127.5 - 1

  @jax.jit
  def expected(params, frozen):
    vae = tree.merge(structure, params["vae"])
    mean, std = vae.encode(x)
    decoded = vae.decode(mean + std * jax.random.normal(key, mean.shape))
    nats = (mean**2 + std**2 - 1) / 2 - jnp.log(std)
    return {
      "l1": jnp.abs(decoded - x).mean(),
      "kl": nats.sum() / (BATCH * SIZE * SIZE * 3),
      "lpips": tree.merge(distance, frozen)(decoded, x).sum() / BATCH,
    }

  for name, value in expected(trained.params, loaded.params).items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_divergence_is_the_integral_that_defines_it():
  mean, std = np.float32([0, 0.5, -2, 1]), np.float32([1, 0.3, 2, 1e-2])
  ours = autoencoder.kl(jnp.asarray(mean)[None], jnp.asarray(std)[None])[0]

  def integrand(x, m, s):
    log_q = -((x - m) ** 2) / (2 * s**2) - np.log(s)
    log_p = -(x**2) / 2
    return np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q - log_p)

  for value, m, s in zip(ours, mean, std, strict=True):
    m, s = float(m), float(s)
    expected, _ = integrate.quad(integrand, m - 9 * s, m + 9 * s, args=(m, s))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_lpips_reaches_every_weight(trained):
  """Its gradient alone is not 0 anywhere, encoder included."""
  grads, _ = trained.gradient(
    trained.task.loss, trained.params, jax.random.key(1), "lpips"
  )
  for path, grad in tree.flatten(grads["vae"]).items():
    assert np.isfinite(grad).all(), path
    assert np.abs(grad).max() > 1e-6, path


def test_the_loss_goes_down(trained):
  # With 1e-2 it comes and goes on its way, and rounding decides when.
  optimizer = optax.adam(3e-3)

  @jax.jit
  def advance(params, state, grads):
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  params, state = trained.params, optimizer.init(trained.params)
  found = []
  for step in range(120):
    grads, metrics = trained.gradient(
      trained.task.loss, params, jax.random.key(step)
    )
    params, state = advance(params, state, grads)
    found.append(metrics)
  for name in ("loss", "l1", "lpips"):
    assert found[-1][name] < 0.6 * found[0][name], name


def test_frozen_weights_are_leaves_of_the_loss(trained, weights):
  """So that the loop places them, and none is trained."""
  expected = tree.flatten(hub.load(weights, "lpips").params)
  leaves = jax.tree.leaves(trained.task.loss)
  assert len(leaves) == len(expected) == 2 * 13 + 5
  assert trained.params.keys() == trained.task.parts.keys() == {"vae"}


def test_without_lpips_nothing_is_frozen():
  made = task.make(make_config(lpips="no such folder"))
  assert not jax.tree.leaves(made.loss)
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  _, metrics = jax.eval_shape(made.loss, shapes, batch(), jax.random.key(0))
  assert metrics.keys() == {"l1", "kl", "latent_std"}


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "lpips_weight=1.0 needs weights.*vgg16-397923af.pth and vgg.pth"),
    ({"lpips": "no/such"}, "no lpips 'no/such'.*or a folder"),
    ({"lpips": "VGG"}, "lpips 'VGG' has no weights"),
    ({"lpips": "x", "size": 8}, "LPIPS of 8 x 8 pixels; expected at least 16"),
    ({"lpips": "x", "lpips_weight": -1.0}, "-1.0; expected 0 or more"),
  ],
)
def test_lpips_without_its_weights_is_refused(options, message):
  config = make_config(**{"lpips_weight": 1.0, **options})
  with pytest.raises(ValueError, match=message):
    task.make(config)


@pytest.mark.parametrize("shape", [(40, 20), (16, 16), (9, 30)])
def test_records_become_squares_of_bytes(shape):
  picture = np.random.default_rng(0).integers(256, size=(*shape, 3))
  data = io.BytesIO()
  Image.fromarray(picture.astype(np.uint8)).save(data, "png")
  record = task.make(make_config()).transform({"image": data.getvalue()})
  assert record.keys() == {"image"}
  assert record["image"].shape == (SIZE, SIZE, 3)
  assert record["image"].dtype == np.uint8
