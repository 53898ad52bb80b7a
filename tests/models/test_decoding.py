# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers
from transformers.generation import logits_process

from cc_jax.core import tree
from cc_jax.models import decoding, layers, llama, lm

# Few tokens, so that the one that ends a text is often the likeliest.
CONFIG = llama.Config(
  vocabulary=19, width=24, mlp=40, depth=2, heads=3, eos=5, pad=1
)
LENGTH = 9


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """Our model with random weights, and theirs from our files."""
  structure, shapes = parity.abstract(
    lambda: lm.LM(CONFIG, rngs=layers.keys(0))
  )
  params = parity.scramble(shapes, seed=4)
  folder = tmp_path_factory.mktemp("files")
  parity.save(folder, params, CONFIG, llama.NAMES, llama.CONFIG, "model")
  reference = transformers.LlamaForCausalLM.from_pretrained(folder)
  return tree.merge(structure, params), reference.eval()


def prompts(rows, length=7):
  rng = np.random.default_rng(1)
  tokens = rng.integers(2, 19, (rows, length), dtype=np.int32)
  mask = np.arange(length) >= rng.integers(0, length, (rows, 1))
  return np.where(mask, tokens, 1).astype(np.int32), mask


def theirs(reference, tokens, mask, **options):
  with torch.no_grad():
    found = reference.generate(
      input_ids=torch.from_numpy(tokens).long(),
      attention_mask=torch.from_numpy(mask).long(),
      max_new_tokens=LENGTH,
      do_sample=False,
      return_dict_in_generate=True,
      output_scores=True,
      **options,
    )
  answers = found.sequences[:, tokens.shape[1] :].numpy()
  padded = np.full((len(tokens), LENGTH), CONFIG.pad)
  padded[:, : answers.shape[1]] = answers
  return padded, found


def prompted(model, tokens, mask):
  """The logits after prompts, and the cache of them."""
  B, T = tokens.shape
  cache = lm.empty_cache(CONFIG, B, T + LENGTH - 1, jnp.float32)
  logits, cache = model.extend(model.embed(tokens), cache, mask, last=True)
  return logits[:, 0], cache


ENDS = dict(length=LENGTH, eos=CONFIG.eos, pad=CONFIG.pad)


@functools.partial(jax.jit, static_argnames=("pick", "min_length"))
def generate(model, tokens, mask, key=None, pick=decoding.greedy, min_length=0):
  return decoding.generate(
    model.step,
    *prompted(model, tokens, mask),
    pick,
    key=key,
    min_length=min_length,
    **ENDS,
  )


@functools.partial(jax.jit, static_argnames=("options",))
def beam_search(model, tokens, mask, options):
  return decoding.beam_search(
    model.step,
    *prompted(model, tokens, mask),
    lm.select,
    **dict(options),
    **ENDS,
  )


def lengths(texts):
  """Tokens of each text, its end included."""
  ends = texts == CONFIG.eos
  return np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, LENGTH)


@pytest.mark.parametrize("min_length", [0, 4])
def test_greedy_texts_and_their_ends_are_those_of_transformers(
  pair, min_length
):
  model, reference = pair
  tokens, mask = prompts(300)
  expected, _ = theirs(reference, tokens, mask, min_new_tokens=min_length)
  ours = np.asarray(generate(model, tokens, mask, min_length=min_length))
  np.testing.assert_array_equal(ours, expected)
  assert len(np.unique(lengths(ours))) > 3
  assert lengths(ours).min() > min_length


@pytest.mark.parametrize(
  ("beams", "length_penalty", "early_stopping", "min_length"),
  [
    (2, 1.0, False, 0),
    (2, -1.0, True, 0),
    (3, 0.0, False, 0),
    (3, 0.6, True, 3),
    (4, 2.0, False, 0),
    (4, -2.0, False, 2),
    # As BLIP-2 is asked for captions.
    (5, 1.0, False, 1),
    (5, 1.0, True, 0),
    (5, -1.0, False, 0),
  ],
)
def test_beams_find_the_texts_of_transformers(
  pair, beams, length_penalty, early_stopping, min_length
):
  model, reference = pair
  tokens, mask = prompts(200)
  expected, found = theirs(
    reference,
    tokens,
    mask,
    num_beams=beams,
    length_penalty=length_penalty,
    early_stopping=early_stopping,
    min_new_tokens=min_length,
  )
  options = dict(
    beams=beams,
    length_penalty=length_penalty,
    early_stopping=early_stopping,
    min_length=min_length,
  )
  ours, scores = beam_search(model, tokens, mask, tuple(options.items()))
  np.testing.assert_array_equal(ours, expected)
  parity.check(scores, found.sequences_scores, parity.MODEL)
  assert len(np.unique(lengths(np.asarray(ours)))) > 2


def test_one_beam_is_greedy(pair):
  model, _ = pair
  tokens, mask = prompts(50)
  options = dict(beams=1, length_penalty=0.0, early_stopping=True)
  ours, _ = beam_search(model, tokens, mask, tuple(options.items()))
  np.testing.assert_array_equal(ours, generate(model, tokens, mask))


def test_a_text_does_not_depend_on_its_batch(pair):
  model, _ = pair
  tokens, mask = prompts(24)
  options = (("beams", 3),)
  together, _ = beam_search(model, tokens, mask, options)
  half, _ = beam_search(model, tokens[12:], mask[12:], options)
  np.testing.assert_array_equal(together[12:], half)


def test_a_drawn_text_ends_at_its_end(pair):
  model, _ = pair
  tokens, mask = prompts(64)
  pick = decoding.sampler()
  texts = [
    np.asarray(generate(model, tokens, mask, jax.random.key(seed), pick))
    for seed in range(2)
  ]
  assert (texts[0] != texts[1]).any()
  for text in texts[0]:
    ends = np.flatnonzero(text == CONFIG.eos)
    if len(ends):
      assert (text[ends[0] + 1 :] == CONFIG.pad).all()
  assert (texts[0] == CONFIG.eos).any()


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p"),
  [(1.0, None, 1.0), (0.5, 6, 1.0), (2.0, None, 0.7), (1.3, 9, 0.8)],
)
def test_tokens_are_drawn_as_transformers_would(temperature, top_k, top_p):
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((1, 40)).astype(np.float32)
  warped = torch.from_numpy(logits)
  chain = [logits_process.TemperatureLogitsWarper(temperature)]
  if top_k:
    chain.append(logits_process.TopKLogitsWarper(top_k))
  if top_p < 1:
    chain.append(logits_process.TopPLogitsWarper(top_p))
  for warper in chain:
    warped = warper(None, warped)
  expected = warped.softmax(-1)[0].numpy()
  draws = 200_000
  pick = decoding.sampler(temperature, top_k, top_p)
  many = jnp.broadcast_to(jnp.asarray(logits), (draws, 40))
  tokens = np.asarray(jax.jit(pick)(many, jax.random.key(0)))
  found = np.bincount(tokens, minlength=40) / draws
  assert not found[expected == 0].any()
  spread = np.sqrt(expected * (1 - expected) / draws)
  assert (np.abs(found - expected) <= 5 * spread).all()


def test_what_leaves_nothing_to_choose_from_is_refused(pair):
  for wrong in (dict(temperature=0.0), dict(top_k=0), dict(top_p=0.0)):
    with pytest.raises(ValueError, match=r"cannot sample with temp.*greedy"):
      decoding.sampler(**wrong)
  with pytest.raises(ValueError, match=r"10 beams need 20 tokens .* at most 9"):
    beam_search(pair[0], *prompts(2), (("beams", 10),))
