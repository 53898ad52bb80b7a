# SPDX-License-Identifier: Apache-2.0
"""Prompts to images by a small CLIP-GEN of random weights."""

import json
import pathlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_clip_gen
import transformers

from cc_jax.core import sharding, tree
from cc_jax.data import images as pictures
from cc_jax.models import decoding, hub, kinds
from cc_jax.models import prior as priors
from cc_jax.pipelines import (
  clip_gap,
  clip_gen,
  clip_to_image,
  embeddings,
  preview,
)
from cc_jax.stages import evaluate, export, sample
from cc_jax.tasks import task

PROMPTS = ["red", "green", "a photo", "red"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  data, networks = tiny_clip_gen.shared(tmp_path_factory)
  workdir = str(tmp_path_factory.mktemp("clip_to_image"))
  with tiny.compiled_once(data):
    yield data, networks, workdir


def config(folders, **fields):
  return tiny_clip_gen.config(*folders, **fields)


@pytest.fixture(scope="module")
def params(folders):
  return tiny_clip_gen.write_checkpoint(config(folders))


@pytest.fixture(scope="module")
def greedy(folders, params):
  return clip_to_image.make(config(folders, sample__top_k=1))


def test_images_are_the_decoded_codes_of_the_prompts_embedding(greedy, params):
  """Code by code with the whole prefix, then the VQGAN, in plain steps."""
  found = clip_to_image.generate(greedy, PROMPTS, batch_size=4)
  condition = jnp.asarray(embeddings.texts(greedy.embedder, PROMPTS))
  np.testing.assert_allclose(np.linalg.norm(condition, axis=1), 1, rtol=1e-5)
  prior = tree.merge(greedy.design.prior, params["prior"])
  codes = jnp.zeros((4, 0), jnp.int32)
  run = jax.jit(lambda codes: prior(condition, codes)[:, -1])
  for _ in range(16):
    codes = jnp.concatenate([codes, run(codes).argmax(1)[:, None]], axis=1)
  vqgan = tree.merge(greedy.design.vqgan, greedy.params["vqgan"])
  x = vqgan.decode_codes(codes.reshape(4, 4, 4))
  np.testing.assert_allclose(found, np.clip(x / 2 + 0.5, 0, 1), atol=1e-5)
  assert found.shape == (4, 16, 16, 3)
  # One prompt twice; rows of a batch may be summed in another order.
  np.testing.assert_allclose(found[0], found[3], atol=1e-5)
  assert np.abs(found[0] - found[1]).max() > 0.01


def test_the_same_seed_draws_the_same_images_and_another_others(
  folders, params
):
  del params
  model = clip_to_image.make(config(folders))
  one, again, other = (
    clip_to_image.generate(model, PROMPTS, seed=seed, batch_size=8)
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 0.01
  assert np.abs(one[0] - one[3]).max() > 0.01


def test_batches_are_split_over_devices(greedy):
  alone = clip_to_image.generate(greedy, PROMPTS, batch_size=8)
  with jax.set_mesh(sharding.make_mesh()):
    split = clip_to_image.generate(greedy, PROMPTS, batch_size=8)
  np.testing.assert_allclose(alone, split, atol=1e-4)


def test_guidance_is_of_the_logits(folders, params):
  """none + g (given - none), of the first code."""
  del params
  model = clip_to_image.make(config(folders, sample__top_k=1))
  prior = tree.merge(model.design.prior, model.params["prior"])
  condition = jnp.asarray(embeddings.texts(model.embedder, PROMPTS[:2]))
  first = lambda c: prior(c, jnp.zeros((2, 0), jnp.int32))[:, 0]
  given, none = first(condition), first(0 * condition)
  codes = priors.sample(prior, condition, decoding.greedy, guidance=4.0)
  expected = (none + 4 * (given - none)).argmax(1)
  np.testing.assert_array_equal(codes[:, 0], expected)


def test_the_candidate_nearest_to_the_prompt_is_taken(folders, params):
  del params
  seen = []
  model = clip_to_image.make(config(folders, sample__candidates=3))
  best = clip_to_image.generate(
    model, PROMPTS, batch_size=4, progress=seen.append
  )
  assert sum(seen) == len(PROMPTS)
  captions = embeddings.texts(model.embedder, PROMPTS)
  every = clip_to_image.from_embeddings(
    model, np.repeat(captions, 3, axis=0), seed=0, batch_size=4
  )
  vectors = embeddings.images(model.embedder, preview.to_bytes(every))
  for row, caption in enumerate(captions):
    own = slice(3 * row, 3 * row + 3)
    chosen = every[own][np.argmax(vectors[own] @ caption)]
    np.testing.assert_array_equal(best[row], chosen)


def test_embeddings_are_those_that_encode_stored(folders, greedy):
  """Of the same images, by CLIP's own resizing and mean."""
  data, networks, _ = folders
  made = config(folders)
  stored = clip_gap.training_images(made)
  real, _ = evaluate.real_images(made, "train")
  found = embeddings.images(greedy.embedder, preview.to_bytes(real))
  assert (found * stored).sum(1).min() > 0.999
  assert data != networks


def test_the_gap_is_closed_as_was_asked(folders, greedy):
  rng = np.random.default_rng(0)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  captions = unit(rng.standard_normal((3, 10)))
  images = unit(rng.standard_normal((20, 10)) + 1)
  close = clip_gap.close
  assert close(clip_gap.Gap("none"), captions) is captions
  shift = images.mean(0) - captions.mean(0)
  found = close(clip_gap.Gap("shift", shift=shift), captions)
  np.testing.assert_allclose(found, unit(captions + shift), rtol=1e-5)
  found = close(clip_gap.Gap("nearest", images=images, nearest=2), captions)
  for row, caption in zip(found, captions, strict=True):
    near = np.argsort(-(images @ caption))[:2]
    expected = unit(images[near].mean(0, keepdims=True))[0]
    np.testing.assert_allclose(row, expected, rtol=1e-5)
  # As measured on the data: the mean of captions is moved to that of images.
  made = clip_gap.make(config(folders, sample__gap="shift"), greedy.embedder)
  texts = embeddings.texts(
    greedy.embedder, clip_gap.training_captions(config(folders))
  )
  np.testing.assert_allclose(
    texts.mean(0) + made.shift,
    clip_gap.training_images(config(folders)).mean(0),
    atol=1e-5,
  )


def test_stages_sample_evaluate_and_export(folders, params):
  workdir = pathlib.Path(folders[2])
  recognise = {"each": 2, "templates": ("{title}",), "side": 4}
  fields = {f"evaluate__recognise__{k}": v for k, v in recognise.items()}
  made = config(
    folders,
    evaluate__recognise__also=("gap=nearest,candidates=2",),
    sample__each=2,
    **fields,
  )
  found = sample.main(made, str(workdir))
  assert found.shape == (4, 16, 16, 3)
  assert pictures.decode((workdir / "samples.png").read_bytes()).shape > (32,)
  numbers = evaluate.main(made, str(workdir))
  assert 0 < numbers["modality_gap"] <= 2
  assert 0 <= numbers["recognised"] <= 1
  assert "recognised[gap=nearest,candidates=2]" in numbers
  assert numbers["validation_loss"] > 0
  assert json.loads((workdir / "metrics.json").read_text()) == numbers
  export.main(made, str(workdir))
  folder = workdir / "export"
  loaded = hub.load(f"{folder}/prior", "prior")
  assert tiny.largest_difference(loaded.params, params["prior"]) == 0
  diffusers.VQModel.from_pretrained(folder / "vqgan")
  transformers.CLIPModel.from_pretrained(folder / "clip")
  assert "CLIP-GEN" in (folder / "README.md").read_text()
  # What was exported is sampled where nothing was trained.
  other = config(
    (*folders[:2], f"{workdir}/other"),
    model__prior=f"{folder}/prior",
    model__clip=f"{folder}/clip",
    model__vqgan=f"{folder}/vqgan",
    model__tokenizer=f"{folder}/clip",
    sample__each=2,
  )
  again = sample.main(other, f"{workdir}/other")
  np.testing.assert_array_equal(found, again)


def test_numbers_of_a_codebook_are_those_of_all_images():
  """In NumPy, of a VQGAN of random weights."""
  made = tiny_clip_gen.VQGAN
  structure, shapes = kinds.structure("vqgan", made)
  weights = jax.tree.map(
    lambda x: jnp.asarray(
      np.random.default_rng(x.size).normal(size=x.shape), jnp.float32
    ),
    shapes,
  )
  rng = np.random.default_rng(1)
  x = rng.uniform(size=(6, 16, 16, 3)).astype(np.float32)
  found = clip_gen.codebook(made, weights, x, 4, "float32")
  vqgan = tree.merge(structure, weights)
  zq, codes = jax.jit(lambda x: vqgan.quantise(vqgan.encode(x * 2 - 1)))(x)
  p = np.bincount(np.asarray(codes).reshape(-1), minlength=12) / codes.size
  assert found["used"] == pytest.approx((p > 0).mean())
  p = p[p > 0]
  assert found["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
  decoded = np.clip(np.asarray(jax.jit(vqgan.decode)(zq)) / 2 + 0.5, 0, 1)
  error = np.mean((decoded - x) ** 2)
  assert found["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-2)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"sample__gap": "bridge"}, "gap='bridge'; expected none, shift, nearest"),
    ({"sample__candidates": 0}, "candidates=0; expected 1 or more"),
    ({"sample__prompts": ()}, "prompts is empty"),
    ({"sample__top_p": 0.0}, "top_p=0.0"),
    ({"sample__gap": "shift", "sample__gap_captions": ""}, "gap_captions to"),
    ({"model__clip": "VIT_B32"}, "'VIT_B32' has no weights"),
  ],
)
def test_what_cannot_be_sampled_is_refused(folders, params, fields, words):
  del params
  with pytest.raises(ValueError, match=words):
    clip_to_image.make(config(folders, **fields))


def test_previews_are_of_prompts(folders, params):
  made = config(folders, sample__each=2)
  picture = preview.make(made)(params, {})
  assert picture.shape[0] > 32
  assert task.make(made).features == ("codes", "clip_image")
  with pytest.raises(ValueError, match="preview_every=0"):
    preview.make(config(folders, train__task="contrastive"))
