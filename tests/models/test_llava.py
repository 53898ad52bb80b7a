# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors
import tiny_captioners
import torch
import transformers

from cc_jax.core import config_json, convert, tree
from cc_jax.models import (
  clip_vision,
  layers,
  llama,
  llava,
  placeholders,
)

TINY = llava.Config(
  vision=clip_vision.VisionConfig(
    width=24, mlp=40, depth=3, heads=4, image_size=12, patch=4
  ),
  text=llama.Config(
    vocabulary=99, width=32, mlp=48, depth=2, heads=4, eps=1e-5
  ),
  image_token=97,
)
# A rest of the image that no patch sees.
ODD = dataclasses.replace(
  TINY,
  vision=dataclasses.replace(TINY.vision, heads=3, image_size=11, act="gelu"),
  text=dataclasses.replace(TINY.text, heads=8, rope=500.0),
)
THEIRS = transformers.LlavaForConditionalGeneration


def make(config):
  return llava.LLaVA(config, dtype=jnp.float32, rngs=layers.keys(0))


def random(config, dtype=jnp.float32):
  return parity.random(
    lambda: llava.LLaVA(config, dtype=dtype, rngs=layers.keys(0))
  )


def inputs(config):
  """Three images, and prompts of several lengths with a place for each.

  The places are at the end of the padding, amid the prompt and at its end.
  """
  rng = np.random.default_rng(1)
  size = config.vision.image_size
  images = rng.standard_normal((3, size, size, 3), np.float32)
  tokens = rng.integers(3, 90, (3, 7), dtype=np.int32)
  mask = np.arange(7) >= np.array([[0], [2], [4]])
  tokens = np.where(mask, tokens, 0)
  tokens[np.arange(3), [3, 2, 6]] = config.image_token
  tokens, mask = placeholders.expand(
    tokens, mask, config.image_token, config.places
  )
  return images, tokens, mask


def as_theirs(images, tokens, mask):
  return dict(
    pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2),
    input_ids=torch.from_numpy(tokens).long(),
    attention_mask=torch.from_numpy(mask).long(),
  )


@jax.jit
def run(model, images, tokens, mask):
  return model.image_tokens(images), model(images, tokens, mask)


def compare(model, reference, config):
  batch = inputs(config)
  image, logits = run(model, *batch)
  with torch.no_grad():
    theirs = reference(**as_theirs(*batch))
  states = theirs.image_hidden_states.reshape(image.shape)
  parity.check(image, states, parity.MODEL)
  # What padding says is of no use, and differs.
  there = batch[2]
  parity.check(logits[there], theirs.logits.numpy()[there], parity.MODEL)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """A tiny network, and transformers' from its files."""
  folder = tmp_path_factory.mktemp("llava")
  model, params = random(TINY)
  parity.save(folder, params, TINY, llava.NAMES, llava.CONFIG, stem="model")
  reference, report = THEIRS.from_pretrained(folder, output_loading_info=True)
  assert not any(report.values()), report
  return model, reference.eval()


def test_our_files_open_in_transformers_and_give_the_same_output(pair):
  compare(*pair, TINY)


def test_another_shape_gives_the_same_output(tmp_path):
  model, params = random(ODD)
  parity.save(tmp_path, params, ODD, llava.NAMES, llava.CONFIG, stem="model")
  compare(model, THEIRS.from_pretrained(tmp_path).eval(), ODD)


def test_greedy_answers_are_those_of_transformers(pair):
  model, reference = pair
  batch = inputs(TINY)
  theirs = reference.generate(
    **as_theirs(*batch),
    max_new_tokens=6,
    do_sample=False,
    eos_token_id=-1,
    pad_token_id=0,
  )
  ours = np.asarray(tiny_captioners.greedy(model, TINY.text, *batch))
  np.testing.assert_array_equal(ours, theirs[:, -6:])
  assert len(np.unique(ours)) > 5


def test_files_of_transformers_open_here_and_give_the_same_output(tmp_path):
  torch.manual_seed(0)
  settings = config_json.export_config(TINY, llava.CONFIG)
  reference = THEIRS(transformers.LlavaConfig(**settings)).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.2)
  reference.save_pretrained(tmp_path)
  with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
    # Their version 5 leaves "vision_model." out, which 4 does not.
    assert "vision_tower.pre_layrnorm.weight" in file.keys()
  found, model = parity.load(
    tmp_path, make, llava.Config, llava.NAMES, llava.CONFIG
  )
  assert found == TINY
  compare(model, reference, TINY)


# config.json of llava-hf/llava-1.5-7b-hf.
PUBLISHED = """{
  "architectures": ["LlavaForConditionalGeneration"],
  "ignore_index": -100,
  "image_token_index": 32000,
  "model_type": "llava",
  "pad_token_id": 32001,
  "projector_hidden_act": "gelu",
  "text_config": {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064
  },
  "tie_word_embeddings": false,
  "torch_dtype": "float16",
  "transformers_version": "4.36.0.dev0",
  "vision_config": {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000
  },
  "vision_feature_layer": -2,
  "vision_feature_select_strategy": "default",
  "vocab_size": 32064
}"""


def read(settings):
  return config_json.import_config(settings, llava.Config, llava.CONFIG)


def test_the_published_config_is_that_of_the_preset():
  settings = json.loads(PUBLISHED)
  assert read(settings) == llava.LLAVA_1_5_7B
  assert read({**settings, "image_seq_length": 576}) == llava.LLAVA_1_5_7B
  assert llava.LLAVA_1_5_7B.places == 576
  written = config_json.export_config(llava.LLAVA_1_5_7B, llava.CONFIG)
  assert read(json.loads(json.dumps(written))) == llava.LLAVA_1_5_7B


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("vision_feature_layer", -1),
    ("vision_feature_layer", [-2, -5]),
    ("vision_feature_select_strategy", "full"),
    ("projector_hidden_act", "relu"),
    ("text_config", {"num_key_value_heads": 8}),
    ("vision_config", {"model_type": "siglip_vision_model"}),
  ],
)
def test_another_kind_of_llava_is_refused(key, value):
  with pytest.raises(ValueError, match=key):
    read({**json.loads(PUBLISHED), key: value})


def test_the_preset_is_the_network_of_transformers_by_name_and_shape():
  settings = json.loads(PUBLISHED)
  theirs = {
    f"vision_tower.vision_model.{name.removeprefix('model.vision_tower.')}"
    if name.startswith("model.vision_tower.")
    else name.replace("model.language_model", "language_model.model")
    .replace("model.multi_modal_projector", "multi_modal_projector")
    .replace("lm_head", "language_model.lm_head"): shape
    for name, shape in parity.meta_shapes(
      lambda: THEIRS(transformers.LlavaConfig(**settings))
    ).items()
  }
  _, shapes = parity.abstract(lambda: make(llava.LLAVA_1_5_7B))
  assert convert.export_shapes(shapes, llava.NAMES) == theirs
  assert tree.count(shapes) == 7_063_427_072
  logits = jax.eval_shape(
    lambda images, tokens: make(llava.LLAVA_1_5_7B)(images, tokens),
    jax.ShapeDtypeStruct((2, 336, 336, 3), jnp.float32),
    jax.ShapeDtypeStruct((2, 600), jnp.int32),
  )
  assert logits.shape == (2, 600, 32064)


def test_the_computation_is_in_the_type_asked_for():
  image, logits = run(random(TINY, jnp.bfloat16)[0], *inputs(TINY))
  assert image.dtype == logits.dtype == jnp.bfloat16


def test_a_prompt_without_a_mask_has_no_padding():
  model, _ = random(TINY)
  images, tokens, mask = inputs(TINY)
  plain = run(model, images, tokens, None)[1]
  whole = run(model, images, tokens, np.ones_like(mask))[1]
  np.testing.assert_array_equal(plain, whole)


def test_a_placeholder_that_is_no_token_is_refused():
  with pytest.raises(ValueError, match="image_token=99 is none of 99 token id"):
    dataclasses.replace(TINY, image_token=99)
