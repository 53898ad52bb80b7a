# SPDX-License-Identifier: Apache-2.0
"""The autoencoder against diffusers', through files, and its presets."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from cc_jax.core import config_json, convert, tree, weight_files
from cc_jax.models import autoencoder, layers

TWO = autoencoder.Config(channels=(8, 16), groups=4)
# Levels, channels that are odd, blocks a level, no attention, free in and out.
CONFIGS = {
  "one level": autoencoder.Config(channels=(9,), groups=3, latent_channels=2),
  "two levels": TWO,
  "three levels": autoencoder.Config(
    channels=(5, 10, 15), groups=5, layers_per_block=2, mid_attention=False
  ),
  "four levels": autoencoder.Config(
    in_channels=1, out_channels=2, channels=(4, 4, 8, 8), groups=4
  ),
}


def make(config, **options):
  return autoencoder.AutoencoderKL(config, rngs=layers.keys(0), **options)


def weights(config):
  structure, shapes = parity.abstract(lambda: make(config))
  return structure, parity.scramble(shapes)


def normal(*shape):
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def first(array):
  return torch.from_numpy(array).permute(0, 3, 1, 2)


def last(tensor):
  return tensor.permute(0, 2, 3, 1).numpy()


@jax.jit
def both(model, x, z):
  return *model.encode(x), model.decode(z)


def check(ours, theirs, config, size=(16, 24)):
  """Means, standard deviations and images of both are the same."""
  x = normal(2, *size, config.in_channels)
  z = normal(2, 3, 5, config.latent_channels)
  with torch.no_grad():
    latents = theirs.encode(first(x)).latent_dist
    image = theirs.decode(first(z)).sample
  expected = last(latents.mean), last(latents.std), last(image)
  for array, reference in zip(both(ours, x, z), expected, strict=True):
    parity.check(array, reference, parity.MODEL)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_weights_give_the_same_results_in_diffusers(name, tmp_path):
  config = CONFIGS[name]
  structure, params = weights(config)
  parity.save(
    tmp_path,
    params,
    config,
    autoencoder.NAMES,
    autoencoder.CONFIG,
    "diffusion_pytorch_model",
  )
  theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path).eval()
  check(tree.merge(structure, params), theirs, config)


@pytest.mark.parametrize("name", ["two levels", "three levels"])
def test_files_of_diffusers_give_the_same_results_here(name, tmp_path):
  config = CONFIGS[name]
  torch.manual_seed(0)
  theirs = diffusers.AutoencoderKL.from_config(
    config_json.export_config(config, autoencoder.CONFIG)
  ).eval()
  theirs.save_pretrained(tmp_path)
  loaded, ours = parity.load(
    tmp_path,
    make,
    autoencoder.Config,
    autoencoder.NAMES,
    autoencoder.CONFIG,
  )
  assert loaded == config
  # An odd height and width lose their last row and column.
  check(ours, theirs, config, (13, 11))


def test_attention_of_early_files_is_read(tmp_path):
  """They name it query, key, value and store 1x1 convolutions."""
  _, params = weights(TWO)
  tensors = convert.export_weights(params, autoencoder.NAMES)
  early = {"to_q": "query", "to_k": "key", "to_v": "value"}
  old = {}
  for name, array in tensors.items():
    if "attentions" in name and "to_" in name:
      name = name.replace("to_out.0", "proj_attn")
      for new, legacy in early.items():
        name = name.replace(new, legacy)
      if name.endswith("weight"):
        array = array[:, :, None, None]
    old[name] = array
  assert old.keys() != tensors.keys()
  config = config_json.export_config(TWO, autoencoder.CONFIG)
  weight_files.save_folder(str(tmp_path), old, config, stem="model")
  read = convert.import_weights(
    weight_files.open_tensors(str(tmp_path)), params, autoencoder.NAMES
  )
  jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize("preset", ["SD", "SDXL"])
def test_presets_have_the_names_of_diffusers(preset):
  config = getattr(autoencoder, preset)
  _, shapes = parity.abstract(lambda: make(config))
  assert tree.count(shapes) == 83_653_863
  assert tree.count(shapes["encoder"]) + 72 == 34_163_664
  written = config_json.export_config(config, autoencoder.CONFIG)
  with torch.device("meta"):
    model = diffusers.AutoencoderKL.from_config(written)
  expected = {
    name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
  }
  assert convert.export_shapes(shapes, autoencoder.NAMES) == expected
  assert len(expected) == 248
  parity.check_config(written, model.config)
  assert config.factor == 8


def test_the_standard_deviation_stays_finite():
  """The logarithm of the variance is clipped to [-30, 20]."""
  structure, params = weights(TWO)
  last = params["quant_conv"]
  last["kernel"] = jnp.zeros_like(last["kernel"])
  last["bias"] = jnp.array([0, 0, 0, 0, -1e4, 1e4, 0, 2], jnp.float32)
  x, z = normal(2, 16, 24, 3), normal(2, 3, 5, 4)
  _, std, _ = both(tree.merge(structure, params), x, z)
  np.testing.assert_allclose(std[0, 0, 0], np.exp([-15, 10, 0, 1]), rtol=1e-6)


def test_bfloat16_is_close_to_float32():
  structure, params = weights(TWO)
  half, _ = parity.abstract(lambda: make(TWO, dtype=jnp.bfloat16))
  x, z = normal(2, 16, 24, 3), normal(2, 3, 5, 4)
  exact = both(tree.merge(structure, params), x, z)
  for ours, expected in zip(
    both(tree.merge(half, params), x, z), exact, strict=True
  ):
    assert ours.dtype == jnp.float32
    assert np.isfinite(ours).all()
    parity.check(ours, expected, 0.1)


def test_groups_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="10 does not divide into groups=4"):
    dataclasses.replace(TWO, channels=(8, 10))


def test_an_autoencoder_of_another_kind_is_refused():
  theirs = config_json.export_config(TWO, autoencoder.CONFIG)
  theirs = theirs | {"shift_factor": 0.1, "use_quant_conv": False}
  with pytest.raises(ValueError, match=r"shift_factor=0\.1.*use_quant_conv"):
    config_json.import_config(theirs, autoencoder.Config, autoencoder.CONFIG)
