# SPDX-License-Identifier: Apache-2.0
"""The prior's loss against torch, its options, and that it sees no text."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny
import tiny_clip_gen
import torch
import torch.nn.functional as F
import transformers
import vqgan_torch

from cc_jax.core import config_json, convert
from cc_jax.data import shards
from cc_jax.models import clip_dual, families, hub, kinds, vqgan
from cc_jax.models import prior as priors
from cc_jax.tasks import prior, step, task

BATCH, CODES = 6, 12
VQGAN, CLIP, PRIOR = (
  tiny_clip_gen.VQGAN,
  tiny_clip_gen.CLIP,
  tiny_clip_gen.PRIOR,
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  """Random networks, and the tiny images as their codes and embeddings."""
  return pathlib.Path(tiny_clip_gen.shared(tmp_path_factory)[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


def config(networks, **fields):
  data = networks.parent / "tiny"
  return tiny_clip_gen.config(str(data), str(networks), networks, **fields)


def batch():
  rng = np.random.default_rng(3)
  return {
    "codes": rng.integers(0, CODES, (BATCH, 16)).astype(np.uint16),
    "clip_image": (3 * rng.standard_normal((BATCH, 10))).astype(np.float16),
  }


def published(networks, params, weight):
  """Loss and gradients by torch: GPT2, taming's VQGAN and CLIP."""
  found = families.prior(PRIOR, VQGAN, CLIP)
  state = {
    name: torch.tensor(np.asarray(array))
    for name, array in convert.export_weights(params, priors.NAMES).items()
  }
  settings = config_json.export_config(found, priors.CONFIG)
  off = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
  trunk = transformers.GPT2Model(transformers.GPT2Config(**settings, **off))
  trunk.load_state_dict({n: state[n] for n in trunk.state_dict()})
  rest = {
    name: array.requires_grad_()
    for name, array in state.items()
    if name.startswith(("cond_proj", "head"))
  }
  rows = batch()
  codes = torch.tensor(rows["codes"].astype(np.int64))
  e = F.normalize(torch.tensor(rows["clip_image"]).float(), dim=1)
  start = F.linear(e, rest["cond_proj.weight"], rest["cond_proj.bias"])
  x = torch.cat([start[:, None], trunk.wte(codes[:, :-1])], 1)
  states = trunk(inputs_embeds=x).last_hidden_state
  logits = F.linear(states, rest["head.weight"], rest["head.bias"])
  loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
  if weight:
    decoder = vqgan_torch.Taming(VQGAN)
    loaded = hub.load(f"{networks}/vqgan", "vqgan")
    tensors = convert.export_weights(loaded.params, vqgan.taming_names(VQGAN))
    # Its attention has convolutions of one pixel in place of matrices.
    shapes = decoder.state_dict()
    decoder.load_state_dict(
      {
        n: torch.tensor(np.asarray(a)).view_as(shapes[n])
        for n, a in tensors.items()
      }
    )
    clip = transformers.CLIPModel.from_pretrained(networks / "clip").eval()
    p = logits.softmax(-1)
    hot = F.one_hot(logits.argmax(-1), CODES) + p - p.detach()
    entries = (hot @ decoder.table()).view(BATCH, 4, 4, 5).permute(0, 3, 1, 2)
    made = F.interpolate(
      decoder.decode(entries), 12, mode="bicubic", antialias=True
    )
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    made = ((made + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    pooled = clip.vision_model(pixel_values=made).pooler_output
    seen = F.normalize(clip.visual_projection(pooled), dim=1)
    loss = loss + weight * F.mse_loss(seen, e)
  loss.backward()
  grads = {name: p.grad for name, p in trunk.named_parameters()}
  return loss.item(), grads | {n: p.grad for n, p in rest.items()}


@pytest.mark.parametrize("weight", [0.0, 30.0])
def test_loss_and_gradients_are_those_of_torch(networks, weight):
  made = task.make(config(networks, prior__clip_weight=weight))
  params = parity.scramble(jax.eval_shape(made.init, jax.random.key(0)), 5)
  gradient = jax.jit(jax.value_and_grad(made.loss, has_aux=True))
  (loss, metrics), grads = gradient(params, batch(), jax.random.key(0))
  expected, theirs = published(networks, params["prior"], weight)
  assert float(loss) == pytest.approx(expected, rel=parity.MODEL)
  ours = convert.export_weights(grads["prior"], priors.NAMES)
  largest = max(g.abs().max().item() for g in theirs.values())
  assert ours.keys() == theirs.keys()
  for name, grad in theirs.items():
    error = np.abs(np.asarray(ours[name]) - grad.numpy()).max()
    assert error < parity.MODEL * largest, name
  if weight:
    assert metrics["clip"] * weight > 0.1 * metrics["cross_entropy"]
    # The networks that judge stay as they are.
    assert len(jax.tree.leaves(made.loss)) > 40
  else:
    assert not jax.tree.leaves(made.loss)


def test_no_caption_reaches_the_training(networks, data):
  """The encoded folder has none, and the task reads two features of it."""
  found = task.make(config(networks))
  folder = f"{networks}/codes"
  names = {field.name for field in shards.open(folder).fields}
  assert names == {"key", "codes", "clip_image"}
  assert found.features == ("codes", "clip_image")
  source = task.source(found, (folder,), "train")
  assert set(source[0]) == {"codes", "clip_image"}
  # Nor where captions stand beside it.
  beside = task.source(found, (folder, f"{data}/captions"), "train")
  assert set(beside[0]) == {"codes", "clip_image"}
  assert found.transform is None


def test_codes_of_another_vqgan_are_refused(networks, data, tmp_path):
  del data
  params = parity.scramble(kinds.structure("vqgan", VQGAN)[1], 9)
  hub.save(str(tmp_path), "vqgan", VQGAN, params)
  made = config(networks, model__vqgan=str(tmp_path))
  with pytest.raises(ValueError, match="was made by weights"):
    task.source(task.make(made), made.train.folders, "train")


def test_the_prior_learns_the_codes_of_embeddings(networks, data):
  del data
  made = config(networks, train__lr=3e-3, train__steps=40)
  found = task.make(made)
  source = task.source(found, made.train.folders, "train")
  rows = {
    name: np.stack([source[row][name] for row in range(8)])
    for name in found.features
  }
  init, update = step.make(made, found)
  state, run = jax.jit(init)(jax.random.key(0)), jax.jit(update)
  losses = []
  for _ in range(40):
    state, metrics = run(state, found.loss, rows)
    losses.append(float(metrics["cross_entropy"]))
  assert losses[0] == pytest.approx(np.log(CODES), abs=0.2)
  assert losses[-1] < 0.5 * losses[0]


def test_noise_turns_embeddings_by_the_angle_that_was_asked_for():
  e = clip_dual.unit(jax.random.normal(jax.random.key(0), (500, 64)))
  near = prior.perturb(jax.random.key(1), e, 0.75)
  np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, rtol=1e-5)
  # Orthogonal on average: tan of the angle is the size.
  cosine = np.mean(np.sum(np.asarray(e) * near, axis=1))
  assert cosine == pytest.approx(1 / (1 + 0.75**2) ** 0.5, abs=0.02)
  assert prior.perturb(jax.random.key(1), e, 0.0) is e


def test_a_share_of_the_codes_is_drawn_anew():
  codes = jnp.zeros((200, 50), jnp.int32)
  found = prior.corrupt(jax.random.key(0), codes, 0.3, 10)
  assert np.mean(found != 0) == pytest.approx(0.3 * 0.9, abs=0.02)
  assert set(np.unique(found)) == set(range(10))
  assert prior.corrupt(jax.random.key(0), codes, 0.0, 10) is codes


def test_a_dropped_condition_is_zeros(networks):
  """With all dropped the embedding says nothing; with none it does."""
  params, losses = None, {}
  for share in (0.0, 1.0):
    found = task.make(config(networks, prior__drop_condition=share))
    params = params or parity.scramble(
      jax.eval_shape(found.init, jax.random.key(0)), 5
    )
    other = {**batch(), "clip_image": batch()["clip_image"][::-1].copy()}
    run = jax.jit(found.loss)
    losses[share] = [
      float(run(params, rows, jax.random.key(0))[0])
      for rows in (batch(), other)
    ]
  assert losses[1.0][0] == losses[1.0][1]
  assert abs(losses[0.0][0] - losses[0.0][1]) > 1e-3


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"prior__dropout": 1.0}, "dropout=1.0; expected a share from 0 to below"),
    ({"prior__corrupt": 1.5}, "corrupt=1.5; expected a share"),
    ({"prior__noise": -0.1}, "noise=-0.1; expected 0 or more"),
    ({"model__prior": "SMALL"}, "no prior 'SMALL'"),
    ({"model__prior": "MEDIUM"}, "vocabulary=16384, but model.vqgan has 12"),
    (
      {"model__prior": {"condition": 7, "width": 24, "heads": 3}},
      "condition=7, but model.clip has 10",
    ),
    ({"model__vqgan": "F16_1024"}, "'F16_1024' has no weights"),
  ],
)
def test_what_does_not_fit_is_refused(networks, fields, words):
  with pytest.raises(ValueError, match=words):
    task.make(config(networks, **fields))
