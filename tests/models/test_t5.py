# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers
from transformers.models.t5 import modeling_t5

from cc_jax.core import config_json, convert, tree, weight_files
from cc_jax.models import hub, kinds, layers, t5

TINY = t5.Config(
  vocabulary=99, width=32, mlp=48, depth=3, heads=4, head_width=8
)
ODD = t5.Config(
  vocabulary=50,
  width=20,
  mlp=36,
  depth=2,
  heads=3,
  head_width=16,
  buckets=12,
  max_distance=20,
)
ONE = dataclasses.replace(TINY, depth=1, heads=1, head_width=32)
# text_encoder/config.json of the encoder of google/t5-v1_1-xxl.
PUBLISHED = """{
  "_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"],
  "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64, "d_model": 4096,
  "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
  "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
  "initializer_factor": 1.0, "is_encoder_decoder": true, "is_gated_act": true,
  "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24,
  "num_heads": 64, "num_layers": 24, "output_past": true, "pad_token_id": 0,
  "relative_attention_max_distance": 128,
  "relative_attention_num_buckets": 32, "tie_word_embeddings": false,
  "torch_dtype": "float32", "transformers_version": "4.21.1",
  "use_cache": true, "vocab_size": 32128
}"""


def make(config):
  return t5.Encoder(config, dtype=jnp.float32, rngs=layers.keys(0))


def captions(config, length):
  """Tokens, and a mask: one caption fills its tokens, two are padded."""
  rng = np.random.default_rng(1)
  tokens = rng.integers(2, config.vocabulary, (3, length), dtype=np.int32)
  mask = np.arange(length) < np.array([[length], [length // 2], [1]])
  return np.where(mask, tokens, 0), mask


def random(config, dtype=jnp.float32):
  """An encoder with random weights, and the weights; nothing is compiled."""
  structure, shapes = parity.abstract(
    lambda: t5.Encoder(config, dtype=dtype, rngs=layers.keys(0))
  )
  params = parity.scramble(shapes)
  return tree.merge(structure, params), params


def settings(config):
  """What makes transformers' module of a config."""
  return transformers.T5Config(**config_json.export_config(config, t5.CONFIG))


@jax.jit
def run(model, tokens, mask):
  return model(tokens, mask)


def compare(model, reference, tokens, mask):
  with torch.no_grad():
    theirs = reference(
      input_ids=torch.from_numpy(tokens).long(),
      attention_mask=None if mask is None else torch.from_numpy(mask).long(),
    )
  parity.check(run(model, tokens, mask), theirs.last_hidden_state, parity.MODEL)


@pytest.mark.parametrize("config", [TINY, ODD, ONE], ids=["even", "odd", "one"])
def test_our_files_open_in_transformers_and_give_the_same_output(
  config, tmp_path
):
  model, params = random(config)
  parity.save(tmp_path, params, config, t5.NAMES, t5.CONFIG, stem="model")
  reference, report = transformers.T5EncoderModel.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report.values()), report
  # 150 is beyond the distance that has buckets of its own.
  for length in (1, 7, 150):
    tokens, mask = captions(config, length)
    compare(model, reference.eval(), tokens, mask)
    compare(model, reference.eval(), tokens, None)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["even", "odd"])
def test_files_of_transformers_open_here_and_give_the_same_output(
  config, tmp_path
):
  torch.manual_seed(0)
  reference = transformers.T5EncoderModel(settings(config)).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.3)
  reference.save_pretrained(tmp_path)
  found, model = parity.load(tmp_path, make, t5.Config, t5.NAMES, t5.CONFIG)
  assert found == config
  compare(model, reference, *captions(config, 23))
  written = config_json.export_config(config, t5.CONFIG)
  theirs = json.loads((tmp_path / "config.json").read_text())
  parity.check_config(written, {**theirs, "tie_word_embeddings": False})


@pytest.mark.parametrize("torch_file", [False, True], ids=["safe", "torch"])
def test_a_whole_model_gives_its_encoder(torch_file, tmp_path):
  whole = transformers.T5ForConditionalGeneration(settings(TINY)).eval()
  state = whole.state_dict()
  assert "decoder.block.0.layer.1.EncDecAttention.q.weight" in state
  assert "lm_head.weight" in state
  assert "encoder.embed_tokens.weight" in state
  if torch_file:
    torch.save(state, tmp_path / "pytorch_model.bin")
    whole.config.save_pretrained(tmp_path)
  else:
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    weight_files.save_folder(
      str(tmp_path), arrays, whole.config.to_diff_dict(), stem="model"
    )
  loaded = hub.load(str(tmp_path), "t5", expect=TINY)
  structure, _ = kinds.structure("t5", TINY)
  model = tree.merge(structure, jax.tree.map(jnp.asarray, loaded.params))
  reference = transformers.T5EncoderModel(settings(TINY)).eval()
  names = reference.state_dict()
  reference.load_state_dict({name: state[name] for name in names})
  compare(model, reference, *captions(TINY, 11))


def test_buckets_are_those_of_transformers_at_every_distance():
  for count, farthest in ((32, 128), (12, 20), (6, 50), (64, 300), (7, 33)):
    t = torch.arange(1500)
    theirs = modeling_t5.T5Attention._relative_position_bucket(
      t[None, :] - t[:, None], True, count, farthest
    )
    ours = t5.buckets(1500, count, farthest)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize(
  ("config", "count"), [(t5.XXL, 4_762_310_656), (t5.SMALL, 35_332_800)]
)
def test_presets_are_transformers_models_at_full_size(config, count):
  _, shapes = parity.abstract(lambda: make(config))
  assert tree.count(shapes) == count
  with torch.device("meta"):
    theirs = transformers.T5EncoderModel(settings(config))
  names = {name: tuple(w.shape) for name, w in theirs.named_parameters()}
  assert convert.export_shapes(shapes, t5.NAMES) == names


def test_the_published_config_is_the_preset():
  theirs = json.loads(PUBLISHED)
  assert config_json.import_config(theirs, t5.Config, t5.CONFIG) == t5.XXL
  older = {**theirs, "n_positions": 512, "task_specific_params": {"a": {}}}
  assert config_json.import_config(older, t5.Config, t5.CONFIG) == t5.XXL


def test_a_file_that_leaves_a_key_out_means_the_default_of_transformers():
  theirs = transformers.T5Config(feed_forward_proj="gated-gelu")
  ours = config_json.import_config({}, t5.Config, t5.CONFIG)
  for key in t5.CONFIG.renamed.values():
    written = config_json.export_config(ours, t5.CONFIG)
    assert getattr(theirs, key) == written[key], key


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("feed_forward_proj", "relu"),
    ("dense_act_fn", "silu"),
    ("model_type", "umt5"),
    ("sliding_window", 4),
  ],
)
def test_another_kind_of_t5_is_refused(key, value):
  theirs = {**json.loads(PUBLISHED), key: value}
  with pytest.raises(ValueError, match=f"{key}={value!r}"):
    config_json.import_config(theirs, t5.Config, t5.CONFIG)


def test_version_1_0_is_refused_by_the_names_of_its_weights(tmp_path):
  settings_10 = transformers.T5Config(
    vocab_size=20, d_model=8, d_ff=16, num_layers=1, num_heads=2, d_kv=4
  )
  transformers.T5EncoderModel(settings_10).save_pretrained(tmp_path)
  path = tmp_path / "config.json"
  theirs = json.loads(path.read_text())
  for key in ("feed_forward_proj", "is_gated_act", "dense_act_fn"):
    theirs.pop(key, None)
  path.write_text(json.dumps(theirs))
  with pytest.raises(ValueError, match=r"missing .*wi_0.*left over .*wi\."):
    hub.load(str(tmp_path), "t5")


def test_no_token_sees_padding():
  model, _ = random(TINY)
  tokens, mask = captions(TINY, 12)
  changed = np.where(mask, tokens, 5)
  before, after = (np.asarray(run(model, x, mask)) for x in (tokens, changed))
  np.testing.assert_allclose(before[mask], after[mask], atol=1e-6)
  short = np.asarray(run(model, tokens[1:2, :6], None))
  np.testing.assert_allclose(before[1:2, :6], short, atol=1e-5)


def test_the_computation_is_in_bfloat16_when_asked_for():
  exact, params = random(TINY)
  model, _ = random(TINY, jnp.bfloat16)
  tokens, mask = captions(TINY, 16)
  found = run(model, tokens, mask)
  assert found.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}
  expected = np.asarray(run(exact, tokens, mask))
  difference = np.abs(found.astype(np.float32) - expected)[mask]
  assert difference.max() < 0.1 * np.abs(expected).max()
  half, _ = kinds.structure("t5", TINY, jnp.bfloat16)
  cast = tree.merge(half, tree.cast(params, jnp.bfloat16))
  assert run(cast, tokens, mask).dtype == jnp.bfloat16


def test_float16_is_refused():
  with pytest.raises(ValueError, match=r"overflows in float16; .* bfloat16"):
    random(TINY, jnp.float16)


def test_initial_states_stay_moderate_in_a_deep_encoder():
  deep = dataclasses.replace(TINY, depth=24)
  tokens, mask = map(jnp.asarray, captions(deep, 16))
  spread = jax.jit(lambda: make(deep)(tokens, mask).std())()
  assert 0.1 < spread < 2


@pytest.mark.parametrize(
  "change", [dict(buckets=3), dict(buckets=64, max_distance=16)]
)
def test_buckets_that_cannot_be_are_refused(change):
  with pytest.raises(ValueError, match=r"buckets=\d+ do not suit max_dist"):
    dataclasses.replace(TINY, **change)
