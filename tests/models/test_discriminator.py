# SPDX-License-Identifier: Apache-2.0
"""PatchGAN against the same network in torch, through files."""

import discriminator_torch
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from cc_jax.core import config_json, convert, sharding, tree, weight_files
from cc_jax.models import discriminator, hub, kinds


def pixels(rows=3, size=(40, 27)):
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (rows, *size, 3)).astype(np.float32)


def run(config, params, x):
  structure, _ = kinds.structure("discriminator", config)
  return jax.jit(lambda p, x: tree.merge(structure, p)(x))(params, x)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_files_of_torch_give_the_same_logits(depth, tmp_path):
  config = discriminator.Config(channels=4, depth=depth)
  theirs = discriminator_torch.PatchGAN(4, depth)
  discriminator_torch.random(theirs)
  x = pixels(size=(64, 52))
  with torch.no_grad():
    expected = theirs(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
  # With the running statistics, which nothing reads.
  state = {name: array.numpy() for name, array in theirs.state_dict().items()}
  assert any("running_mean" in name for name in state)
  settings = config_json.export_config(config, discriminator.CONFIG)
  weight_files.save_folder(str(tmp_path), state, settings, stem="model")
  loaded = hub.load(str(tmp_path), "discriminator")
  assert loaded.config == config
  parity.check(run(config, loaded.params, x), expected, parity.LAYER)


def test_torch_reads_our_weights(tmp_path):
  config = discriminator.Config(channels=4, depth=2)
  params = parity.scramble(kinds.structure("discriminator", config)[1])
  theirs = discriminator_torch.PatchGAN(4, 2, running=False)
  tensors = convert.export_weights(params, discriminator.NAMES)
  theirs.load_state_dict(
    {name: torch.tensor(np.asarray(array)) for name, array in tensors.items()}
  )
  x = pixels()
  with torch.no_grad():
    expected = theirs(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
  parity.check(run(config, params, x), expected, parity.LAYER)


def test_the_published_one_has_as_many_weights_as_published():
  _, shapes = kinds.structure("discriminator", discriminator.PATCHES_70)
  assert tree.count(shapes) == 2_765_633
  theirs = parity.meta_shapes(
    lambda: discriminator_torch.PatchGAN(64, 3, running=False)
  )
  assert convert.export_shapes(shapes, discriminator.NAMES) == theirs


def test_norms_are_over_the_batch_of_all_devices():
  config = discriminator.Config(channels=4, depth=1)
  params = parity.scramble(kinds.structure("discriminator", config)[1])
  x = pixels(8, (8, 8))
  expected = run(config, params, x)
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    placed = sharding.put_batch(x, mesh)
    parity.check(run(config, params, placed), expected, parity.LAYER)


def test_group_norms_judge_each_image_by_itself():
  config = discriminator.Config(channels=4, depth=2, norm="group")
  params = parity.scramble(kinds.structure("discriminator", config)[1])
  x = pixels()
  alone = run(config, params, x[:1])
  parity.check(alone, run(config, params, x)[:1], parity.LAYER)
  norm = discriminator.Norm(8, "group", rngs=nnx.Rngs(0))
  h = jnp.asarray(pixels(2, (5, 6)) @ np.ones((3, 8), np.float32)) + 3
  theirs = torch.nn.functional.group_norm(
    torch.tensor(np.asarray(h)).permute(0, 3, 1, 2),
    8,
    torch.tensor(np.asarray(norm.scale[...])),
  )
  parity.check(norm(h), theirs.permute(0, 2, 3, 1), parity.LAYER)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"norm": "layer"}, "norm='layer'; expected batch or group"),
    ({"depth": 0}, "depth=0"),
  ],
)
def test_a_shape_that_cannot_be_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    discriminator.Config(**fields)


def test_images_of_which_nothing_is_left_are_refused():
  config = discriminator.Config(channels=4, depth=3)
  params = kinds.structure("discriminator", config)[1]
  assert config.smallest == 24
  with pytest.raises(ValueError, match="23 x 30 pixels; expected at least 24"):
    jax.eval_shape(lambda p: run(config, p, pixels(1, (23, 30))), params)
