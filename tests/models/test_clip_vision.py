# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
from PIL import Image
import pytest
import torch
import transformers
from transformers.models.clip import image_processing_pil_clip

from cc_jax.core import config_json, convert
from cc_jax.models import clip_vision, layers

TINY = clip_vision.VisionConfig(
  width=32,
  mlp=48,
  depth=3,
  heads=4,
  image_size=24,
  patch=8,
  projection=20,
)
PROJECTED = dataclasses.replace(TINY, architectures=clip_vision.PROJECTED)
CONFIGS = {
  "plain": TINY,
  "projected": PROJECTED,
  "one_head": dataclasses.replace(TINY, heads=1, depth=1, act="gelu"),
  "narrow_heads": dataclasses.replace(PROJECTED, heads=16, patch=4),
  "patches_that_leave_a_rest": dataclasses.replace(TINY, image_size=29),
}
THEIRS = {
  clip_vision.PLAIN: transformers.CLIPVisionModel,
  clip_vision.PROJECTED: transformers.CLIPVisionModelWithProjection,
}
PRESETS = ("VIT_B32", "VIT_B16", "VIT_L14", "VIT_L14_336", "VIT_H14")


def make(config):
  return clip_vision.Vision(config, dtype=jnp.float32, rngs=layers.keys(0))


def random(config, dtype=jnp.float32):
  """A tower with random weights, and the weights; nothing is compiled."""
  return parity.random(
    lambda: clip_vision.Vision(config, dtype=dtype, rngs=layers.keys(0))
  )


def photographs(config):
  rng = np.random.default_rng(2)
  size = config.image_size
  return rng.standard_normal((2, size, size, 3), dtype=np.float32)


@jax.jit
def run(model, images):
  return model(images)


def compare(model, config, reference):
  images = photographs(config)
  ours = run(model, images)
  with torch.no_grad():
    theirs = reference(
      pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
      output_hidden_states=True,
    )
  pooled = theirs.image_embeds if config.projected else theirs.pooler_output
  assert ours.hidden.shape[1] == config.tokens
  parity.check(ours.hidden, theirs.last_hidden_state, parity.MODEL)
  parity.check(ours.penultimate, theirs.hidden_states[-2], parity.MODEL)
  parity.check(ours.pooled, pooled, parity.MODEL)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_our_files_open_in_transformers_and_give_the_same_output(
  config, tmp_path
):
  model, params = random(config)
  tables = clip_vision.NAMES, clip_vision.CONFIG
  parity.save(tmp_path, params, config, *tables, stem="model")
  reference, report = THEIRS[config.architectures].from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report.values()), report
  compare(model, config, reference.eval())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_files_of_transformers_open_here_and_give_the_same_output(
  config, tmp_path
):
  torch.manual_seed(0)
  settings = config_json.export_config(config, clip_vision.CONFIG)
  reference = THEIRS[config.architectures](
    transformers.CLIPVisionConfig(**settings)
  ).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.3)
  reference.save_pretrained(tmp_path)
  found, model = parity.load(
    tmp_path,
    make,
    clip_vision.VisionConfig,
    clip_vision.NAMES,
    clip_vision.CONFIG,
  )
  assert found == config
  compare(model, config, reference)


def test_a_file_that_leaves_a_key_out_means_the_default_of_transformers():
  theirs = transformers.CLIPVisionConfig()
  table = clip_vision.CONFIG
  ours = config_json.import_config({}, clip_vision.VisionConfig, table)
  for key, value in config_json.export_config(ours, table).items():
    if key != "architectures":
      assert getattr(theirs, key) == value, key


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architectures", THEIRS, ids=["plain", "projected"])
def test_presets_have_the_tensors_of_the_published_models(
  preset, architectures
):
  config = dataclasses.replace(
    getattr(clip_vision, preset), architectures=architectures
  )
  settings = config_json.export_config(config, clip_vision.CONFIG)
  theirs = parity.meta_shapes(
    lambda: THEIRS[architectures](transformers.CLIPVisionConfig(**settings))
  )
  _, shapes = parity.abstract(lambda: make(config))
  ours = convert.export_shapes(shapes, clip_vision.NAMES)
  if not config.projected:
    # Which transformers 5 leaves out of names.
    ours = {name.removeprefix("vision_model."): ours[name] for name in ours}
  assert ours == theirs


def test_pixels_are_normalised_as_in_transformers():
  rng = np.random.default_rng(3)
  pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
  process = image_processing_pil_clip.CLIPImageProcessorPil(
    size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
  )
  theirs = process(Image.fromarray(pixels), return_tensors="np")
  images = jnp.asarray(pixels, jnp.float32) / 127.5 - 1
  ours = clip_vision.normalise(images[None])
  expected = theirs["pixel_values"].transpose(0, 2, 3, 1)
  parity.check(ours, expected, parity.LAYER)


def test_pixels_are_normalised_in_float32():
  images = jnp.full((1, 2, 2, 3), 0.3, jnp.bfloat16)
  assert clip_vision.normalise(images).dtype == jnp.float32


def test_the_computation_is_in_the_type_asked_for():
  model, _ = random(PROJECTED, jnp.bfloat16)
  encoding = run(model, photographs(PROJECTED))
  assert {x.dtype for x in encoding} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}


def test_initial_states_stay_moderate_in_a_deep_tower():
  deep = dataclasses.replace(PROJECTED, depth=24)
  images = jnp.asarray(photographs(deep))
  spread = jax.jit(lambda: make(deep)(images).penultimate.std())()
  assert 0.1 < spread < 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(heads=5), "width=32 does not divide over 5 heads"),
    (dict(act="tanh"), "unknown act 'tanh'; expected one of .*quick_gelu"),
    (dict(architectures=("CLIPModel",)), "CLIPModel.* is not an image tower"),
    (dict(patch=25), "image_size=24 has no patch of 25 pixels"),
  ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)


def test_images_of_another_size_are_refused():
  with pytest.raises(ValueError, match=r"24 x 32 pixels .* 24 x 24; resize"):
    random(TINY)[0](jnp.ones((1, 24, 32, 3)))


@pytest.mark.parametrize(
  ("key", "value"),
  [("num_channels", 4), ("attention_dropout", 0.1), ("image_size", [24, 32])],
)
def test_a_tower_of_another_kind_is_refused(key, value):
  with pytest.raises(ValueError, match=key):
    config_json.import_config(
      {key: value}, clip_vision.VisionConfig, clip_vision.CONFIG
    )
