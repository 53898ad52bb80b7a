# SPDX-License-Identifier: Apache-2.0
"""Captions as tokens, as stored states and as classes, and none of them."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny
import toys

from cc_jax.data import aligned, classes, shards
from cc_jax.models import hub, kinds
from cc_jax.stages import encode
from cc_jax.tasks import conditioning
from cc_jax.tasks import task as tasks

T = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
  """A work folder with a T5, and latents, states and labels made with it."""
  folder = tmp_path_factory.mktemp("states")
  made = toys.pixart(data, folder)
  config = hub.config(made.model.text, "t5")
  ids = dict(vocabulary=60)
  config = hub.config({**made.model.text, **ids}, "t5")
  params = parity.scramble(kinds.structure("t5", config)[1], 3)
  hub.save(f"{folder}/t5", "t5", config, params)
  fields = dict(
    model__text=f"{folder}/t5",
    encode__text_states=True,
    encode__label="title",
    encode__folder=f"{folder}/latents",
    model__clean=True,
    latent_diffusion__train_text=False,
    train__folders=(f"{folder}/latents",),
  )
  encode.main(toys.pixart(data, folder, **fields), str(folder))
  return folder, fields


def weights(task, seed=2):
  return parity.scramble(jax.eval_shape(task.init, jax.random.key(0)), seed)


def batch_of(task, folder, rows=4):
  source = tasks.source(task, [f"{folder}/latents"], "train")
  read = [source[row] for row in range(rows)]
  if task.transform:
    read = [task.transform(record) for record in read]
  return {name: jnp.stack([r[name] for r in read]) for name in read[0]}


def losses(data, stored, **fields):
  folder, made = stored
  task = tasks.make(toys.pixart(data, folder, **{**made, **fields}))
  rows = batch_of(task, folder)
  at = jax.jit(task.loss)
  return float(at(weights(task), rows, jax.random.key(4))[0]), rows, task


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_stored_states_are_as_good_as_the_encoder(share, data, stored):
  """With every caption, with none, and with some that are dropped."""
  drop = {"latent_diffusion__drop_caption": share}
  found, rows, _ = losses(data, stored, **drop)
  assert rows["text_states"].dtype == jnp.bfloat16
  assert rows["text_mask"].shape == (4, T)
  assert 1 < int(rows["text_mask"].sum(axis=1).max()) <= T
  expected, _, _ = losses(data, stored, **drop, encode__text_states=False)
  # bfloat16 has three digits.
  assert found == pytest.approx(expected, rel=2e-3)


def test_a_null_caption_of_its_own_replaces_states_and_not_masks(data, stored):
  network = dict(
    sample_size=8, heads=2, head_width=12, depth=2, caption_width=16
  )
  fields = dict(
    model__null_caption="buffer",
    model__transformer={**network, "null_tokens": T},
    latent_diffusion__drop_caption=1.0,
  )
  loss, rows, task = losses(data, stored, **fields)
  params, key = weights(task), jax.random.key(4)
  at = jax.jit(task.loss)
  other = {**rows, "text_states": rows["text_states"] + 1}
  assert float(at(params, other, key)[0]) == loss
  shorter = {**rows, "text_mask": jnp.arange(T) < jnp.ones((4, 1))}
  assert float(at(params, shorter, key)[0]) != loss
  # It is never trained.
  grads = jax.grad(lambda p: task.loss(p, rows, key)[0])(params)
  assert not np.any(grads["transformer"]["null_caption"])
  assert np.any(grads["transformer"]["caption"]["up"]["kernel"])


def test_classes_are_learned_and_dropped(data, stored):
  folder, _ = stored
  fields = dict(
    model__text="",
    model__tokenizer="",
    model__transformer=dict(sample_size=8, heads=2, head_width=12, depth=2),
    train__folders=(f"{folder}/latents",),
  )
  found = {}
  for share in (0.0, 1.0):
    made = toys.pixart(
      data, folder, latent_diffusion__drop_caption=share, **fields
    )
    task = tasks.make(made)
    assert task.parts["transformer"][1].classes == 2
    rows = batch_of(task, folder)
    assert set(np.asarray(rows["label"]).tolist()) == {0, 1}
    params, key = weights(task), jax.random.key(4)
    at = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (loss, _), grads = at(params, rows, key)
    swapped = {**rows, "label": 1 - rows["label"]}
    found[share] = (float(loss), float(at(params, swapped, key)[0][0]))
    used = np.any(grads["transformer"]["label"]["embedding"], axis=1)
    assert used.tolist() == [not share, not share, bool(share)]
  assert found[0.0][0] != found[0.0][1]
  assert found[1.0][0] == found[1.0][1]


def test_labels_are_those_of_the_titles(data, stored):
  folder, _ = stored
  names = classes.load(f"{folder}/classes.txt")
  assert names.names == ("green", "red")
  both = [shards.open(f"{data}/catalogue"), shards.open(f"{folder}/latents")]
  source = aligned.source(both, "train", ("title", "label"))
  for row in range(4):
    record = source[row]
    assert names.names[int(record["label"])] == record["title"]


def test_other_classes_than_encoded_are_refused(data, stored, tmp_path):
  folder, _ = stored
  (tmp_path / "classes.txt").write_text("red\ngreen\n")
  made = toys.pixart(
    data,
    folder,
    model__text="",
    model__tokenizer="",
    model__transformer=dict(sample_size=8, heads=2, head_width=12, depth=2),
    model__classes=f"{tmp_path}/classes.txt",
  )
  task = tasks.make(made)
  with pytest.raises(ValueError, match="feature 'label' of"):
    tasks.source(task, [f"{folder}/latents"], "train")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"model__null_caption": "zero"}, "expected empty, buffer"),
    ({"latent_diffusion__train_text": True}, "encode.text_states is for"),
  ],
)
def test_what_does_not_go_together_is_said(fields, words, data, stored):
  with pytest.raises(ValueError, match=words):
    losses(data, stored, **fields)


def test_a_null_caption_of_its_own_is_pixarts(data, tmp_path):
  made = tiny.config(data, tmp_path, model__null_caption="buffer")
  with pytest.raises(ValueError, match="'buffer' is for pixart"):
    conditioning.make(made, "stable_diffusion")
