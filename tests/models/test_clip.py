# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers

from cc_jax.core import config_json, convert, tree
from cc_jax.models import clip, layers

TINY = clip.TextConfig(
  vocabulary=99,
  width=32,
  mlp=48,
  depth=3,
  heads=4,
  positions=16,
  projection=24,
  bos=97,
  eos=98,
  pad=0,
)
PROJECTED = dataclasses.replace(TINY, architectures=clip.PROJECTED, act="gelu")
THEIRS = {
  clip.PLAIN: transformers.CLIPTextModel,
  clip.PROJECTED: transformers.CLIPTextModelWithProjection,
}


def make(config):
  return clip.Text(config, dtype=jnp.float32, rngs=layers.keys(0))


def captions(config, length, pad):
  """One caption that fills its tokens, two that are padded."""
  rng = np.random.default_rng(1)
  tokens = rng.integers(1, config.vocabulary - 2, (3, length), dtype=np.int32)
  # The largest id marks the end where eos is 2.
  end = config.vocabulary - 1 if config.eos == 2 else config.eos
  for row, last in enumerate((length - 1, length // 2, 1)):
    tokens[row, 0] = config.bos
    tokens[row, last] = end
    tokens[row, last + 1 :] = pad
  return tokens


def random(config, dtype=jnp.float32):
  """A tower with random weights, and the weights; nothing is compiled."""
  return parity.random(
    lambda: clip.Text(config, dtype=dtype, rngs=layers.keys(0))
  )


@jax.jit
def run(model, tokens):
  return model(tokens)


def compare(model, reference, tokens):
  ours = run(model, tokens)
  with torch.no_grad():
    theirs = reference(
      input_ids=torch.from_numpy(tokens).long(), output_hidden_states=True
    )
  projected = hasattr(theirs, "text_embeds")
  pooled = theirs.text_embeds if projected else theirs.pooler_output
  parity.check(ours.hidden, theirs.last_hidden_state, parity.MODEL)
  parity.check(ours.penultimate, theirs.hidden_states[-2], parity.MODEL)
  parity.check(ours.pooled, pooled, parity.MODEL)


@pytest.mark.parametrize(
  "config",
  [
    TINY,
    PROJECTED,
    dataclasses.replace(TINY, act="gelu", eos=2),
    dataclasses.replace(PROJECTED, act="quick_gelu", eos=2),
  ],
  ids=["plain", "projected", "plain_old_eos", "projected_old_eos"],
)
def test_our_files_open_in_transformers_and_give_the_same_output(
  config, tmp_path
):
  model, params = random(config)
  parity.save(tmp_path, params, config, clip.NAMES, clip.CONFIG, stem="model")
  reference, report = THEIRS[config.architectures].from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report.values()), report
  for length, pad in ((16, 0), (16, config.vocabulary - 1), (7, 0)):
    compare(model, reference.eval(), captions(config, length, pad))


@pytest.mark.parametrize(
  "config", [TINY, PROJECTED], ids=["plain", "projected"]
)
def test_files_of_transformers_open_here_and_give_the_same_output(
  config, tmp_path
):
  torch.manual_seed(0)
  settings = config_json.export_config(config, clip.CONFIG)
  reference = THEIRS[config.architectures](
    transformers.CLIPTextConfig(**settings)
  ).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.3)
  reference.save_pretrained(tmp_path)
  found, model = parity.load(
    tmp_path, make, clip.TextConfig, clip.NAMES, clip.CONFIG
  )
  assert found == config
  compare(model, reference, captions(config, 11, 0))


def test_a_file_that_leaves_a_key_out_means_the_default_of_transformers():
  theirs = transformers.CLIPTextConfig()
  ours = config_json.import_config({}, clip.TextConfig, clip.CONFIG)
  for key, value in config_json.export_config(ours, clip.CONFIG).items():
    if key != "architectures":
      assert getattr(theirs, key) == value, key


@pytest.mark.parametrize(
  ("config", "count"),
  [
    (clip.SD2, 340_387_840),
    (clip.SDXL_L, 123_060_480),
    (clip.SDXL_G, 694_659_840),
  ],
  ids=["SD2", "SDXL_L", "SDXL_G"],
)
def test_presets_have_the_published_number_of_weights(config, count):
  _, shapes = parity.abstract(lambda: make(config))
  assert tree.count(shapes) == count


@pytest.mark.parametrize("preset", ["SD2", "SDXL_L", "SDXL_G"])
def test_presets_have_the_tensors_of_the_published_models(preset):
  config = getattr(clip, preset)
  settings = config_json.export_config(config, clip.CONFIG)
  theirs = parity.meta_shapes(
    lambda: THEIRS[config.architectures](
      transformers.CLIPTextConfig(**settings)
    )
  )
  _, shapes = parity.abstract(lambda: make(config))
  ours = convert.export_shapes(shapes, clip.NAMES)
  if not config.projected:
    # Which transformers 5 leaves out of names.
    ours = {name.removeprefix("text_model."): ours[name] for name in ours}
  assert ours == theirs


@pytest.mark.slow
def test_the_tower_of_sd2_gives_the_same_output_at_full_size(tmp_path):
  """Needs 6 GB of memory."""
  tokens = captions(clip.SD2, 77, 0)
  _, shapes = parity.abstract(lambda: make(clip.SD2))
  params = parity.scramble(shapes)
  tables = clip.NAMES, clip.CONFIG
  parity.save(tmp_path, params, clip.SD2, *tables, stem="model")
  del params
  _, model = parity.load(tmp_path, make, clip.TextConfig, *tables)
  ours = jax.tree.map(np.asarray, run(model, tokens))
  del model
  reference = transformers.CLIPTextModel.from_pretrained(tmp_path).eval()
  with torch.no_grad():
    theirs = reference(
      input_ids=torch.from_numpy(tokens).long(), output_hidden_states=True
    )
  parity.check(ours.hidden, theirs.last_hidden_state, parity.MODEL)
  parity.check(ours.penultimate, theirs.hidden_states[-2], parity.MODEL)
  parity.check(ours.pooled, theirs.pooler_output, parity.MODEL)


def test_a_token_sees_none_after_it():
  model, _ = random(TINY)
  tokens = captions(TINY, 12, 0)
  changed = tokens.copy()
  changed[:, 8:] = 5
  before = np.asarray(run(model, tokens).hidden)
  after = np.asarray(run(model, changed).hidden)
  np.testing.assert_allclose(before[:, :8], after[:, :8], atol=1e-6)
  assert np.abs(before[:, 8:] - after[:, 8:]).max() > 1e-3


def test_the_computation_is_in_the_type_asked_for():
  model, _ = random(PROJECTED, jnp.bfloat16)
  encoding = run(model, captions(PROJECTED, 16, 0))
  assert {x.dtype for x in encoding} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}


def test_initial_states_stay_moderate_in_a_deep_tower():
  deep = dataclasses.replace(PROJECTED, depth=24)
  tokens = jnp.asarray(captions(deep, 16, 0))
  spread = jax.jit(lambda: make(deep)(tokens).penultimate.std())()
  assert 0.1 < spread < 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(heads=5), "width=32 does not divide over 5 heads"),
    (dict(act="tanh"), "unknown act 'tanh'; expected one of .*quick_gelu"),
    (dict(architectures=("CLIPModel",)), "CLIPModel.* is not a text tower"),
  ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)


def test_a_caption_longer_than_the_tower_is_refused():
  with pytest.raises(ValueError, match=r"17 tokens.*length=16"):
    random(TINY)[0](jnp.ones((1, 17), jnp.int32))


def test_a_tower_with_dropout_is_refused():
  with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
    config_json.import_config(
      {"attention_dropout": 0.1}, clip.TextConfig, clip.CONFIG
    )
