# SPDX-License-Identifier: Apache-2.0
"""The loss of both players against the published formulas in torch."""

import types

import discriminator_torch
import jax
import jax.numpy as jnp
import lpips_torch
from ml_collections import ConfigDict
import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
import vqgan_torch

from cc_jax.core import config as configs
from cc_jax.core import convert, sharding, tree
from cc_jax.models import discriminator, hub, kinds, lpips, vqgan
from cc_jax.tasks import reconstruction, step, task

SIZE, BATCH, START = 16, 8, 5
VQGAN = dict(
  channels=(8, 16),
  attention=(False, True),
  groups=4,
  latent_channels=6,
  codebook_size=12,
  codebook_width=6,
)
CHANNELS = (4, 4, 4, 4, 4)


def make_config(folder, **options):
  config = configs.load("configs/base.py")
  config.train.task = "vqgan"
  config.train.dtype = "float32"
  config.train.steps, config.train.warmup, config.train.clip = 10, 1, 0.0
  config.model.vqgan = ConfigDict(VQGAN)
  config.model.discriminator = ConfigDict(dict(channels=4, depth=2))
  config.autoencoder.size = SIZE
  config.autoencoder.lpips = f"{folder}/lpips"
  config.autoencoder.lpips_weight = 0.7
  config.autoencoder.gan_weight = 0.8
  config.autoencoder.gan_start = START
  for name, value in options.items():
    group, field = name.split("__")
    config[group][field] = value
  return config


def pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def theirs():
  """VQGAN, discriminator and LPIPS in torch."""
  made = types.SimpleNamespace(
    vqgan=vqgan_torch.random(vqgan_torch.Taming(vqgan.Config(**VQGAN))),
    judge=discriminator_torch.PatchGAN(4, 2, running=False),
  )
  discriminator_torch.random(made.judge)
  torch.manual_seed(2)
  made.features, made.heads = lpips_torch.network(CHANNELS)
  with torch.no_grad():
    for head in made.heads:
      head.weight.abs_()
  return made


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
  """LPIPS with the weights of torch."""
  folder = tmp_path_factory.mktemp("weights")
  config = lpips.Config(channels=CHANNELS)
  module = torch.nn.Module()
  module.features = theirs.features
  for n, head in enumerate(theirs.heads):
    model = torch.nn.Sequential(torch.nn.Dropout(), head)
    setattr(module, f"lin{n}", torch.nn.ModuleDict({"model": model}))
  shapes = kinds.structure("lpips", config)[1]
  params = parity.adopt(module, shapes, lpips.NAMES)
  hub.save(f"{folder}/lpips", "lpips", config, params)
  return str(folder)


def adopt(theirs, kept):
  """Their weights as params of the task."""
  config = vqgan.Config(**VQGAN)
  shapes = kinds.structure("vqgan", config)[1]
  judge = discriminator.Config(channels=4, depth=2)
  return {
    "vqgan": parity.adopt(theirs.vqgan, shapes, vqgan.taming_names(config)),
    "discriminator": parity.adopt(
      theirs.judge,
      kinds.structure("discriminator", judge)[1],
      discriminator.NAMES,
    ),
    "kept": kept,
  }


def published(theirs, before):
  """Losses of taming and their gradients, one player after the other."""
  x = torch.tensor(pixels()).permute(0, 3, 1, 2).float() / 127.5 - 1
  g, d = theirs.vqgan, theirs.judge
  g.zero_grad()
  d.zero_grad()
  z = g.encode(x)
  flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
  codes = torch.cdist(flat, g.table()).argmin(1)
  q = F.embedding(codes, g.table())
  q = q.view(BATCH, *z.shape[2:], -1).permute(0, 3, 1, 2)
  codebook = ((z - q.detach()) ** 2).mean()
  codebook = codebook + 0.25 * ((z.detach() - q) ** 2).mean()
  decoded = g.decode(z + (q - z).detach())
  far, _ = lpips_torch.distance(theirs.features, theirs.heads, decoded, x)
  error = ((x - decoded).abs() + 0.7 * far[:, None, None, None]).mean()
  last = g.decoder.conv_out.weight
  doubt = -d(decoded).mean()
  by_error = torch.autograd.grad(error, last, retain_graph=True)[0]
  by_doubt = torch.autograd.grad(doubt, last, retain_graph=True)[0]
  ratio = by_error.norm() / (by_doubt.norm() + 1e-4)
  ratio = ratio.clamp(0, 1e4).detach()
  factor = 0.0 if before else 1.0
  total = error + factor * 0.8 * ratio * doubt + codebook
  total.backward()
  grads = {n: p.grad.clone() for n, p in g.named_parameters()}
  d.zero_grad()
  real, made = d(x), d(decoded.detach())
  judged = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean()) * factor
  judged.backward()
  grads_d = {n: p.grad for n, p in d.named_parameters()}
  return types.SimpleNamespace(
    loss=(total + judged).item(),
    metrics=dict(
      codebook=codebook, gan=doubt, gan_ratio=ratio, discriminator=judged
    ),
    grads=grads,
    grads_d=grads_d,
    codes=codes.numpy(),
  )


def check_gradients(ours, expected, names):
  """By their names; against the largest of all, since some are 0."""
  found = convert.export_weights(ours, names)
  largest = max(g.abs().max().item() for g in expected.values())
  assert largest > 1e-3
  assert found.keys() == expected.keys()
  for name, grad in expected.items():
    mine = np.asarray(found[name]).reshape(grad.shape)
    error = np.abs(mine - grad.numpy()).max()
    assert error < parity.MODEL * largest, (name, error / largest)


@pytest.fixture(scope="module")
def gradient(folder):
  loss = task.make(make_config(folder)).loss
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("steps", [START - 1, START])
def test_loss_and_gradients_are_those_of_the_published_code(
  theirs, gradient, steps
):
  params = adopt(theirs, {"steps": jnp.float32(steps)})
  batch = {"image": pixels()}
  (loss, metrics), grads = gradient(params, batch, jax.random.key(0))
  expected = published(theirs, steps < START)
  assert float(loss) == pytest.approx(expected.loss, rel=parity.MODEL)
  for name, value in expected.metrics.items():
    close = pytest.approx(value.item(), rel=1e-3, abs=1e-6)
    assert float(metrics[name]) == close, name
  names = vqgan.taming_names(vqgan.Config(**VQGAN))
  check_gradients(grads["vqgan"], expected.grads, names)
  if steps < START:
    assert not any(
      np.any(leaf) for leaf in jax.tree.leaves(grads["discriminator"])
    )
  else:
    check_gradients(
      grads["discriminator"], expected.grads_d, discriminator.NAMES
    )
  counts = np.bincount(expected.codes, minlength=12)
  p = counts[counts > 0] / counts.sum()
  assert metrics["used"] == pytest.approx((counts > 0).mean())
  entropy = -(p * np.log(p)).sum()
  assert metrics["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-4)


def test_one_step_moves_both_players_and_counts(theirs, folder):
  config = make_config(folder, autoencoder__gan_start=1)
  made = task.make(config)
  init, update = step.make(config, made)
  state = init(jax.random.key(0))
  assert set(state.params) == {"vqgan", "discriminator", "kept"}
  assert set(made.parts) == {"vqgan", "discriminator"}
  run, batch = jax.jit(update), {"image": jnp.asarray(pixels())}
  states = [state]
  for _ in range(3):
    state, metrics = run(states[-1], made.loss, batch)
    states.append(state)
  assert [float(s.params["kept"]["steps"]) for s in states] == [0, 1, 2, 3]
  assert "found" not in metrics
  moved = lambda a, b, name: any(
    np.any(np.asarray(x) != y)
    for x, y in zip(
      jax.tree.leaves(a.params[name]),
      jax.tree.leaves(b.params[name]),
      strict=True,
    )
  )
  # The rate of the first step is 0; the judge's part begins after it.
  assert moved(states[1], states[2], "vqgan")
  assert moved(states[1], states[2], "discriminator")
  assert metrics["discriminator"] > 0


def test_the_loss_is_the_same_on_eight_devices(theirs, gradient):
  params = adopt(theirs, {"steps": jnp.float32(START)})
  batch, key = {"image": pixels()}, jax.random.key(0)
  (whole, _), expected = gradient(params, batch, key)
  mesh = sharding.make_mesh(fsdp=2)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.layouts(params, mesh))
    rows = sharding.put_batch(batch, mesh)
    (split, _), grads = gradient(placed, rows, key)
  assert float(split) == pytest.approx(float(whole), rel=1e-5)
  for name in ("vqgan", "discriminator"):
    mine, flat = tree.flatten(grads[name]), tree.flatten(expected[name])
    largest = max(np.abs(leaf).max() for leaf in flat.values())
    for path, leaf in flat.items():
      error = np.abs(np.asarray(mine[path]) - np.asarray(leaf)).max()
      assert error < parity.MODEL * largest, path


def test_the_autoencoder_of_kl_has_the_same_second_player(folder):
  config = make_config(folder)
  config.train.task = "autoencoder"
  config.model.vae = ConfigDict(
    {"channels": (8,), "groups": 4, "mid_attention": False}
  )
  made = task.make(config)
  assert set(made.parts) == {"vae", "discriminator"}
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  batch = {"image": pixels()}
  _, metrics = jax.eval_shape(made.loss, shapes, batch, jax.random.key(0))
  assert {"kl", "l1", "lpips", "gan_ratio", "discriminator"} <= set(metrics)


def test_a_known_gradient_takes_the_place_of_the_value_s():
  f = lambda x: reconstruction.with_gradient(7.0 * x, x * x, jnp.float32(3))
  value, slope = jax.value_and_grad(f)(jnp.float32(2))
  assert (value, slope) == (14, 3 * 2 * 2)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"autoencoder__gan_weight": -1.0}, "gan_weight=-1.0; expected 0"),
    ({"model__discriminator": "PATCHES_71"}, "no discriminator 'PATCHES_71'"),
    ({"model__discriminator": {"depth": 3}}, "16 x 16 pixels; expected at"),
    ({"autoencoder__size": 17}, "size=17 does not divide by 2, the vqgan's"),
    ({"model__vqgan": "F8"}, "no vqgan 'F8'"),
  ],
)
def test_what_cannot_be_trained_is_refused(folder, options, words):
  with pytest.raises(ValueError, match=words):
    task.make(make_config(folder, **options))
