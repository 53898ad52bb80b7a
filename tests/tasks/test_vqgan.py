# SPDX-License-Identifier: Apache-2.0
"""The codebook: its averages, its restarts, and that no caption is read."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
import tiny
import toys

from cc_jax.core import tree
from cc_jax.models import kinds
from cc_jax.stages import caption, catalogue
from cc_jax.tasks import step, task, vqgan

VQGAN = ConfigDict(
  dict(
    channels=(4, 8),
    attention=(False, False),
    groups=4,
    latent_channels=4,
    codebook_size=8,
    mid_attention=False,
  )
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


def config(data, **fields):
  fields = {
    "model__vqgan": VQGAN,
    "train__task": "vqgan",
    "train__folders": (f"{data}/catalogue",),
    "train__clip": 0.0,
    **fields,
  }
  return tiny.config(data, data, **fields)


def batch(rows=8):
  rng = np.random.default_rng(0)
  return {"image": rng.integers(0, 256, (rows, 16, 16, 3), np.uint8)}


def encoded(params):
  """Vectors and codes of the batch."""
  structure, _ = kinds.structure("vqgan", kinds.KINDS["vqgan"].config(**VQGAN))

  @jax.jit
  def run(params, x):
    module = tree.merge(structure, params)
    z = module.encode(x.astype(jnp.float32) / 127.5 - 1)
    return z.reshape(-1, z.shape[-1]), module.quantise(z)[1].reshape(-1)

  return map(np.asarray, run(params, batch()["image"]))


def test_entries_are_moving_means_of_what_chose_them(data):
  """arXiv 1711.00937, eq. 6 to 8, in NumPy, over three steps."""
  decay = 0.7
  made = config(data, vqgan__ema_decay=decay)
  found = task.make(made)
  init, update = step.make(made, found)
  state, run = init(jax.random.key(0)), jax.jit(update)
  counts = np.ones(8)
  sums = np.asarray(state.params["vqgan"]["codebook"]["embedding"])
  for _ in range(3):
    z, codes = encoded(state.params["vqgan"])
    one = np.eye(8)[codes]
    counts = decay * counts + (1 - decay) * one.sum(0)
    sums = decay * sums + (1 - decay) * one.T @ z
    state, metrics = run(state, found.loss, batch())
    entries = state.params["vqgan"]["codebook"]["embedding"]
    expected = sums / counts[:, None]
    np.testing.assert_allclose(entries, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.params["kept"]["counts"], counts, 1e-5)
  assert "found" not in metrics


def test_beta_weighs_the_term_that_was_named_and_means_have_but_one(data):
  options = config(data).vqgan
  z, entries = jnp.ones((1, 2, 2, 4)), jnp.zeros((1, 2, 2, 4))
  slopes = jax.grad(vqgan.codebook_loss, argnums=(0, 1))
  by_z, by_entries = slopes(z, entries, options)
  assert by_z.sum() == pytest.approx(2)
  assert by_entries.sum() == pytest.approx(-0.25 * 2)
  paper = config(data, vqgan__beta_on="commitment").vqgan
  by_z, by_entries = slopes(z, entries, paper)
  assert by_z.sum() == pytest.approx(0.25 * 2)
  assert by_entries.sum() == pytest.approx(-2)
  averaged = config(data, vqgan__ema_decay=0.9).vqgan
  by_z, by_entries = slopes(z, entries, averaged)
  assert by_z.sum() == pytest.approx(0.25 * 2)
  assert not np.any(by_entries)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_entries_that_nobody_chooses_begin_anew(data, decay):
  made = config(data, vqgan__ema_decay=decay, vqgan__restart=0.995)
  found = task.make(made)
  init, update = step.make(made, found)
  state = init(jax.random.key(0))
  far = state.params["vqgan"]["codebook"]["embedding"].at[3:].set(1e3)
  state.params["vqgan"]["codebook"]["embedding"] = far
  z, codes = encoded(state.params["vqgan"])
  assert max(codes) < 3
  state, metrics = jax.jit(update)(state, found.loss, batch())
  entries = np.asarray(state.params["vqgan"]["codebook"]["embedding"])
  assert metrics["restarted"] >= 5 / 8
  # Each is a vector of the batch now.
  for entry in entries[3:]:
    assert np.abs(z - entry).max(axis=1).min() < 1e-5
  counts = state.params["kept"]["counts"]
  np.testing.assert_allclose(counts[3:], 0.995)


def test_an_entry_that_is_not_used_stays_and_is_never_not_a_number(data):
  made = config(data, vqgan__ema_decay=0.5)
  found = task.make(made)
  params = jax.eval_shape(found.init, jax.random.key(0))
  entries = jnp.arange(32.0).reshape(8, 4)
  full = lambda name, value: {
    **jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params[name]),
    **value,
  }
  kept = full("kept", {"counts": jnp.zeros(8)})
  book = {"codebook": {"embedding": entries}}
  params = {"vqgan": full("vqgan", book), "kept": kept}
  nothing = {"counts": jnp.zeros(8), "sums": 0 * entries, "drawn": 0 * entries}
  after, metrics = found.after(params, params, {"found": nothing})
  np.testing.assert_array_equal(
    after["vqgan"]["codebook"]["embedding"], entries
  )
  assert not metrics


def test_usage_is_the_share_of_codes_and_the_exponential_of_entropy():
  counts = jnp.array([4.0, 4, 0, 0, 0, 0, 0, 8])
  found = vqgan.usage(counts)
  assert found["used"] == pytest.approx(3 / 8)
  # 1/4, 1/4, 1/2: an entropy of 1.5 log 2.
  assert found["perplexity"] == pytest.approx(2**1.5, rel=1e-6)
  codes = jnp.array([[[0, 0], [7, 1]]])
  np.testing.assert_array_equal(vqgan.uses(codes, 8), [2, 1, 0, 0, 0, 0, 0, 1])


def test_training_uses_most_of_the_codebook(data):
  made = config(data, vqgan__ema_decay=0.9, vqgan__restart=0.5, train__steps=60)
  found = task.make(made)
  init, update = step.make(made, found)
  state, run = jax.jit(init)(jax.random.key(0)), jax.jit(update)
  first = None
  for _ in range(60):
    state, metrics = run(state, found.loss, batch())
    first = first or metrics
  assert metrics["l1"] < 0.9 * first["l1"]
  assert metrics["used"] >= 0.75


def test_no_caption_reaches_the_training(data, tmp_path):
  """The same weights whatever titles and captions say; they are not read."""
  source = tmp_path / "source"
  rows = (pathlib.Path(data) / "source/metadata.jsonl").read_text().splitlines()
  rows = [json.loads(row) for row in rows]
  pictures = {
    row["file_name"]: (
      pathlib.Path(data) / "source" / row["file_name"]
    ).read_bytes()
    for row in rows
  }
  for row in rows:
    row["title"] = "another word " + row["title"][::-1]
  toys.write_source(source, rows, pictures)
  other = str(tmp_path)
  made = tiny.config(other, other)
  catalogue.main(made, other)
  caption.main(made, other)
  states = []
  for folder in (data, other):
    made = config(data, train__folders=(f"{folder}/catalogue",))
    found = task.make(made)
    assert found.features == ("image",)
    records = task.source(found, made.train.folders, "train")
    seen = [records[row] for row in range(8)]
    assert {name for record in seen for name in record} == {"image"}
    images = np.stack([found.transform(one)["image"] for one in seen])
    init, update = step.make(made, found)
    state, run = init(jax.random.key(0)), jax.jit(update)
    for _ in range(2):
      state, _ = run(state, found.loss, {"image": images})
    states.append(state)
  assert tiny.largest_difference(*(s.params for s in states)) == 0


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"vqgan__beta_on": "z"}, "beta_on='z'; expected codebook or commitment"),
    ({"vqgan__ema_decay": 1.0}, "ema_decay=1.0"),
    ({"vqgan__beta": -1.0}, "beta=-1.0; expected 0 or more"),
    ({"vqgan__restart": 1.0, "train__accumulate": 2}, "accumulate=1"),
  ],
)
def test_options_that_mean_nothing_are_refused(data, fields, words):
  with pytest.raises(ValueError, match=words):
    task.make(config(data, **fields))


def test_what_is_kept_is_no_part_of_the_export(data):
  found = task.make(config(data, vqgan__restart=1.0))
  assert set(found.parts) == {"vqgan"}
  shapes = jax.eval_shape(found.init, jax.random.key(0))
  assert set(shapes) == {"vqgan", "kept"}
  assert dataclasses.is_dataclass(found.parts["vqgan"][1])
