# SPDX-License-Identifier: Apache-2.0
"""CLIP's loss: closed forms, transformers' own, and over several devices."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import parity
import pytest
import tiny
import torch
import transformers

from cc_jax.core import sharding
from cc_jax.models import clip_dual, clip_vision, kinds
from cc_jax.tasks import contrastive, step, task

BATCH = 8
CLIP = ConfigDict(
  dict(
    projection=12,
    text=dict(width=16, mlp=32, depth=1, heads=2, positions=8),
    vision=dict(width=16, mlp=32, depth=1, heads=2, image_size=16, patch=8),
  )
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


def config(data, **fields):
  fields = {
    "model__clip": CLIP,
    "train__task": "contrastive",
    # The tiny captions are alike in the eight tokens that are kept.
    "encode__caption": "title",
    "train__folders": (f"{data}/catalogue",),
    **fields,
  }
  return tiny.config(data, data, **fields)


@pytest.fixture(scope="module")
def made(data):
  found = task.make(config(data))
  shapes = jax.eval_shape(found.init, jax.random.key(0))
  return found, parity.scramble(shapes)


def rows(data, found):
  source = task.source(found, config(data).train.folders, "train")
  records = [found.transform(source[row]) for row in range(BATCH)]
  return {
    name: np.stack([record[name] for record in records]) for name in records[0]
  }


def test_the_loss_of_equal_logits_is_the_logarithm_of_their_number():
  assert contrastive.symmetric(jnp.zeros((5, 5))) == pytest.approx(np.log(5))


def test_the_loss_of_two_pairs_is_the_closed_form():
  a, b, c, d = 0.3, -1.2, 2.0, 0.7
  found = contrastive.symmetric(jnp.array([[a, b], [c, d]]))
  soft = lambda x: np.log1p(np.exp(x))
  rows, columns = soft(b - a) + soft(c - d), soft(c - a) + soft(b - d)
  assert found == pytest.approx((rows + columns) / 4, rel=1e-6)


@pytest.fixture(scope="module")
def ours(data, made):
  """Batch, compiled gradient, and what it gives on one device."""
  found, params = made
  batch = rows(data, found)
  gradient = jax.jit(jax.value_and_grad(found.loss, has_aux=True))
  return batch, gradient, gradient(params, batch, jax.random.key(0))


@pytest.fixture(scope="module")
def theirs(made, ours, tmp_path_factory):
  """transformers' CLIP with the same weights, and what it says of the batch."""
  (found, params), batch = made, ours[0]
  folder = tmp_path_factory.mktemp("clip")
  clip = found.parts["clip"][1]
  parity.save(
    folder, params["clip"], clip, clip_dual.NAMES, clip_dual.CONFIG, "model"
  )
  model = transformers.CLIPModel.from_pretrained(folder)
  pixels = clip_vision.normalise(jnp.asarray(batch["image"]) / 127.5 - 1)
  out = model(
    input_ids=torch.tensor(batch["tokens"]).long(),
    pixel_values=torch.tensor(np.asarray(pixels)).permute(0, 3, 1, 2),
    return_loss=True,
  )
  out.loss.backward()
  return model, out


def test_the_loss_is_that_of_transformers_on_the_same_weights(ours, theirs):
  (loss, metrics), _ = ours[2]
  out = theirs[1]
  assert float(loss) == pytest.approx(out.loss.item(), rel=parity.MODEL)
  right = out.logits_per_image.argmax(1) == torch.arange(BATCH)
  assert metrics["accuracy"] == pytest.approx(right.float().mean().item())
  gap = out.image_embeds.mean(0) - out.text_embeds.mean(0)
  assert metrics["modality_gap"] == pytest.approx(gap.norm().item(), rel=1e-4)


def test_gradients_are_those_of_torch(ours, theirs):
  grads, model = ours[2][1]["clip"], theirs[0]
  scale = model.logit_scale.grad.item()
  assert float(grads["logit_scale"]) == pytest.approx(scale, rel=1e-3)
  for mine, name in (
    (grads["vision"]["projection"]["kernel"], "visual_projection"),
    (grads["text"]["projection"]["kernel"], "text_projection"),
  ):
    weight = getattr(model, name).weight.grad.numpy()
    parity.check(np.asarray(mine).T, weight, parity.MODEL)


def test_captions_of_all_devices_are_compared(made, ours):
  """The same loss and gradient where the batch is split over eight."""
  batch, gradient, ((whole, _), expected) = ours
  mesh = sharding.make_mesh()
  assert mesh.size == BATCH
  with jax.set_mesh(mesh):
    placed = sharding.put_batch(batch, mesh)
    (split, _), grads = gradient(made[1], placed, jax.random.key(0))
  np.testing.assert_allclose(split, whole, rtol=1e-5)
  # Against the largest of all: those of biases of keys are 0.
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  assert tiny.largest_difference(grads, expected) < parity.MODEL * largest


def test_towers_learn_and_the_scale_of_cosines_has_a_limit(data, ours):
  limit = 14.3
  made = config(
    data,
    train__steps=60,
    train__lr=3e-3,
    contrastive__largest_scale=limit,
  )
  found = task.make(made)
  init, update = step.make(made, found)
  state, run = jax.jit(init)(jax.random.key(1)), jax.jit(update)
  for _ in range(60):
    state, metrics = run(state, found.loss, ours[0])
    assert metrics["scale"] <= limit * 1.0001
  assert np.exp(state.params["clip"]["logit_scale"]) == pytest.approx(limit)
  # Half the captions are "red": the best of 8 is log 4.
  assert metrics["loss"] == pytest.approx(np.log(4), abs=0.05)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"contrastive__largest_scale": 0.0}, "largest_scale=0.0"),
    ({"encode__tokens": 9}, "tokens=9 is too long.* 8 positions"),
    ({"model__clip": "VIT_X"}, "no clip 'VIT_X'"),
    ({"model__clip": {"text": {"widht": 3}}}, "did you mean 'width'"),
  ],
)
def test_what_cannot_be_is_refused(data, fields, words):
  with pytest.raises(ValueError, match=words):
    task.make(config(data, **fields))


def test_the_vocabulary_is_the_tokenizer_s(made):
  found, _ = made
  _, clip = found.parts["clip"]
  assert clip.text.vocabulary == 514
  assert (clip.text.bos, clip.text.eos) == (512, 513)
  assert kinds.structure("clip", clip)
