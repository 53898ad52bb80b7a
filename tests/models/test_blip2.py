# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny_captioners
import torch
import transformers

from cc_jax.core import config_json, convert, tree
from cc_jax.models import blip2, decoding, layers, lm, opt

TINY = blip2.Config(
  vision=blip2.VisionConfig(
    width=24, mlp=40, depth=2, heads=4, image_size=28, patch=14
  ),
  qformer=blip2.QFormerConfig(
    width=16, mlp=20, depth=3, heads=2, source_width=24
  ),
  text=opt.Config(
    vocabulary=99, width=32, mlp=48, depth=2, heads=4, positions=64, eos=50
  ),
  queries=5,
  image_token=97,
)
ODD = dataclasses.replace(
  TINY,
  vision=dataclasses.replace(TINY.vision, heads=3, image_size=21, patch=7),
  qformer=dataclasses.replace(
    TINY.qformer, depth=4, heads=4, cross_every=3, eps=1e-3
  ),
  queries=1,
)
THEIRS = transformers.Blip2ForConditionalGeneration


def make(config):
  return blip2.BLIP2(config, dtype=jnp.float32, rngs=layers.keys(0))


def random(config, dtype=jnp.float32):
  return parity.random(
    lambda: blip2.BLIP2(config, dtype=dtype, rngs=layers.keys(0))
  )


def inputs(config):
  """Three images, and prompts of several lengths, padded on the left."""
  rng = np.random.default_rng(1)
  size = config.vision.image_size
  images = rng.standard_normal((3, size, size, 3), np.float32)
  tokens = rng.integers(3, 90, (3, 6), dtype=np.int32)
  mask = np.arange(6) >= np.array([[0], [2], [5]])
  return images, np.where(mask, tokens, config.text.pad), mask


def as_theirs(config, images, tokens, mask):
  """The same for transformers, with places for the image."""
  places = np.full((len(tokens), config.queries), config.image_token)
  here = np.ones(places.shape, bool)
  return dict(
    pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2),
    input_ids=torch.from_numpy(np.concatenate([places, tokens], 1)).long(),
    attention_mask=torch.from_numpy(np.concatenate([here, mask], 1)).long(),
  )


@jax.jit
def run(model, images, tokens, mask):
  states = model.vision(images)
  answers = model.qformer(model.queries[...], states)
  return states, answers, model(images, tokens, mask)


def compare(model, reference, config):
  batch = inputs(config)
  states, answers, logits = run(model, *batch)
  with torch.no_grad():
    theirs = reference(**as_theirs(config, *batch))
  parity.check(states, theirs.vision_outputs.last_hidden_state, parity.MODEL)
  parity.check(answers, theirs.qformer_outputs.last_hidden_state, parity.MODEL)
  # What padding says is of no use, and differs.
  there = np.pad(batch[2], ((0, 0), (config.queries, 0)), constant_values=True)
  parity.check(logits[there], theirs.logits.numpy()[there], parity.MODEL)
  return batch


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """A tiny network, and transformers' from its files."""
  folder = tmp_path_factory.mktemp("blip2")
  model, params = random(TINY)
  # Or captions would be one word over and over.
  params["text"]["position"]["embedding"] *= 30
  model = tree.merge(tree.split(model)[0], params)
  parity.save(folder, params, TINY, blip2.NAMES, blip2.CONFIG, stem="model")
  reference, report = THEIRS.from_pretrained(folder, output_loading_info=True)
  assert not any(report.values()), report
  return model, reference.eval()


def test_our_files_open_in_transformers_and_give_the_same_output(pair):
  compare(*pair, TINY)


def test_a_q_former_that_looks_less_often_gives_the_same_output(tmp_path):
  model, params = random(ODD)
  parity.save(tmp_path, params, ODD, blip2.NAMES, blip2.CONFIG, stem="model")
  compare(model, THEIRS.from_pretrained(tmp_path).eval(), ODD)


def test_greedy_captions_are_those_of_transformers(pair):
  model, reference = pair
  batch = inputs(TINY)
  theirs = reference.generate(
    **as_theirs(TINY, *batch),
    max_new_tokens=6,
    do_sample=False,
    eos_token_id=-1,
  )
  ours = np.asarray(tiny_captioners.greedy(model, TINY.text, *batch))
  np.testing.assert_array_equal(ours, theirs[:, -6:])
  assert len(np.unique(ours)) > 5


@jax.jit
def searched(model, images, tokens, mask):
  """The best captions of up to six tokens that three beams find."""
  return decoding.beam_search(
    *tiny_captioners.begun(model, TINY.text, images, tokens, mask),
    lm.select,
    beams=3,
    length=6,
    eos=32,
    pad=TINY.text.pad,
  )[0]


def test_captions_of_beam_search_are_those_of_transformers(pair):
  model, reference = pair
  batch = inputs(TINY)
  theirs = reference.generate(
    **as_theirs(TINY, *batch),
    max_new_tokens=6,
    num_beams=3,
    do_sample=False,
    eos_token_id=32,
  )[:, TINY.queries + batch[1].shape[1] :]
  ours = np.asarray(searched(model, *batch))
  np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)
  assert (ours == 32).any()
  assert len(np.unique(ours)) > 5


def reference_of(config):
  torch.manual_seed(0)
  settings = config_json.export_config(config, blip2.CONFIG)
  del settings["use_decoder_only_language_model"]
  reference = THEIRS(transformers.Blip2Config(**settings)).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.2)
  return reference


def test_files_of_transformers_open_here_and_give_the_same_output(tmp_path):
  reference = reference_of(TINY)
  reference.save_pretrained(tmp_path)
  found, model = parity.load(
    tmp_path, make, blip2.Config, blip2.NAMES, blip2.CONFIG
  )
  assert found == TINY
  compare(model, reference, TINY)
  written = config_json.export_config(TINY, blip2.CONFIG)
  theirs = json.loads((tmp_path / "config.json").read_text())
  for key in ("vision_config", "qformer_config", "text_config"):
    part = written.pop(key)
    # Keys that version 4 has, and 5 dropped with the choice.
    part.pop("position_embedding_type", None)
    part.pop("architectures", None)
    parity.check_config(part, theirs[key])
  parity.check_config(written, theirs)


def test_files_that_have_the_table_of_tokens_twice_are_read(pair):
  model, reference = pair
  state = reference.state_dict()
  assert blip2.WITH_HEAD.marker in state
  for name in [n for n in state if n.startswith(blip2.WITH_HEAD.unused)]:
    del state[name]
  module = types.SimpleNamespace(state_dict=lambda: state)
  _, params = tree.split(model)
  found = parity.adopt(module, params, blip2.WITH_HEAD.names)
  jax.tree.map(np.testing.assert_array_equal, found, params)


# config.json of Salesforce/blip2-opt-2.7b.
PUBLISHED = """{
  "architectures": ["Blip2ForConditionalGeneration"],
  "image_text_hidden_size": 256,
  "image_token_index": 50265,
  "initializer_factor": 1.0,
  "initializer_range": 0.02,
  "model_type": "blip-2",
  "num_query_tokens": 32,
  "qformer_config": {
    "classifier_dropout": null, "model_type": "blip_2_qformer"
  },
  "text_config": {
    "_name_or_path": "facebook/opt-2.7b",
    "activation_dropout": 0.0,
    "architectures": ["OPTForCausalLM"],
    "eos_token_id": 50118,
    "ffn_dim": 10240,
    "hidden_size": 2560,
    "model_type": "opt",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "vocab_size": 50304,
    "word_embed_proj_dim": 2560
  },
  "torch_dtype": "float32",
  "transformers_version": "4.47.0.dev0",
  "use_decoder_only_language_model": true,
  "vision_config": {
    "dropout": 0.0,
    "initializer_factor": 1.0,
    "model_type": "blip_2_vision_model",
    "num_channels": 3,
    "projection_dim": 512
  }
}"""

# What transformers 4 wrote into each group besides.
BESIDES = dict.fromkeys(config_json.GENERIC) | {
  "_name_or_path": "",
  "architectures": None,
  "bos_token_id": None,
  "eos_token_id": None,
  "pad_token_id": None,
  "tie_word_embeddings": True,
}


def read(settings):
  return config_json.import_config(settings, blip2.Config, blip2.CONFIG)


def test_the_published_config_is_that_of_the_preset():
  settings = json.loads(PUBLISHED)
  assert read(settings) == blip2.OPT_2_7B
  for key in ("vision_config", "qformer_config", "text_config"):
    settings[key] = {**BESIDES, **settings[key]}
  settings["text_config"] |= {"bos_token_id": 2, "pad_token_id": 1}
  settings["qformer_config"] |= {
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "position_embedding_type": "absolute",
    "vocab_size": 30522,
  }
  assert read({**BESIDES, **settings}) == blip2.OPT_2_7B


def test_a_captioner_that_is_another_network_is_refused():
  for change, message in (
    ({"use_decoder_only_language_model": False}, "use_decoder_only_language_m"),
    ({"text_config": {"model_type": "t5"}}, r"text_config: model_type='t5'"),
    (
      {"qformer_config": {"use_qformer_text_input": True}},
      "use_qformer_text_i",
    ),
    ({"vision_config": {"qkv_bias": False}}, "vision_config: qkv_bias=False"),
  ):
    with pytest.raises(ValueError, match=message):
      read({**json.loads(PUBLISHED), **change})


def test_the_preset_is_the_network_of_transformers_by_name_and_shape():
  settings = json.loads(PUBLISHED)
  del settings["use_decoder_only_language_model"]
  expected = parity.meta_shapes(
    lambda: THEIRS(transformers.Blip2Config(**settings))
  )
  assert expected.pop(blip2.WITH_HEAD.marker) == (50304, 2560)
  _, shapes = parity.abstract(lambda: make(blip2.OPT_2_7B))
  assert convert.export_shapes(shapes, blip2.NAMES) == expected
  assert tree.count(shapes) == 3_744_761_856
  logits = jax.eval_shape(
    lambda images, tokens: make(blip2.OPT_2_7B)(images, tokens),
    jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
    jax.ShapeDtypeStruct((2, 4), jnp.int32),
  )
  assert logits.shape == (2, 36, 50304)


def test_the_computation_is_in_the_type_asked_for():
  model, _ = random(TINY, jnp.bfloat16)
  states, answers, logits = run(model, *inputs(TINY))
  assert states.dtype == logits.dtype == jnp.bfloat16
  # The Q-Former's is float32 always, as in transformers.
  assert answers.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}


def test_a_prompt_without_a_mask_has_no_padding():
  model, _ = random(TINY)
  images, tokens, mask = inputs(TINY)
  plain = run(model, images, tokens, None)[2]
  whole = run(model, images, tokens, np.ones_like(mask))[2]
  np.testing.assert_array_equal(plain, whole)


@pytest.mark.parametrize(
  ("part", "change", "message"),
  [
    ("vision", dict(heads=5), "width=24 does not divide over 5 heads"),
    ("vision", dict(image_size=30), "image_size=30 does not divide into patch"),
    ("qformer", dict(heads=3), "width=16 does not divide over 3 heads"),
    ("qformer", dict(act="tanh"), "unknown act 'tanh'; expected one of .*gelu"),
    ("qformer", dict(source_width=8), "width 8, and the vision tower's are 24"),
  ],
)
def test_a_config_that_cannot_be_is_refused(part, change, message):
  changed = {**vars(getattr(TINY, part)), **change}
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **{part: type(getattr(TINY, part))(**changed)})


def test_images_of_another_size_are_refused():
  model, _ = random(TINY)
  with pytest.raises(ValueError, match=r"of 28x14 pixels; .* sees 28x28"):
    model.image_tokens(jnp.zeros((1, 28, 14, 3)))
