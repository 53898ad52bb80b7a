# SPDX-License-Identifier: Apache-2.0
"""PixArt-alpha against diffusers' and the authors', through files."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny_models
import torch
import torch_dit

from cc_jax.core import config_json, convert, pickles, tree
from cc_jax.models import hub, layers, patches, pixart

PLAIN = dataclasses.replace(tiny_models.TINY["pixart"], depth=3)
MICRO = dataclasses.replace(PLAIN, micro_conditions=True)
CONFIGS = {
  "plain": PLAIN,
  "micro_conditions": MICRO,
  "four_heads": dataclasses.replace(
    MICRO, heads=4, sample_size=16, interpolation_scale=2, patch=4
  ),
  "unprojected": dataclasses.replace(
    PLAIN, caption_width=None, out_channels=None, eps=1e-4
  ),
}
# The third is of more patches than the square, the others of as many or fewer.
SIZES = [(8, 8), (4, 12), (16, 8)]
MASK = np.array([[1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]], bool)


def make(config, **options):
  return pixart.PixArt(config, rngs=layers.keys(0), **options)


def random(config, **options):
  structure, shapes = parity.abstract(lambda: make(config, **options))
  params = parity.scramble(shapes)
  return tree.merge(structure, params), params


def inputs(config, size=(8, 8), tokens=6):
  rng = np.random.default_rng(1)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  batch = {
    "xt": normal(2, *size, config.in_channels),
    "t": np.array([7, 810], np.int32),
    "context": normal(2, tokens, config.source_width),
    "mask": MASK[:, :tokens],
  }
  if config.micro_conditions:
    batch["sizes"] = np.array([[512, 768], [1024, 960]], np.float32)
    batch["ratio"] = batch["sizes"][:, 0] / batch["sizes"][:, 1]
  return {name: jnp.asarray(array) for name, array in batch.items()}


@jax.jit
def run(model, batch):
  return model(**batch)


def in_torch(batch):
  found = {name: torch.tensor(np.asarray(batch[name])) for name in batch}
  return found | {"xt": found["xt"].movedim(-1, 1)}


def theirs(model, batch):
  """diffusers' output for our inputs, channels last."""
  given, added = in_torch(batch), None
  if "sizes" in given:
    added = {"resolution": given["sizes"], "aspect_ratio": given["ratio"]}
  with torch.no_grad():
    out = model(
      given["xt"],
      given["context"],
      given["t"],
      added_cond_kwargs=added,
      encoder_attention_mask=given["mask"].float(),
    )
  return out.sample.movedim(1, -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_weights_give_the_same_output_in_diffusers(name, tmp_path):
  config = CONFIGS[name]
  model, params = random(config)
  hub.save(str(tmp_path), "pixart", config, params)
  reference, report = diffusers.PixArtTransformer2DModel.from_pretrained(
    str(tmp_path), output_loading_info=True
  )
  assert not any(report.values()), report
  written = config_json.export_config(config, pixart.CONFIG)
  parity.check_config(written, reference.config)
  for size in SIZES:
    batch = inputs(config, size)
    expected = theirs(reference.eval(), batch)
    parity.check(run(model, batch), expected, parity.MODEL)


# As published configs have them: of the class for many models.
OLD = {
  "_class_name": "Transformer2DModel",
  "_diffusers_version": "0.22.0.dev0",
  "double_self_attention": False,
  "num_vector_embeds": None,
  "only_cross_attention": False,
  "use_linear_projection": False,
}


def reference(config):
  torch.manual_seed(0)
  settings = config_json.export_config(config, pixart.CONFIG)
  model = diffusers.PixArtTransformer2DModel.from_config(settings).eval()
  with torch.no_grad():
    model.scale_shift_table.normal_()
  return model


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("config", [PLAIN, MICRO], ids=["plain", "micro"])
def test_files_of_diffusers_give_the_same_output_here(config, old, tmp_path):
  model = reference(config)
  model.save_pretrained(str(tmp_path))
  if old:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OLD))
  loaded = hub.load(str(tmp_path), "pixart")
  assert loaded.config == config
  structure, _ = parity.abstract(lambda: make(config))
  ours, batch = tree.merge(structure, loaded.params), inputs(config, (8, 4))
  parity.check(run(ours, batch), theirs(model, batch), parity.MODEL)


def test_a_null_caption_is_kept_where_a_file_has_one(tmp_path):
  model = reference(PLAIN)
  null = torch.randn(6, PLAIN.caption_width)
  model.caption_projection.register_buffer("y_embedding", null)
  model.save_pretrained(str(tmp_path))
  loaded = hub.load(str(tmp_path), "pixart", expect=PLAIN)
  assert loaded.config == dataclasses.replace(PLAIN, null_tokens=6)
  np.testing.assert_array_equal(loaded.params["null_caption"], null.numpy())
  hub.save(str(tmp_path / "ours"), "pixart", loaded.config, loaded.params)
  again = hub.load(str(tmp_path / "ours"), "pixart")
  assert again.config == loaded.config
  assert again.hash == loaded.hash
  # diffusers opens it, and has no use for the null caption.
  _, report = diffusers.PixArtTransformer2DModel.from_pretrained(
    str(tmp_path / "ours"), output_loading_info=True
  )
  unused = report.pop("unexpected_keys")
  assert unused == ["caption_projection.y_embedding"]
  assert not any(report.values()), report


def test_dropped_captions_become_the_null_caption():
  model, params = random(dataclasses.replace(PLAIN, null_tokens=6))
  context = inputs(PLAIN)["context"][:, :5]
  out = model.drop(context, jnp.array([False, True]))
  np.testing.assert_array_equal(out[0], context[0])
  np.testing.assert_array_equal(out[1], params["null_caption"][:5])
  with pytest.raises(ValueError, match="5 tokens, and null_tokens=0; set"):
    random(PLAIN)[0].drop(context, jnp.array([False, True]))


@pytest.mark.parametrize("micro", [False, True], ids=["plain", "micro"])
def test_files_of_the_authors_give_the_same_output_here(micro, tmp_path):
  torch.manual_seed(0)
  theirs = torch_dit.PixArt(8, 144, 2, 2, source=10, tokens=6, micro=micro)
  with torch.no_grad():
    for weight in theirs.parameters():
      weight.normal_(std=0.1)
  file, state = str(tmp_path / "PixArt.pth"), theirs.state_dict()
  other = {name: torch.zeros_like(array) for name, array in state.items()}
  torch.save({"state_dict": other, "state_dict_ema": state, "epoch": 3}, file)
  form = pixart.FORMATS[0]
  tensors = pickles.open_tensors(file, *form.keys)
  assert form.marker in tensors
  config = form.config(tensors)
  assert config == pixart.Config(
    sample_size=8,
    heads=2,
    depth=2,
    caption_width=10,
    micro_conditions=micro,
    null_tokens=6,
  )
  structure, shapes = parity.abstract(lambda: make(config))
  kept = {
    name: tensor
    for name, tensor in tensors.items()
    if not name.startswith(form.unused)
  }
  params = convert.import_weights(kept, shapes, form.names)
  ours = tree.merge(structure, params)
  for size in SIZES:
    batch = inputs(config, size)
    with torch.no_grad():
      expected = theirs(*in_torch(batch).values()).movedim(1, -1)
    parity.check(run(ours, batch), expected, parity.MODEL)
  back = convert.export_weights(params, form.names)
  for name in kept:
    np.testing.assert_array_equal(back.pop(name), state[name].numpy())
  assert not back


@pytest.mark.parametrize(
  ("preset", "scalars"),
  [
    ("XL_256", 610_856_096),
    ("XL_512", 610_856_096),
    ("XL_1024", 611_349_152),
  ],
)
def test_presets_have_the_names_of_diffusers_and_the_published_size(
  preset, scalars
):
  config = getattr(pixart, preset)
  _, shapes = parity.abstract(lambda: make(config))
  assert tree.count(shapes) == scalars
  written = config_json.export_config(config, pixart.CONFIG)
  with torch.device("meta"):
    model = diffusers.PixArtTransformer2DModel.from_config(written)
  expected = {
    name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
  }
  assert convert.export_shapes(shapes, pixart.NAMES) == expected
  parity.check_config(written, model.config)


@pytest.mark.slow
def test_the_largest_preset_gives_the_same_output_in_diffusers():
  config = pixart.XL_1024
  structure, shapes = parity.abstract(lambda: make(config))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    array = rng.standard_normal(leaf.shape, np.float32)
    if path.endswith("kernel"):
      # As wide as in a trained network: attention is not everywhere alike.
      array /= np.prod(leaf.shape[path.startswith("blocks") : -1]) ** 0.5
    else:
      array *= 0.1
    return array

  flat = {path: draw(path, leaf) for path, leaf in tree.flatten(shapes).items()}
  params = tree.unflatten(flat)
  with torch.device("meta"):
    model = diffusers.PixArtTransformer2DModel.from_config(
      config_json.export_config(config, pixart.CONFIG)
    )
  tensors = {
    name: torch.from_numpy(array)
    for name, array in convert.export_weights(params, pixart.NAMES).items()
  }
  model.load_state_dict(tensors, assign=True)
  batch = inputs(config, (64, 48))
  expected = theirs(model.eval(), batch)
  del model, tensors
  ours = run(tree.merge(structure, params), batch)
  parity.check(ours, expected, parity.MODEL)


def test_what_is_not_said_follows_from_the_size():
  for size, scale, micro in ((32, 1, False), (64, 1, False), (128, 2, True)):
    config = pixart.Config(sample_size=size)
    assert config.interpolation_scale == scale
    assert config.micro_conditions is micro
    theirs = config_json.export_config(config, pixart.CONFIG)
    assert theirs["use_additional_conditions"] is micro
  theirs = {"sample_size": 32, "interpolation_scale": 0.5}
  found = config_json.import_config(theirs, pixart.Config, pixart.CONFIG)
  assert found.interpolation_scale == 0.5


def test_a_fresh_network_predicts_nothing_and_does_not_read_captions():
  model = jax.jit(lambda: make(MICRO))()
  assert not run(model, inputs(MICRO)).any()
  flat = tree.flatten(model)
  zero = {path for path, leaf in flat.items() if not np.any(leaf)}
  biases = {path for path in flat if path.endswith("bias")}
  assert zero == {*biases, "blocks.attn2.out.kernel", "proj_out.kernel"}
  for path in ("blocks.table", "final_table"):
    np.testing.assert_allclose(np.std(flat[path]), 24**-0.5, rtol=0.3)


def test_buckets_padded_to_one_length_give_what_each_gives_alone():
  model, _ = random(MICRO)
  tokens, positions, masks, alone = [], [], [], []
  batch = inputs(MICRO)
  for row, size in enumerate(((8, 6), (4, 10))):
    one = {name: array[row : row + 1] for name, array in batch.items()}
    one["xt"] = inputs(MICRO, size)["xt"][row : row + 1]
    alone.append(run(model, one))
    cut = patches.patchify(one["xt"], 2)[0]
    places = patches.grid(size[0] // 2, size[1] // 2, base=4)
    pad = ((0, 16 - len(cut)), (0, 0))
    tokens.append(np.pad(cut, pad, constant_values=9))
    positions.append(np.pad(places, pad))
    masks.append(np.arange(16) < len(cut))
  del batch["xt"]
  arrays = (jnp.asarray(np.stack(x)) for x in (tokens, positions, masks))
  cut, places, mask = arrays
  out = jax.jit(type(model).on_tokens)(
    model, cut, places, **batch, token_mask=mask
  )
  for row, (size, expected) in enumerate(
    zip(((8, 6), (4, 10)), alone, strict=True)
  ):
    count = size[0] * size[1] // 4
    back = patches.unpatchify(out[row : row + 1, :count], *size, 2)
    parity.check(back, expected, parity.MODEL)


def test_gradients_are_the_same_whatever_is_kept():
  config = dataclasses.replace(PLAIN, depth=2)
  batch = inputs(config)

  def gradient(structure, params):
    loss = lambda params: jnp.square(tree.merge(structure, params)(**batch))
    return tree.flatten(jax.jit(jax.grad(lambda p: loss(p).mean()))(params))

  structures = [
    tree.split(random(config, remat=remat)[0])[0]
    for remat in ("none", "dots", "full")
  ]
  _, params = random(config)
  expected, *others = (gradient(one, params) for one in structures)
  for path, leaf in expected.items():
    # One number added to all of a query's keys is nothing to a softmax.
    if not path.endswith(".k.bias"):
      assert np.abs(leaf).max() > 1e-5, path
      for found in others:
        parity.check(found[path], leaf, parity.MODEL)


def test_the_computation_is_in_the_type_asked_for_and_close():
  model, _ = random(MICRO, dtype=jnp.bfloat16)
  exact, _ = random(MICRO)
  batch = inputs(MICRO)
  half, full = run(model, batch), run(exact, batch)
  assert half.dtype == jnp.float32
  assert 1e-4 < np.abs(half - full).max() / np.abs(full).max() < 0.1


@pytest.mark.parametrize(
  ("config", "change", "message"),
  [
    (PLAIN, {"sizes": jnp.ones((2, 2))}, "without micro_conditions; leave"),
    (MICRO, {"ratio": None}, "micro_conditions need sizes and ratio"),
    (PLAIN, {"context": jnp.ones((2, 6, 9))}, "width 9; .*caption_width=10"),
    (PLAIN, {"xt": jnp.ones((2, 7, 8, 4))}, "7 x 8 do not divide into patch"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(config, change, message):
  model, _ = random(config)
  with pytest.raises(ValueError, match=message):
    model(**(inputs(config) | change))


def test_a_width_that_three_conditions_do_not_share_is_refused():
  with pytest.raises(ValueError, match=r"heads=2 of head_width=8.* by 3 for"):
    dataclasses.replace(MICRO, head_width=8)
