# SPDX-License-Identifier: Apache-2.0
"""Models of PixArt-alpha's stages: classes, a learned variance, null captions.

tests/pipelines/test_folders.py compares PixArt's images with diffusers'.
"""

import functools

from diffusers.pipelines.dit import pipeline_dit
import jax
import numpy as np
import pytest
import theirs
import tiny
import torch
import toys

from cc_jax.core import files
from cc_jax.pipelines import folders, text_to_image
from cc_jax.stages import export, sample

SHAPE = dict(sample_size=8, heads=2, head_width=12, depth=2, out_channels=8)
PROMPTS = ("a photo of red", "green")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


def model_of(data, folder, **fields):
  made = toys.pixart(data, folder, **fields)
  toys.write_checkpoint(made)
  return text_to_image.make(made), made


@pytest.fixture(scope="module")
def pixart(data, tmp_path_factory):
  return model_of(data, tmp_path_factory.mktemp("pixart"))[0]


@pytest.fixture(scope="module")
def dit(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("dit")
  names = [f"number {n}" for n in range(1000)]
  (folder / "classes.txt").write_text("\n".join(names))
  fields = dict(model__text="", model__tokenizer="", model__transformer=SHAPE)
  return model_of(data, folder, **fields)


def generate(model, prompts=PROMPTS, **options):
  fields = dict(size=tiny.SIZE, steps=4, batch_size=len(prompts))
  return text_to_image.generate(model, prompts, **{**fields, **options})


def test_diffusers_makes_our_images_of_classes(dit, tmp_path, monkeypatch):
  """Its pipeline takes the thousandth class for none, as ours has."""
  model, _ = dit
  folder = f"{tmp_path}/dit"
  folders.write(
    folder,
    model,
    sampler="ddim",
    size=tiny.SIZE,
    dtype="float32",
    readme="# A model\n",
  )
  index = files.read_json(f"{folder}/model_index.json")
  assert index["id2label"]["7"] == "number 7"
  assert "tokenizer" not in index
  shape = text_to_image.latent_shape(model, (tiny.SIZE, tiny.SIZE))
  xt = text_to_image.noise(jax.random.key(5), np.arange(2), shape)
  chosen = ("number 7", "number 123")
  ours = generate(model, chosen, xt=xt, sampler="ddim", steps=10, guidance=3.0)
  noise = torch.tensor(np.asarray(xt)).permute(0, 3, 1, 2)
  monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: noise)
  other = theirs.opened(folder)(
    [7, 123], guidance_scale=3.0, num_inference_steps=10, output_type="np"
  ).images
  assert np.abs(ours - other).max() < theirs.TOLERANCE
  assert np.abs(ours[0] - ours[1]).max() > 0.02
  opened = folders.open(folder)
  options = dict(xt=xt, sampler="ddim", steps=10, guidance=3.0)
  np.testing.assert_array_equal(generate(opened, chosen, **options), ours)


def test_prompts_of_a_model_of_classes_are_their_names(dit):
  model, _ = dit
  one, two = generate(model, ("number 1", "number 2"))
  assert np.abs(one - two).max() > 0.02
  with pytest.raises(ValueError, match="unknown class 'number one'"):
    generate(model, ("number one",))


def test_a_model_of_classes_is_exported_and_not_checked(dit):
  _, made = dit
  with pytest.raises(ValueError, match=r"with diffusers.DiTPipeline"):
    export.check_possible(made)


def test_a_learned_variance_is_sampled(pixart):
  draw = functools.partial(generate, pixart, sampler="iddpm", steps=6)
  images = draw()
  assert np.isfinite(images).all()
  np.testing.assert_array_equal(images, draw())
  # Another noise on the way and at the start.
  assert np.abs(images - draw(seed=1)).max() > 0.05
  # ddpm has the same means, and variances that were not learned.
  other = generate(pixart, sampler="ddpm", steps=6)
  assert np.abs(images - other).max() > 0.01


def test_some_channels_are_guided(pixart):
  """All are unless said; a first channel alone moves the image less."""
  plain = generate(pixart, guidance=1.0)
  whole = generate(pixart, guidance=6.0)
  four = generate(pixart, guidance=6.0, channels=4)
  np.testing.assert_array_equal(whole, four)
  three = generate(pixart, guidance=6.0, channels=3)
  assert np.abs(three - whole).max() > 1e-3
  assert np.abs(three - plain).max() > 1e-3


def test_a_variance_that_is_not_learned_is_not_sampled(data):
  made = tiny.config(data, data, sample__sampler="iddpm")
  with pytest.raises(ValueError, match=r"needs a learned variance: a model.un"):
    text_to_image.check(made)


def test_a_null_caption_of_its_own_is_what_guidance_leads_away_from(
  data, tmp_path
):
  network = {**SHAPE, "caption_width": 16, "null_tokens": 8}
  fields = dict(model__transformer=network, model__null_caption="buffer")
  model, made = model_of(data, tmp_path, **fields)
  found = generate(model, guidance=4.0)
  empty = model._replace(design=model.design._replace(null_caption="empty"))
  other = generate(empty, guidance=4.0)
  assert np.abs(found - other).max() > 1e-3
  np.testing.assert_allclose(
    generate(model, guidance=1.0), generate(empty, guidance=1.0), atol=1e-5
  )
  with pytest.raises(ValueError, match=r"set model.null_caption='empty'"):
    export.check_possible(made)


def test_prompts_are_cleaned_where_captions_were(pixart):
  dirty = ("<b>A Photo</b> of red https://a.com/b", "green")
  clean = pixart._replace(clean=True)
  np.testing.assert_array_equal(generate(clean, dirty), generate(pixart))
  assert np.abs(generate(pixart, dirty) - generate(pixart)).max() > 1e-3


@pytest.mark.parametrize(
  ("flags", "shape"),
  [
    ({"aspect": "2:1"}, (12, 20)),
    ({"height": 20, "width": 44}, (20, 44)),
    ({"height": 8, "width": 24, "binning": False}, (8, 24)),
  ],
)
def test_sizes_are_flags(flags, shape, data, tmp_path):
  fields = {f"sample__{name}": value for name, value in flags.items()}
  fields |= {"sample__steps": 2, "sample__each": 1}
  _, made = model_of(data, tmp_path, **fields)
  found = sample.main(made, str(tmp_path))
  assert found.shape == (2, *shape, 3)
