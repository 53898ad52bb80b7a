# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers

from cc_jax.core import config_json, tree
from cc_jax.models import layers, llama, lm, opt

# Odd sizes; ids of no special token, so that texts do not end.
SMALL = dict(
  vocabulary=67, width=24, mlp=40, depth=3, heads=3, bos=None, eos=None
)
OPT = opt.Config(**SMALL, positions=32)
LLAMA = llama.Config(**SMALL, eps=1e-5, rope=500.0)
FAMILIES = {
  "opt": (OPT, opt, transformers.OPTForCausalLM),
  "llama": (LLAMA, llama, transformers.LlamaForCausalLM),
}


def make(config):
  return lm.LM(config, rngs=layers.keys(0))


def random(config, seed=0):
  structure, shapes = parity.abstract(lambda: make(config))
  params = parity.scramble(shapes, seed)
  # So that the next token depends on the last ones.
  params["token"]["embedding"] *= 8
  return tree.merge(structure, params), params


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
  return FAMILIES[request.param]


@pytest.fixture(scope="module")
def pair(family, tmp_path_factory):
  """Our model with random weights, and theirs from our files."""
  config, source, theirs = family
  model, params = random(config)
  folder = tmp_path_factory.mktemp("files")
  parity.save(folder, params, config, source.NAMES, source.CONFIG, "model")
  reference, report = theirs.from_pretrained(folder, output_loading_info=True)
  assert not any(report.values()), report
  return model, reference.eval()


def prompts(rows, length, seed=0):
  """Random tokens, padded on the left by up to all but one."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 67, (rows, length), dtype=np.int32)
  starts = rng.integers(0, length, (rows, 1))
  starts[0] = 0
  mask = np.arange(length) >= starts
  return np.where(mask, tokens, 1).astype(np.int32), mask


@jax.jit
def whole(model, tokens, mask):
  return model(model.embed(tokens), mask)


def compare(model, reference, tokens, mask):
  """Theirs as `generate` calls it, with the positions of the mask."""
  ours = np.asarray(whole(model, tokens, mask))
  places = torch.from_numpy(np.maximum(np.cumsum(mask, 1) - 1, 0))
  with torch.no_grad():
    theirs = reference(
      input_ids=torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(mask).long(),
      position_ids=places,
    ).logits.numpy()
  # What stands at padding is read by nobody.
  parity.check(ours[mask], theirs[mask], parity.MODEL)


@pytest.mark.parametrize("length", [1, 13])
def test_our_files_open_in_transformers_and_give_the_same_logits(pair, length):
  compare(*pair, *prompts(5, length))


def test_files_of_transformers_open_here_and_give_the_same_logits(
  family, tmp_path
):
  config, source, theirs = family
  torch.manual_seed(0)
  # Of another base they write a key that is new in transformers 5.
  config = dataclasses.replace(config, rope=1e4) if config.rope else config
  settings = config_json.export_config(config, source.CONFIG)
  reference = theirs(theirs.config_class(**settings)).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.3)
  reference.save_pretrained(tmp_path)
  found, model = parity.load(
    tmp_path, make, type(config), source.NAMES, source.CONFIG
  )
  assert found == config
  compare(model, reference, *prompts(3, 9))


@jax.jit
def by_pieces(model, tokens, mask):
  """The logits by a prompt of 5 tokens, then 3, then one after another."""
  cache = lm.empty_cache(model.config, len(tokens), 16, jnp.float32)
  logits = []
  for start, end in ((0, 5), (5, 8), (8, 9), (9, 10), (10, 11)):
    x = model.embed(tokens[:, start:end])
    piece, cache = model.extend(x, cache, mask[:, start:end])
    logits.append(piece)
  return jnp.concatenate(logits, axis=1), cache


def test_a_text_by_pieces_has_the_logits_of_the_whole(pair):
  model, _ = pair
  tokens, mask = prompts(6, 11)
  pieces, cache = by_pieces(model, tokens, mask)
  parity.check(
    pieces[mask], np.asarray(whole(model, tokens, mask))[mask], parity.LAYER
  )
  assert cache.length == 11
  np.testing.assert_array_equal(cache.mask[:, :11], mask)
  assert not cache.mask[:, 11:].any()


@jax.jit
def greedy(model, tokens, mask):
  """Eight tokens after each prompt, the likeliest each time."""
  B, T = tokens.shape
  cache = lm.empty_cache(model.config, B, T + 8, jnp.float32)
  x = model.embed(tokens)
  logits, cache = model.extend(x, cache, mask, last=True)

  def step(carry, _):
    logits, cache = carry
    token = jnp.argmax(logits, axis=-1)
    logits, cache = model.extend(model.embed(token), cache)
    return (logits, cache), token[:, 0]

  return jax.lax.scan(step, (logits, cache), length=8)[1].T


def test_the_likeliest_tokens_are_those_of_transformers(pair):
  model, reference = pair
  tokens, mask = prompts(240, 10, seed=3)
  with torch.no_grad():
    theirs = reference.generate(
      input_ids=torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(mask).long(),
      do_sample=False,
      max_new_tokens=8,
      pad_token_id=1,
      eos_token_id=None,
    )
  ours = np.asarray(greedy(model, tokens, mask))
  np.testing.assert_array_equal(ours, theirs[:, 10:].numpy())
  assert len(np.unique(ours)) > 20


def test_an_image_may_stand_between_words(pair):
  """Embeddings are read that are of no token."""
  model, reference = pair
  x = np.random.default_rng(0).standard_normal((2, 7, 24)).astype(np.float32)
  with torch.no_grad():
    theirs = reference(inputs_embeds=torch.from_numpy(x)).logits
  ours = jax.jit(lambda model, x: model(x))(model, x)
  parity.check(ours, theirs, parity.MODEL)


def test_padding_changes_nothing(pair):
  model, _ = pair
  tokens, mask = prompts(4, 9)
  other = np.where(mask, tokens, 5).astype(np.int32)
  np.testing.assert_array_equal(
    np.asarray(whole(model, tokens, mask))[mask],
    np.asarray(whole(model, other, mask))[mask],
  )


def test_the_computation_is_in_the_type_asked_for(family):
  config = family[0]
  structure, params = parity.abstract(
    lambda: lm.LM(config, dtype=jnp.bfloat16, rngs=layers.keys(0))
  )
  model = tree.merge(structure, parity.scramble(params))
  cache = lm.empty_cache(config, 2, 8, jnp.bfloat16)
  tokens = jnp.ones((2, 3), jnp.int32)
  logits, cache = jax.jit(lambda m, t, c: m.extend(m.embed(t), c))(
    model, tokens, cache
  )
  assert logits.dtype == cache.k.dtype == cache.v.dtype == jnp.bfloat16
  assert whole(model, tokens, None).dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("f4")}


def test_rotations_are_in_float32():
  x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
  # In bfloat16 the position is 1024 and the angle off by half a turn.
  angles = lm.rotary_angles(jnp.full((1, 1), 1027), 4, 10_000.0)
  turned = lm.rotate(x, angles)
  expected = np.cos(1027.0) - np.sin(1027.0)
  assert turned.dtype == jnp.bfloat16
  np.testing.assert_allclose(float(turned[0, 0, 0, 0]), expected, atol=1e-2)


def test_too_many_tokens_are_refused():
  model, _ = random(OPT)
  with pytest.raises(ValueError, match=r"33 tokens are too many .* 32 learned"):
    model(jnp.zeros((1, 33, 24)))
  with pytest.raises(ValueError, match=r"40 tokens are too many .* 32 learned"):
    lm.empty_cache(OPT, 1, 40, jnp.float32)
  cache = lm.empty_cache(OPT, 1, 4, jnp.float32)
  with pytest.raises(ValueError, match=r"5 tokens .* 4 places; .*length=5"):
    model.extend(jnp.zeros((1, 5, 24)), cache)


@pytest.mark.parametrize(
  ("source", "change", "message"),
  [
    (opt, dict(do_layer_norm_before=False), "do_layer_norm_before=False"),
    (opt, dict(word_embed_proj_dim=512), r"dim=512 \(expected: 768\)"),
    (opt, dict(activation_function="gelu"), "'gelu' .supported: 'relu'"),
    (llama, dict(num_key_value_heads=8), r"heads=8 \(expected: 32\)"),
    (llama, dict(rope_scaling={"type": "linear"}), "rope_scaling=.*None"),
    (llama, dict(tie_word_embeddings=True), "tie_word_embeddings=True"),
    (llama, dict(head_dim=64), r"head_dim=64 \(expected: 128\)"),
  ],
)
def test_another_network_is_refused(source, change, message):
  with pytest.raises(ValueError, match=message):
    config_json.import_config(change, source.Config, source.CONFIG)


@pytest.mark.parametrize("source", [opt, llama])
def test_a_width_that_does_not_divide_is_refused(source):
  with pytest.raises(ValueError, match="width=24 does not divide over 5 heads"):
    source.Config(width=24, heads=5)


def test_initial_logits_stay_moderate_in_a_deep_model(family):
  deep = dataclasses.replace(family[0], depth=24)
  tokens = jnp.asarray(prompts(2, 9)[0])
  logits = jax.jit(lambda: make(deep)(make(deep).embed(tokens)))()
  assert 1e-3 < logits.std() < 1
