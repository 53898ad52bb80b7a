# SPDX-License-Identifier: Apache-2.0
"""Prompts to images, with a tiny model of random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toys

from cc_jax.core import sharding, tree
from cc_jax.diffusion import samplers
from cc_jax.pipelines import text_to_image

PROMPTS = ("a red hat", "green", "", "a photo of red")
# The sum of a matrix product depends on how many rows it has.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  data, workdir = toys.shared(tmp_path_factory)
  return text_to_image.make(tiny.config(data, workdir))


@pytest.fixture(scope="module")
def generate(model):
  return functools.partial(
    text_to_image.generate, model, size=tiny.SIZE, steps=3, batch_size=2
  )


@pytest.fixture(scope="module")
def reference(generate):
  return generate(PROMPTS)


def distance(a, b):
  return np.abs(a - b).max()


def test_images_are_in_range_and_all_different(reference):
  assert reference.shape == (4, tiny.SIZE, tiny.SIZE, 3)
  assert reference.min() >= 0
  assert reference.max() <= 1
  assert reference.std() > 0.05
  for i in range(4):
    for j in range(i):
      assert distance(reference[i], reference[j]) > 0.05


def test_an_image_does_not_depend_on_the_batch_it_is_in(generate, reference):
  # Three: the last batch is filled up.
  assert distance(generate(PROMPTS, batch_size=3), reference) < TOLERANCE


def test_an_image_does_not_depend_on_its_neighbours(generate, reference):
  others = generate(("x", PROMPTS[1], "y z", PROMPTS[3]))
  assert distance(others[[1, 3]], reference[[1, 3]]) < TOLERANCE
  assert distance(others[[0, 2]], reference[[0, 2]]) > 0.01


def test_the_same_seed_gives_the_same_images(generate, reference):
  np.testing.assert_array_equal(generate(PROMPTS), reference)
  assert distance(generate(PROMPTS, seed=1), reference) > 0.05


def test_noise_may_be_given(model, generate, reference):
  xt = text_to_image.noise(jax.random.key(0), np.arange(4), (8, 8, 4))
  np.testing.assert_array_equal(generate(PROMPTS, xt=xt), reference)
  one = generate(PROMPTS, xt=np.repeat(xt[:1], 4, axis=0))
  # What is left is what the prompts do.
  assert distance(one[0], reference[0]) < TOLERANCE
  assert distance(one[0], one[1]) > 0.01


def test_guidance_one_is_no_guidance(model, generate):
  pair = generate(PROMPTS[:2], guidance=1.0)
  assert distance(pair, generate(PROMPTS[:2], guidance=4.0)) > 0.01
  # The sampler on the conditional prediction alone.
  captions = text_to_image.encode(model, PROMPTS[:2])
  networks = {
    name: tree.merge(structure, model.params[name])
    for name, structure in model.design.networks
  }
  unet, vae = networks["unet"], networks["vae"]
  states = networks["text"](jnp.asarray(captions[0].tokens)).hidden
  xt = text_to_image.noise(jax.random.key(0), np.arange(2), (8, 8, 4))
  z = samplers.dpm_solver_pp(
    lambda xt, t: unet(xt, t, states), xt, model.design.schedule, steps=3
  )
  x = vae.decode(z / model.design.scaling_factor)
  assert distance(pair, np.clip(x / 2 + 0.5, 0, 1)) < 10 * TOLERANCE
  # The empty prompt is its own unconditional side: guidance does nothing.
  empty = [generate(("", ""), guidance=g) for g in (1.0, 4.0)]
  assert distance(*empty) < TOLERANCE


def test_eight_devices_give_what_one_gives(generate):
  prompts = [*PROMPTS, *PROMPTS]
  alone = generate(prompts, batch_size=8)
  with sharding.use_all_devices(8):
    spread = generate(prompts, batch_size=8)
  assert distance(alone, spread) < TOLERANCE


def test_progress_is_told_what_is_done(generate):
  counts = []
  generate(PROMPTS[:3], progress=counts.append)
  assert counts == [2, 1]


def test_what_cannot_be_made_is_refused(generate):
  for words, options in (
    ("no prompts", {"prompts": ()}),
    ("size=15 does not divide by 2", {"size": 15}),
    ("unknown sampler 'plms'", {"sampler": "plms"}),
    ("1001", {"steps": 1001}),
  ):
    with pytest.raises(ValueError, match=words):
      generate(**({"prompts": PROMPTS} | options))


def test_a_text_tower_without_weights_is_refused(tmp_path_factory):
  data, workdir = toys.shared(tmp_path_factory)
  made = tiny.config(data, workdir, latent_diffusion__train_text=False)
  with pytest.raises(ValueError, match="has no weights"):
    text_to_image.make(made)
