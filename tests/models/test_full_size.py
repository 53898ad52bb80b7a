# SPDX-License-Identifier: Apache-2.0
"""Networks of Stable Diffusion 2 at their true shapes, with random weights.

The text tower and PixArt are in test_clip.py and test_pixart.py.
"""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from cc_jax.core import tree
from cc_jax.models import autoencoder, hub, kinds, unet

pytestmark = pytest.mark.slow


def saved(kind, config, folder):
  """Random weights, through files: (structure, our params from there)."""
  structure, shapes = kinds.structure(kind, config)
  hub.save(str(folder), kind, config, parity.scramble(shapes))
  loaded = hub.load(str(folder), kind, expect=config)
  return structure, jax.tree.map(jnp.asarray, loaded.params)


def normal(*shape):
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def channels_first(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def channels_last(tensor):
  return tensor.permute(0, 2, 3, 1).numpy()


def test_the_unet_of_sd2_gives_the_same_output(tmp_path):
  """Needs 12 GB of memory."""
  structure, params = saved("unet", unet.SD2, tmp_path)
  assert tree.count(params) == 865_910_724
  run = jax.jit(lambda params, *args: tree.merge(structure, params)(*args))
  t, context = np.array([1, 977], np.int32), normal(2, 77, 1024)
  maps = [normal(2, 32, 32, 4), normal(2, 24, 40, 4)]
  ours = [np.asarray(run(params, xt, t, context)) for xt in maps]
  del params
  reference = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path, low_cpu_mem_usage=False
  ).eval()
  for xt, found in zip(maps, ours, strict=True):
    with torch.no_grad():
      theirs = reference(
        channels_first(xt), torch.from_numpy(t), torch.from_numpy(context)
      ).sample
    parity.check(found, channels_last(theirs), parity.MODEL)


def test_the_autoencoder_of_sd_gives_the_same_latents_and_images(tmp_path):
  """Needs 3 GB of memory."""
  structure, params = saved("autoencoder", autoencoder.SD, tmp_path)
  assert tree.count(params) == 83_653_863
  model = tree.merge(structure, params)
  x, z = np.tanh(normal(1, 256, 192, 3)), normal(1, 32, 24, 4)
  mean, std = jax.jit(model.encode)(x)
  image = jax.jit(model.decode)(z)
  reference = diffusers.AutoencoderKL.from_pretrained(
    tmp_path, low_cpu_mem_usage=False
  ).eval()
  with torch.no_grad():
    found = reference.encode(channels_first(x)).latent_dist
    decoded = reference.decode(channels_first(z)).sample
  parity.check(mean, channels_last(found.mean), parity.MODEL)
  parity.check(std, channels_last(found.std), parity.MODEL)
  parity.check(image, channels_last(decoded), parity.MODEL)
