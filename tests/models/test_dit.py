# SPDX-License-Identifier: Apache-2.0
"""DiT against diffusers' and the authors', through files."""

import dataclasses
import json
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny_models
import torch
import torch_dit

from cc_jax.core import config_json, convert, pickles, tree, weight_files
from cc_jax.models import dit, hub, layers, patches

TINY = dataclasses.replace(
  tiny_models.TINY["dit"], depth=3, heads=4, out_channels=8
)
CONFIGS = {
  "learned_variance": TINY,
  "one_head": dataclasses.replace(TINY, heads=1, head_width=16),
  "plain": dataclasses.replace(TINY, out_channels=None, patch=4, eps=1e-6),
}
NULL = TINY.classes


def make(config, **options):
  return dit.DiT(config, rngs=layers.keys(0), **options)


def random(config, **options):
  structure, shapes = parity.abstract(lambda: make(config, **options))
  params = parity.scramble(shapes)
  return tree.merge(structure, params), params


def inputs(config, size=(8, 8), labels=(2, NULL)):
  rng = np.random.default_rng(1)
  xt = rng.standard_normal((len(labels), *size, config.in_channels))
  t = np.array([7, 810][: len(labels)], np.int32)
  return jnp.asarray(xt, jnp.float32), jnp.asarray(t), jnp.asarray(labels)


@jax.jit
def run(model, xt, t, labels):
  return model(xt, t, labels)


def theirs(model, xt, t, labels):
  xt, t, labels = (torch.tensor(np.asarray(one)) for one in (xt, t, labels))
  with torch.no_grad():
    return model(xt.movedim(-1, 1), t, class_labels=labels.long())


@pytest.mark.parametrize("name", CONFIGS)
def test_our_weights_give_the_same_output_in_diffusers(name, tmp_path):
  config = CONFIGS[name]
  model, params = random(config)
  hub.save(str(tmp_path), "dit", config, params)
  reference, report = diffusers.DiTTransformer2DModel.from_pretrained(
    str(tmp_path), output_loading_info=True
  )
  assert not any(report.values()), report
  written = config_json.export_config(config, dit.CONFIG)
  parity.check_config(written, reference.config)
  batch = inputs(config)
  expected = theirs(reference.eval(), *batch).sample.movedim(1, -1)
  parity.check(run(model, *batch), expected, parity.MODEL)


# As facebook/DiT-XL-2-256 has them: of the class for many models.
OLD = {
  "_class_name": "Transformer2DModel",
  "_diffusers_version": "0.12.0.dev0",
  "cross_attention_dim": None,
  "num_vector_embeds": None,
  "only_cross_attention": False,
  "use_linear_projection": False,
}


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_files_of_diffusers_give_the_same_output_here(old, tmp_path):
  torch.manual_seed(0)
  settings = config_json.export_config(TINY, dit.CONFIG)
  reference = diffusers.DiTTransformer2DModel.from_config(settings).eval()
  # Each block has a copy of what reads timestep and class.
  shared = reference.transformer_blocks[0].norm1.emb.state_dict()
  for block in reference.transformer_blocks:
    block.norm1.emb.load_state_dict(shared)
  reference.save_pretrained(tmp_path)
  if old:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OLD))
  loaded = hub.load(str(tmp_path), "dit")
  assert loaded.config == TINY
  structure, _ = parity.abstract(lambda: make(TINY))
  batch = inputs(TINY)
  parity.check(
    run(tree.merge(structure, loaded.params), *batch),
    theirs(reference, *batch).sample.movedim(1, -1),
    parity.MODEL,
  )


def test_blocks_that_read_the_timestep_in_ways_of_their_own_are_refused(
  tmp_path,
):
  _, params = random(TINY)
  tensors = convert.export_weights(params, dit.NAMES)
  name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
  tensors[name] = tensors[name] + 1
  settings = config_json.export_config(TINY, dit.CONFIG)
  stem = "diffusion_pytorch_model"
  weight_files.save_folder(str(tmp_path), tensors, settings, stem=stem)
  with pytest.raises(ValueError, match=rf"{name} differs from .*blocks\.0\."):
    hub.load(str(tmp_path), "dit")


@pytest.mark.parametrize("training", [False, True], ids=["plain", "training"])
def test_files_of_the_authors_give_the_same_output_here(training, tmp_path):
  torch.manual_seed(0)
  reference = torch_dit.DiT(size=8, width=144, n=2, depth=2, classes=5).eval()
  with torch.no_grad():
    for weight in reference.parameters():
      if weight.requires_grad:
        weight.normal_(std=0.1)
  file, state = str(tmp_path / "DiT.pt"), reference.state_dict()
  form = dit.FORMATS[training]
  torch.save({"ema": state, "opt": 0} if training else state, file)
  tensors = pickles.open_tensors(file, *form.keys)
  assert form.marker in tensors
  config = form.config(tensors)
  assert config == dit.Config(
    sample_size=8,
    out_channels=8,
    heads=2,
    depth=2,
    classes=5,
    eps=1e-6,
    frequency_shift=0,
  )
  structure, shapes = parity.abstract(lambda: make(config))
  kept = {
    name: tensor
    for name, tensor in tensors.items()
    if not name.startswith(form.unused)
  }
  params = convert.import_weights(kept, shapes, form.names)
  batch = inputs(config)
  parity.check(
    run(tree.merge(structure, params), *batch),
    theirs_of_authors(reference, *batch),
    parity.MODEL,
  )
  back = convert.export_weights(params, form.names)
  for name in kept:
    np.testing.assert_array_equal(back.pop(name), state[name].numpy())
  assert not back


def theirs_of_authors(model, xt, t, labels):
  xt, t, labels = (torch.tensor(np.asarray(one)) for one in (xt, t, labels))
  with torch.no_grad():
    return model(xt.movedim(-1, 1), t, labels.long()).movedim(1, -1)


def test_a_file_without_its_table_of_positions_is_refused():
  with pytest.raises(ValueError, match=r"no pos_embed .* convert the file"):
    patches.sizes({})


def test_frequencies_of_the_authors_are_kept_in_files(tmp_path):
  config = dataclasses.replace(TINY, frequency_shift=0)
  model, params = random(config)
  hub.save(str(tmp_path), "dit", config, params)
  assert hub.load(str(tmp_path), "dit").config == config
  other, _ = random(TINY)
  batch = inputs(TINY)
  change = run(model, *batch) - run(other, *batch)
  assert np.abs(change).max() > 0.01


def test_the_preset_has_the_names_of_diffusers_and_the_published_size():
  config = dit.DIT_XL_2
  _, shapes = parity.abstract(lambda: make(config))
  # 675 million and the fixed table of places, 256 x 1152, which is no weight.
  assert tree.count(shapes) == 675_129_632 - 256 * 1152
  written = config_json.export_config(config, dit.CONFIG)
  with torch.device("meta"):
    model = diffusers.DiTTransformer2DModel.from_config(written)
  expected = {
    name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
  }
  assert convert.export_shapes(shapes, dit.NAMES) == expected


def test_a_fresh_network_predicts_nothing_and_its_blocks_do_nothing():
  model = jax.jit(lambda: make(TINY))()
  assert not run(model, *inputs(TINY)).any()
  zero = re.compile(r"(modulation|proj_out)\.(kernel|bias)$|bias$")
  for path, leaf in tree.flatten(model).items():
    assert bool(np.any(leaf)) != bool(zero.search(path)), path


def test_padding_tokens_are_seen_by_none():
  model, _ = random(TINY)
  xt, t, labels = inputs(TINY)
  tokens, positions = patches.patchify(xt, 2), patches.grid(4, 4, base=4)
  pad = lambda x, value: jnp.concatenate(
    [x, jnp.full((len(x), 3, *x.shape[2:]), value)], axis=1
  )
  mask = jnp.arange(19)[None] < 16
  padded = jax.jit(dit.DiT.on_tokens)(
    model, pad(tokens, 9.0), pad(positions[None], 5.0), t, labels, mask
  )
  plain = patches.patchify(run(model, xt, t, labels), 2)
  parity.check(padded[:, :16], plain, parity.MODEL)


def test_the_computation_is_in_the_type_asked_for_and_close():
  model, _ = random(TINY, dtype=jnp.bfloat16)
  exact, _ = random(TINY)
  batch = inputs(TINY)
  half, full = run(model, *batch), run(exact, *batch)
  assert half.dtype == jnp.float32
  assert 1e-4 < np.abs(half - full).max() / np.abs(full).max() < 0.1


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(heads=1, head_width=6), "heads=1 of head_width=6.* divide by 4"),
    (dict(patch=3), "sample_size=8 does not divide into patches of patch=3"),
  ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)


def test_a_transformer_of_pixart_is_refused():
  with pytest.raises(ValueError, match="norm_type='ada_norm_single'"):
    config_json.import_config(
      {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"},
      dit.Config,
      dit.CONFIG,
    )
