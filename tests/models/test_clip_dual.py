# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers

from cc_jax.core import config_json, convert, tree
from cc_jax.models import clip, clip_dual, clip_vision, hub, kinds, layers

TINY = clip_dual.Config(
  clip.TextConfig(
    vocabulary=99, width=32, mlp=48, depth=2, heads=4, positions=16, eos=98
  ),
  clip_vision.VisionConfig(
    width=24, mlp=40, depth=3, heads=3, image_size=24, patch=8
  ),
  projection=20,
)
CONFIGS = {
  "quick_gelu": TINY,
  "gelu": clip_dual.Config(
    dataclasses.replace(TINY.text, act="gelu", heads=2, eos=2),
    dataclasses.replace(TINY.vision, act="gelu", heads=6, patch=6),
    projection=32,
    logit_scale=1.0,
  ),
}
COUNTS = {
  "VIT_B32": 151_277_313,
  "VIT_B16": 149_620_737,
  "VIT_L14": 427_616_513,
  "VIT_L14_336": 427_944_193,
  "VIT_H14": 986_109_441,
}


def make(config):
  return clip_dual.CLIP(config, dtype=jnp.float32, rngs=layers.keys(0))


def random(config, dtype=jnp.float32):
  """A CLIP with random weights, and the weights; nothing is compiled."""
  return parity.random(
    lambda: clip_dual.CLIP(config, dtype=dtype, rngs=layers.keys(0))
  )


def pairs(config):
  """Three captions of different lengths, and two images."""
  rng = np.random.default_rng(1)
  size, last = config.vision.image_size, config.text.vocabulary - 1
  tokens = rng.integers(1, last, (3, 11), dtype=np.int32)
  for row, end in enumerate((10, 4, 1)):
    tokens[row, end:] = last
  return rng.standard_normal((2, size, size, 3), dtype=np.float32), tokens


def torches(images, tokens):
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  return pixels, torch.from_numpy(tokens).long()


@jax.jit
def run(model, images, tokens):
  return (
    model(images, tokens),
    model.image_embedding(images),
    model.text_embedding(tokens),
  )


def compare(model, config, reference):
  images, tokens = pairs(config)
  logits, image, text = run(model, images, tokens)
  pixels, ids = torches(images, tokens)
  with torch.no_grad():
    theirs = reference(input_ids=ids, pixel_values=pixels)
    raw = (
      reference.get_image_features(pixel_values=pixels).pooler_output,
      reference.get_text_features(input_ids=ids).pooler_output,
    )
  parity.check(logits, theirs.logits_per_image, parity.MODEL)
  parity.check(image, raw[0], parity.MODEL)
  parity.check(text, raw[1], parity.MODEL)
  parity.check(clip_dual.unit(image), theirs.image_embeds, parity.MODEL)
  parity.check(clip_dual.unit(text), theirs.text_embeds, parity.MODEL)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_our_files_open_in_transformers_and_give_the_same_output(
  config, tmp_path
):
  model, params = random(config)
  tables = clip_dual.NAMES, clip_dual.CONFIG
  parity.save(tmp_path, params, config, *tables, stem="model")
  reference, report = transformers.CLIPModel.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report.values()), report
  compare(model, config, reference.eval())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_files_of_transformers_open_here_and_give_the_same_output(
  config, tmp_path
):
  torch.manual_seed(0)
  settings = config_json.export_config(config, clip_dual.CONFIG)
  reference = transformers.CLIPModel(transformers.CLIPConfig(**settings)).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.3)
  reference.save_pretrained(tmp_path)
  found, model = parity.load(
    tmp_path, make, clip_dual.Config, clip_dual.NAMES, clip_dual.CONFIG
  )
  assert found == config
  compare(model, config, reference)


class Residual(torch.nn.Module):
  """A block with OpenAI's names."""

  def __init__(self, width, heads, mlp):
    super().__init__()
    self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    self.ln_1 = torch.nn.LayerNorm(width)
    self.mlp = torch.nn.Sequential(
      collections.OrderedDict(
        c_fc=torch.nn.Linear(width, mlp), c_proj=torch.nn.Linear(mlp, width)
      )
    )
    self.ln_2 = torch.nn.LayerNorm(width)

  def forward(self, x, mask):
    y = self.ln_1(x)
    x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
    y = self.mlp.c_fc(self.ln_2(x))
    return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


class Blocks(torch.nn.Module):
  def __init__(self, config):
    super().__init__()
    blocks = [
      Residual(config.width, config.heads, config.mlp)
      for _ in range(config.depth)
    ]
    self.resblocks = torch.nn.ModuleList(blocks)

  def forward(self, x, mask=None):
    for block in self.resblocks:
      x = block(x, mask)
    return x


class Visual(torch.nn.Module):
  def __init__(self, config, projection):
    super().__init__()
    width, patch = config.width, config.patch
    self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
    self.class_embedding = torch.nn.Parameter(torch.zeros(width))
    self.positional_embedding = torch.nn.Parameter(
      torch.zeros(config.tokens, width)
    )
    self.ln_pre = torch.nn.LayerNorm(width)
    self.transformer = Blocks(config)
    self.ln_post = torch.nn.LayerNorm(width)
    self.proj = torch.nn.Parameter(torch.zeros(width, projection))

  def forward(self, pixels):
    x = self.conv1(pixels).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + self.positional_embedding
    x = self.transformer(self.ln_pre(x))
    return self.ln_post(x[:, 0]) @ self.proj


class OpenAI(torch.nn.Module):
  """A CLIP with OpenAI's names, and the three numbers in its files."""

  def __init__(self, config):
    super().__init__()
    text = config.text
    self.visual = Visual(config.vision, config.projection)
    self.transformer = Blocks(text)
    self.token_embedding = torch.nn.Embedding(text.vocabulary, text.width)
    self.positional_embedding = torch.nn.Parameter(
      torch.zeros(text.positions, text.width)
    )
    self.ln_final = torch.nn.LayerNorm(text.width)
    self.text_projection = torch.nn.Parameter(
      torch.zeros(text.width, config.projection)
    )
    self.logit_scale = torch.nn.Parameter(torch.zeros(()))

  def encode_text(self, ids):
    T = ids.shape[1]
    x = self.token_embedding(ids) + self.positional_embedding[:T]
    mask = torch.full((T, T), float("-inf")).triu(1)
    x = self.ln_final(self.transformer(x, mask))
    return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


def test_files_of_openai_open_here_and_give_the_same_output(tmp_path):
  torch.manual_seed(0)
  reference = OpenAI(TINY).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.normal_(std=0.3)
  structure, shapes = parity.abstract(lambda: make(TINY))
  params = parity.adopt(reference, shapes, clip_dual.OPENAI.names)
  images, tokens = pairs(TINY)
  model = tree.merge(structure, params)
  logits, image, text = run(model, images, tokens)
  pixels, ids = torches(images, tokens)
  with torch.no_grad():
    theirs = reference.visual(pixels), reference.encode_text(ids)
    cosines = torch.cosine_similarity(theirs[0][:, None], theirs[1], dim=-1)
    expected = reference.logit_scale.exp() * cosines
  parity.check(image, theirs[0], parity.MODEL)
  parity.check(text, theirs[1], parity.MODEL)
  parity.check(logits, expected, parity.MODEL)
  again = convert.export_weights(params, clip_dual.OPENAI.names)
  state = reference.state_dict()
  assert again.keys() == state.keys()
  for name, tensor in state.items():
    np.testing.assert_array_equal(again[name], tensor.numpy())


def test_the_format_of_openai_is_known_by_its_tensors():
  form, config = clip_dual.OPENAI, clip_dual.VIT_B32
  _, shapes = parity.abstract(lambda: make(config))
  ours = convert.export_shapes(shapes, form.names)
  assert ours == parity.meta_shapes(lambda: OpenAI(config))
  assert form.marker in ours
  assert form.marker not in convert.export_shapes(shapes, clip_dual.NAMES)
  assert not any(name.startswith(form.unused) for name in ours)


@pytest.mark.parametrize("preset", ["VIT_B16", "VIT_B32", "VIT_L14_336"])
def test_the_config_of_a_file_of_openai_is_told_by_its_shapes(preset):
  config = getattr(clip_dual, preset)
  with torch.device("meta"):
    tensors = OpenAI(config).state_dict()
  assert clip_dual.OPENAI.config(tensors) == config


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_have_the_tensors_of_the_published_models(preset):
  config = getattr(clip_dual, preset)
  settings = config_json.export_config(config, clip_dual.CONFIG)
  theirs = parity.meta_shapes(
    lambda: transformers.CLIPModel(transformers.CLIPConfig(**settings))
  )
  _, shapes = parity.abstract(lambda: make(config))
  assert convert.export_shapes(shapes, clip_dual.NAMES) == theirs
  assert tree.count(shapes) == COUNTS[preset]


def test_a_file_that_leaves_a_key_out_means_the_default_of_transformers():
  theirs = transformers.CLIPConfig(architectures=["CLIPModel"]).to_dict()
  ours = config_json.import_config({}, clip_dual.Config, clip_dual.CONFIG)
  written = config_json.export_config(ours, clip_dual.CONFIG)
  for part in ("text_config", "vision_config"):
    parity.check_config(written.pop(part), theirs[part])
  parity.check_config(written, theirs)
  assert (
    config_json.import_config(theirs, clip_dual.Config, clip_dual.CONFIG)
    == ours
  )


# What transformers 4 wrote into each tower's group of keys besides its shape.
GENERIC = """
{"_name_or_path": "", "add_cross_attention": false, "architectures": null,
"attention_dropout": 0.0, "bad_words_ids": null, "begin_suppress_tokens": null,
"bos_token_id": null, "chunk_size_feed_forward": 0,
"cross_attention_hidden_size": null, "decoder_start_token_id": null,
"diversity_penalty": 0.0, "do_sample": false, "dropout": 0.0,
"early_stopping": false, "encoder_no_repeat_ngram_size": 0,
"eos_token_id": null, "exponential_decay_length_penalty": null,
"finetuning_task": null, "forced_bos_token_id": null,
"forced_eos_token_id": null, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
"initializer_factor": 1.0, "initializer_range": 0.02, "is_decoder": false,
"is_encoder_decoder": false, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
"layer_norm_eps": 1e-05, "length_penalty": 1.0, "max_length": 20,
"min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
"num_beams": 1, "num_return_sequences": 1, "output_attentions": false,
"output_hidden_states": false, "output_scores": false, "pad_token_id": null,
"prefix": null, "problem_type": null, "pruned_heads": {},
"remove_invalid_values": false, "repetition_penalty": 1.0, "return_dict": true,
"return_dict_in_generate": false, "sep_token_id": null,
"suppress_tokens": null, "task_specific_params": null, "temperature": 1.0,
"tf_legacy_loss": false, "tie_encoder_decoder": false,
"tie_word_embeddings": true, "tokenizer_class": null, "top_k": 50,
"top_p": 1.0, "torch_dtype": null, "torchscript": false,
"transformers_version": "4.24.0.dev0", "typical_p": 1.0,
"use_bfloat16": false}
"""


def published(width, text, vision):
  """A config.json as the repositories of CLIPs have it."""
  generic = json.loads(GENERIC)
  ids = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1, vocab_size=49408)
  return {
    "_commit_hash": None,
    "_name_or_path": "clip",
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": width,
    "text_config": generic
    | ids
    | dict(model_type="clip_text_model", max_position_embeddings=77, **text),
    "text_config_dict": None if width == 512 else text,
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": generic
    | dict(model_type="clip_vision_model", image_size=224, **vision),
    "vision_config_dict": None if width == 512 else vision,
  }


def shape(act, width, mlp, depth, heads, **more):
  return {
    "hidden_act": act,
    "hidden_size": width,
    "intermediate_size": mlp,
    "num_hidden_layers": depth,
    "num_attention_heads": heads,
    **more,
  }


FILES = {
  # openai/clip-vit-base-patch32
  "VIT_B32": published(
    512,
    shape("quick_gelu", 512, 2048, 12, 8, projection_dim=512),
    shape("quick_gelu", 768, 3072, 12, 12, patch_size=32, projection_dim=512),
  ),
  # laion/CLIP-ViT-H-14-laion2B-s32B-b79K, whose towers state no projection.
  "VIT_H14": published(
    1024,
    shape("gelu", 1024, 4096, 24, 16),
    shape("gelu", 1280, 5120, 32, 16, patch_size=14),
  ),
}


@pytest.mark.parametrize("preset", FILES)
def test_published_files_are_the_preset(preset, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(FILES[preset]))
  found = hub.config(str(tmp_path), "clip")
  differ = {
    field
    for field, value in hub.fields(kinds.preset("clip", preset)).items()
    if hub.fields(found)[field] != value
  }
  assert differ <= set(kinds.KINDS["clip"].free)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"architectures": ["CLIPForImageClassification"]}, "architectures="),
    ({"model_type": "siglip"}, "model_type='siglip'"),
    ({"text_config": {"attention_dropout": 0.1}}, "text_config: attention_dro"),
    ({"vision_config": {"qkv": True}}, "vision_config: qkv=True"),
  ],
)
def test_another_model_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    config_json.import_config(change, clip_dual.Config, clip_dual.CONFIG)


def test_logits_and_unit_embeddings_are_float32():
  model, _ = random(TINY, jnp.bfloat16)
  logits, image, text = run(model, *pairs(TINY))
  assert logits.dtype == clip_dual.unit(image).dtype == jnp.float32
  assert image.dtype == text.dtype == jnp.bfloat16


def test_the_initial_temperature_is_that_of_the_paper():
  scale = jax.jit(lambda: make(TINY).logit_scale[...])()
  np.testing.assert_allclose(np.exp(scale), 1 / 0.07, rtol=1e-4)
