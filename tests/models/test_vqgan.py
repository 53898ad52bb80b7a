# SPDX-License-Identifier: Apache-2.0
"""VQGAN against diffusers', taming's and HFAiLab's, through their files."""

import dataclasses
import json
import pathlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import vqgan_torch

from cc_jax.core import config_json, convert, pickles, safetensors_files, tree
from cc_jax.models import kinds, layers, vqgan

STEM = "diffusion_pytorch_model"
TINY = vqgan.Config(
  channels=(8, 16),
  attention=(False, True),
  groups=4,
  latent_channels=6,
  codebook_size=40,
  codebook_width=5,
)
CONFIGS = {
  "one level": vqgan.Config(channels=(9,), groups=3, codebook_size=20),
  "two levels": TINY,
  "three levels": vqgan.Config(
    in_channels=1,
    out_channels=2,
    channels=(5, 10, 15),
    attention=(True, False, True),
    groups=5,
    layers_per_block=2,
    mid_attention=False,
    codebook_size=33,
  ),
  "no attention": dataclasses.replace(TINY, attention=(False, False)),
}
# The published shape, narrow: tables of names are those of the real files.
NARROW = dict(
  channels=(4, 4, 8, 8, 12),
  groups=4,
  latent_channels=8,
  codebook_size=50,
  codebook_width=8,
)
# Attention in the middle, another depth and number of levels.
OTHER = dict(
  channels=(4, 8, 8), attention=(False, True, False), layers_per_block=1
)


def make(config, **options):
  return vqgan.VQGAN(config, rngs=layers.keys(0), **options)


def weights(config):
  structure, shapes = parity.abstract(lambda: make(config))
  return structure, parity.scramble(shapes)


def normal(*shape):
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def first(array):
  return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2)


def last(tensor):
  return tensor.permute(0, 2, 3, 1).numpy()


@jax.jit
def run(model, x):
  z = model.encode(x)
  zq, codes = model.quantise(z)
  return z, codes, model.decode(zq), model.decode_codes(codes)


def check(model, config, x, encode, quantise, decode):
  """Vectors, codes and images are those of torch: [B C H W] in and out."""
  z, codes, image, again = run(model, x)
  assert codes.dtype == jnp.int32
  with torch.no_grad():
    theirs = encode(first(x))
    expected = quantise(theirs)
    parity.check(z, last(theirs), parity.MODEL)
    np.testing.assert_array_equal(codes.reshape(-1), expected.reshape(-1))
    assert len(np.unique(codes)) > 2
    reference = last(decode(theirs, expected.reshape(codes.shape)))
  parity.check(image, reference, parity.MODEL)
  np.testing.assert_array_equal(image, again)
  B, H, W, _ = x.shape
  assert codes.shape == (B, H // config.factor, W // config.factor)


def check_diffusers(model, config, theirs, size=(16, 24)):
  def decode(z, codes):
    """By the vectors, and by codes alone."""
    image = theirs.decode(z).sample
    shape = (*codes.shape, theirs.quantize.vq_embed_dim)
    options = dict(force_not_quantize=True, shape=shape)
    other = theirs.decode(codes.reshape(-1), **options).sample
    torch.testing.assert_close(other, image, atol=1e-4, rtol=1e-4)
    return image

  check(
    model,
    config,
    normal(2, *size, config.in_channels),
    lambda x: theirs.encode(x).latents,
    lambda z: theirs.quantize(z)[2][2],
    decode,
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_our_weights_give_the_same_results_in_diffusers(name, tmp_path):
  config = CONFIGS[name]
  structure, params = weights(config)
  parity.save(tmp_path, params, config, vqgan.NAMES, vqgan.CONFIG, STEM)
  theirs = diffusers.VQModel.from_pretrained(tmp_path).eval()
  check_diffusers(tree.merge(structure, params), config, theirs)


@pytest.mark.parametrize("name", ["two levels", "three levels"])
def test_files_of_diffusers_give_the_same_results_here(name, tmp_path):
  config = CONFIGS[name]
  theirs = diffusers.VQModel.from_config(
    config_json.export_config(config, vqgan.CONFIG)
  )
  vqgan_torch.random(theirs).save_pretrained(tmp_path)
  loaded, ours = parity.load(
    tmp_path, make, vqgan.Config, vqgan.NAMES, vqgan.CONFIG
  )
  assert loaded == config
  # An odd height and width lose their last row and column.
  check_diffusers(ours, config, theirs, (13, 11))


def test_another_eps_travels_in_our_own_folder(tmp_path):
  config = dataclasses.replace(TINY, eps=1e-2)
  _, params = weights(config)
  parity.save(tmp_path, params, config, vqgan.NAMES, vqgan.CONFIG, STEM)
  loaded, ours = parity.load(
    tmp_path, make, vqgan.Config, vqgan.NAMES, vqgan.CONFIG
  )
  assert loaded == config
  # diffusers opens the folder all the same, but has no such field.
  theirs = diffusers.VQModel.from_pretrained(tmp_path).eval()
  x = jnp.asarray(normal(2, 16, 24, 3))
  with torch.no_grad():
    with pytest.raises(AssertionError):
      parity.check(
        ours.encode(x), last(theirs.encode(first(x)).latents), parity.MODEL
      )
    for module in theirs.modules():
      if isinstance(module, torch.nn.GroupNorm):
        module.eps = 1e-2
  check_diffusers(ours, config, theirs)


def test_a_config_of_diffusers_has_its_eps(tmp_path):
  config = config_json.export_config(TINY, vqgan.CONFIG)
  assert "norm_eps" not in config
  theirs = {"_class_name": "VQModel", "scaling_factor": 0.3}
  found = config_json.import_config(theirs, vqgan.Config, vqgan.CONFIG)
  assert found == vqgan.Config()
  assert found.eps == 1e-6
  parity.check_config(
    config_json.export_config(found, vqgan.CONFIG),
    {**diffusers.VQModel().config, "lookup_from_codebook": True},
  )


FORMATS = {
  "taming": (vqgan_torch.Taming, vqgan.F16_16384, vqgan.TAMING_FORMAT),
  "HFAiLab": (vqgan_torch.HFAiLab, vqgan.HFAILAB, vqgan.HFAILAB_FORMAT),
}
TABLES = {"taming": vqgan.taming_names, "HFAiLab": vqgan.hfailab_names}


def check_format(module, config, params):
  structure, _ = parity.abstract(lambda: make(config))
  entries = module.table()

  def quantise(z):
    vectors = z.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cdist(vectors, entries).argmin(1)

  def decode(z, codes):
    return module.decode(entries[codes].permute(0, 3, 1, 2))

  model = tree.merge(structure, params)
  x = normal(2, 48, 32, 3)
  check(model, config, x, module.encode, quantise, decode)


@pytest.mark.parametrize("change", [NARROW, NARROW | OTHER], ids=["f16", "f4"])
@pytest.mark.parametrize("origin", FORMATS)
def test_files_of_other_origins_give_the_same_results(origin, change):
  kind, published, spelling = FORMATS[origin]
  config = dataclasses.replace(published, **change)
  names = TABLES[origin](config)
  if change is NARROW:
    assert names == spelling.names
  module = vqgan_torch.random(kind(config))
  _, shapes = parity.abstract(lambda: make(config))
  check_format(module, config, parity.adopt(module, shapes, names))


@pytest.mark.parametrize("origin", FORMATS)
def test_published_files_hold_more_than_the_network(origin, tmp_path):
  """A torch file is read by its format alone: keys, what is unused, names."""
  kind, published, spelling = FORMATS[origin]
  config = dataclasses.replace(published, **NARROW)
  module = vqgan_torch.random(kind(config))
  state = module.state_dict()
  assert spelling.marker in state
  for other, *_ in (FORMATS[name] for name in FORMATS if name != origin):
    assert spelling.marker not in other(config).state_dict()
  state[f"{spelling.unused[0]}layer.weight"] = torch.ones(2)
  file = str(tmp_path / "last.ckpt")
  torch.save({spelling.keys[0]: state, "epoch": 3, "opt": {"lr": 0.1}}, file)
  tensors = {
    name: tensor
    for name, tensor in pickles.open_tensors(file, *spelling.keys).items()
    if not name.startswith(spelling.unused)
  }
  _, shapes = parity.abstract(lambda: make(config))
  read = convert.import_weights(tensors, shapes, spelling.names)
  adopted = parity.adopt(module, shapes, spelling.names)
  jax.tree.map(np.testing.assert_array_equal, read, adopted)


@pytest.mark.parametrize("origin", FORMATS)
def test_a_format_names_every_tensor_of_the_published_size(origin):
  kind, published, spelling = FORMATS[origin]
  assert spelling in kinds.KINDS["vqgan"].formats
  _, shapes = parity.abstract(lambda: make(published))
  with torch.device("meta"):
    module = kind(published)
  expected = {
    # Taming's attention is of 1x1 convolutions, ours of matrices.
    name: tuple(tensor.shape[:2])
    if "attn" in name and tensor.shape[2:] == (1, 1)
    else tuple(tensor.shape)
    for name, tensor in module.state_dict().items()
  }
  assert convert.export_shapes(shapes, spelling.names) == expected
  config = spelling.config
  tensors = {
    name: safetensors_files.Tensor(shape, np.dtype("float32"), None)
    for name, shape in expected.items()
  }
  assert (config(tensors) if callable(config) else config) == published


@pytest.mark.parametrize("preset", ["F16_16384", "F16_1024", "HFAILAB"])
def test_presets_have_the_names_of_diffusers(preset):
  config = getattr(vqgan, preset)
  _, shapes = parity.abstract(lambda: make(config))
  codebook = 1024 * 256 if preset == "F16_1024" else 4_194_304
  counts = {part: tree.count(shape) for part, shape in shapes.items()}
  assert counts["encoder"] == 29_298_176
  assert counts["decoder"] == 42_449_795
  assert counts["quant_conv"] + counts["post_quant_conv"] == 131_584
  assert counts["codebook"] == codebook
  assert tree.count(shapes) == 76_073_859 - 4_194_304 + codebook
  written = config_json.export_config(config, vqgan.CONFIG)
  eps = written.pop("norm_eps", 1e-6)
  assert eps == (1e-5 if preset == "HFAILAB" else 1e-6)
  with torch.device("meta"):
    model = diffusers.VQModel.from_config(written)
  expected = {
    name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
  }
  assert convert.export_shapes(shapes, vqgan.NAMES) == expected
  parity.check_config(written, model.config)
  assert config.factor == 16


def brute(z, table):
  """The definition, in float64."""
  z, table = (np.asarray(array, np.float64) for array in (z, table))
  difference = z[..., None, :] - table
  return np.square(difference).sum(-1).argmin(-1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_are_those_of_the_nearest_entries(dtype):
  """Of initial entries, all within 1 / V of 0; whatever the model's type."""
  config = dataclasses.replace(TINY, codebook_size=500)
  model = make(config, dtype=jnp.dtype(dtype))
  table = np.asarray(model.codebook.embedding[...])
  assert 0.0019 < np.abs(table).max() <= 1 / 500
  z = normal(2, 7, 5, 5) / 500
  zq, codes = jax.jit(lambda model, z: model.quantise(z))(model, z)
  np.testing.assert_array_equal(codes, brute(z, table))
  assert zq.dtype == jnp.float32
  np.testing.assert_array_equal(zq, table[np.asarray(codes)])
  every = jnp.arange(500, dtype=jnp.int32).reshape(1, 20, 25)
  _, again = model.quantise(model.lookup(every))
  np.testing.assert_array_equal(again, every)


def test_of_equal_entries_the_first_is_taken():
  model = make(TINY)
  table = np.array(model.codebook.embedding[...])
  table[20:] = table[:20]
  model.codebook.embedding[...] = jnp.asarray(table)
  z = jnp.asarray(table[None, None, 20:])
  _, codes = model.quantise(z)
  np.testing.assert_array_equal(codes[0, 0], np.arange(20))


def test_a_code_without_an_entry_shows():
  codes = jnp.array([[[39, 40]]], jnp.int32)
  found = np.isnan(make(TINY).lookup(codes)).any(-1)
  np.testing.assert_array_equal(found, [[[False, True]]])


def test_bfloat16_is_close_to_float32():
  structure, params = weights(TINY)
  half, _ = parity.abstract(lambda: make(TINY, dtype=jnp.bfloat16))
  exact, model = (tree.merge(s, params) for s in (structure, half))
  x, codes = normal(2, 16, 24, 3), np.arange(24, dtype=np.int32)
  both = jax.jit(lambda m, x, codes: (m.encode(x), m.decode_codes(codes)))
  given = x, codes.reshape(2, 3, 4)
  for ours, expected in zip(
    both(model, *given), both(exact, *given), strict=True
  ):
    assert ours.dtype == jnp.float32
    parity.check(ours, expected, 0.1)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(channels=(8, 10)), "10 does not divide into groups=4"),
    (dict(attention=(True,)), "expected one value for each of channels="),
  ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)


def test_a_model_of_another_kind_is_refused(tmp_path):
  written = config_json.export_config(TINY, vqgan.CONFIG)
  blocks = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
  theirs = written | {"norm_type": "spatial"}
  with pytest.raises(ValueError, match="norm_type='spatial'"):
    config_json.import_config(theirs, vqgan.Config, vqgan.CONFIG)
  theirs = written | {"up_block_types": blocks}
  with pytest.raises(ValueError, match=r"up_block_types=.*expected.*AttnUp"):
    config_json.import_config(theirs, vqgan.Config, vqgan.CONFIG)
  _, params = weights(TINY)
  parity.save(tmp_path, params, TINY, vqgan.NAMES, vqgan.CONFIG, STEM)
  path = pathlib.Path(tmp_path) / "config.json"
  path.write_text(json.dumps({**written, "num_vq_embeddings": 41}))
  with pytest.raises(ValueError, match=r"expected \(41, 5\), got \(40, 5\)"):
    parity.load(tmp_path, make, vqgan.Config, vqgan.NAMES, vqgan.CONFIG)
