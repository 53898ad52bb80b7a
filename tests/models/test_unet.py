# SPDX-License-Identifier: Apache-2.0
"""The U-Net against diffusers', through files, and its presets."""

import dataclasses
import functools
import json
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from cc_jax.core import config_json, convert, sharding, tree
from cc_jax.models import layers, unet

# Heads per level and linear projections, as Stable Diffusion 2.
LIKE_SD2 = unet.Config(
  sample_size=8,
  channels=(8, 16),
  attention=(True, False),
  layers_per_block=1,
  heads=(2, 4),
  source_width=12,
  linear_projection=True,
  groups=4,
)
# One number of heads and projections by convolution, as Stable Diffusion 1.
LIKE_SD1 = dataclasses.replace(
  LIKE_SD2, heads=2, linear_projection=False, attention=(True, True)
)
# No transformer at the top, deeper ones below, further conditions, as SDXL.
LIKE_SDXL = dataclasses.replace(
  LIKE_SD2,
  channels=(8, 16, 16),
  attention=(False, True, True),
  heads=(2, 4, 4),
  depth=(1, 2, 3),
  pooled_conditions="text_time",
  size_width=4,
  conditions_width=34,
)
# One level: what compiles fast.
LEAST = dataclasses.replace(
  LIKE_SD2, channels=(8,), attention=(True,), heads=2, depth=2
)
# What is zero in a fresh network.
ZERO = re.compile(r"(conv_out|conv2|attn[12]\.out)\.kernel$")
CONFIGS = {"sd2": LIKE_SD2, "sd1": LIKE_SD1, "sdxl": LIKE_SDXL}


def make(config, **options):
  return unet.UNet2DCondition(config, rngs=layers.keys(0), **options)


def weights(config, seed=0):
  structure, shapes = parity.abstract(lambda: make(config))
  return structure, parity.scramble(shapes, seed)


def inputs(config, size=(8, 8), batch=2, seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  result = {
    "xt": normal(batch, *size, config.in_channels),
    "t": np.array([7, 810] * (batch // 2), np.int32),
    "context": normal(batch, 5, config.source_width),
  }
  if config.pooled_conditions:
    result["pooled"] = normal(batch, config.pooled_width)
    result["time_ids"] = rng.integers(0, 99, (batch, 6)).astype(np.int32)
  return {name: jnp.asarray(array) for name, array in result.items()}


def theirs(model, batch, mask=None):
  """diffusers' output for our inputs, channels last."""
  tensors = {
    name: torch.tensor(np.asarray(array)) for name, array in batch.items()
  }
  added = None
  if "pooled" in batch:
    added = {
      "text_embeds": tensors["pooled"],
      "time_ids": tensors["time_ids"],
    }
  with torch.no_grad():
    out = model(
      tensors["xt"].permute(0, 3, 1, 2),
      tensors["t"],
      tensors["context"],
      added_cond_kwargs=added,
      encoder_attention_mask=None if mask is None else torch.from_numpy(mask),
    )
  return out.sample.permute(0, 2, 3, 1).numpy()


@jax.jit
def run(model, batch):
  return model(**batch)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_weights_give_the_same_output_in_diffusers(name, tmp_path):
  config = CONFIGS[name]
  structure, params = weights(config)
  parity.save(
    tmp_path,
    params,
    config,
    unet.NAMES,
    unet.CONFIG,
    "diffusion_pytorch_model",
  )
  model = diffusers.UNet2DConditionModel.from_pretrained(tmp_path).eval()
  ours = tree.merge(structure, params)
  # An odd map is rounded up on the way down and cut on the way up.
  sizes = [(8, 8), (6, 9)] if name == "sd2" else [(8, 8)]
  for size in sizes:
    batch = inputs(config, size)
    parity.check(run(ours, batch), theirs(model, batch), parity.MODEL)


def test_a_mask_hides_text_states_as_in_diffusers(tmp_path):
  structure, params = weights(LIKE_SD2)
  parity.save(
    tmp_path,
    params,
    LIKE_SD2,
    unet.NAMES,
    unet.CONFIG,
    "diffusion_pytorch_model",
  )
  model = diffusers.UNet2DConditionModel.from_pretrained(tmp_path).eval()
  batch = inputs(LIKE_SD2)
  mask = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], bool)
  ours = run(tree.merge(structure, params), batch | {"mask": mask})
  parity.check(ours, theirs(model, batch, mask), parity.MODEL)


@pytest.mark.parametrize("name", CONFIGS)
def test_files_of_diffusers_give_the_same_output_here(name, tmp_path):
  config = CONFIGS[name]
  torch.manual_seed(0)
  reference = diffusers.UNet2DConditionModel.from_config(
    config_json.export_config(config, unet.CONFIG)
  ).eval()
  reference.save_pretrained(tmp_path)
  loaded, ours = parity.load(
    tmp_path, make, unet.Config, unet.NAMES, unet.CONFIG
  )
  assert loaded == config
  batch = inputs(config)
  parity.check(run(ours, batch), theirs(reference, batch), parity.MODEL)


@pytest.mark.parametrize(
  ("preset", "scalars", "tensors"),
  [
    ("SD2", 865_910_724, 686),
    ("COMMON_CANVAS_L", 2_391_824_644, 1676),
    ("SDXL", 2_567_463_684, 1680),
  ],
)
def test_presets_have_the_names_of_diffusers(preset, scalars, tensors):
  config = getattr(unet, preset)
  _, shapes = parity.abstract(lambda: make(config))
  assert tree.count(shapes) == scalars
  written = config_json.export_config(config, unet.CONFIG)
  with torch.device("meta"):
    model = diffusers.UNet2DConditionModel.from_config(written)
  expected = {
    name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
  }
  assert convert.export_shapes(shapes, unet.NAMES) == expected
  assert len(expected) == tensors
  parity.check_config(written, model.config)


def test_branches_of_a_fresh_network_are_zero_and_the_rest_is_as_in_torch():
  chosen = ("conv_in.kernel", "conv_in.bias")

  @jax.jit
  def init():
    # What is not returned is not computed: a short compilation.
    weights = tree.flatten(make(LIKE_SD2))
    return {
      path: array
      for path, array in weights.items()
      if ZERO.search(path) or path in chosen
    }

  weights = dict(init())
  drawn, bias = (np.asarray(weights.pop(path)) for path in chosen)
  assert len(weights) == 1 + 8 + 2 * 4
  assert all(not array.any() for array in weights.values())
  assert not bias.any()
  bound = (9 * 4) ** -0.5
  assert 0.95 * bound < np.abs(drawn).max() <= bound


def gradients(params, remat="none"):
  """Of a squared error, by path; compiled once for all tests."""
  return tree.flatten(gradients_of(remat)(params))


@functools.cache
def gradients_of(remat):
  structure, _ = parity.abstract(lambda: make(LEAST, remat=remat))
  batch = inputs(LEAST)
  loss = lambda params: jnp.mean(
    (tree.merge(structure, params)(**batch) - batch["xt"]) ** 2
  )
  return jax.jit(jax.grad(loss))


def test_remat_does_not_change_the_gradients():
  _, params = weights(LEAST)
  expected = gradients(params)
  for path, gradient in gradients(params, "full").items():
    np.testing.assert_allclose(
      gradient, expected[path], rtol=1e-3, atol=1e-5, err_msg=path
    )


def test_a_fresh_network_learns_through_its_zeros():
  """Each step wakes what a zero had cut off: all learns from the third on."""
  params = tree.flatten(make(LEAST))  # one compiled function would take 20 s
  learning = []
  for _ in range(3):
    found = gradients(tree.unflatten(params))
    learning.append({path for path, g in found.items() if np.asarray(g).any()})
    params = {path: leaf - 0.1 * found[path] for path, leaf in params.items()}
  assert learning[0] == {"conv_out.kernel", "conv_out.bias"}
  asleep = {path for path in params if ZERO.search(path)} - learning[1]
  assert not asleep
  assert params.keys() == learning[2]


def test_an_unknown_remat_is_refused():
  with pytest.raises(ValueError, match="unknown remat 'some'"):
    jax.eval_shape(lambda: make(LEAST, remat="some")(**inputs(LEAST)))


def test_bfloat16_is_close_to_float32():
  structure, params = weights(LEAST)
  batch = inputs(LEAST)
  exact = run(tree.merge(structure, params), batch)
  half, _ = parity.abstract(lambda: make(LEAST, dtype=jnp.bfloat16))
  ours = run(tree.merge(half, params), batch)
  assert ours.dtype == jnp.float32
  assert np.isfinite(ours).all()
  parity.check(ours, exact, 0.05)
  assert np.abs(ours - exact).max() > 0


def test_sharded_over_eight_devices_gives_the_same_output():
  config = dataclasses.replace(LEAST, channels=(128,), groups=8)
  structure, params = weights(config)
  batch = inputs(config, batch=4)
  expected = run(tree.merge(structure, params), batch)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  layouts = sharding.layouts(params, mesh)
  used = {
    axis
    for layout in jax.tree.leaves(layouts)
    for axis in layout.spec
    if axis is not None
  }
  assert used == {"fsdp", "tensor"}
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, layouts)
    rows = jax.device_put(batch, sharding.batch_layout(mesh))
    out = run(tree.merge(structure, placed), rows)
  assert out.sharding.spec[0] == sharding.BATCH
  parity.check(out, expected, parity.MODEL)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"heads": (2,)}, r"heads=\(2,\) has 1 values for 2 levels"),
    ({"attention": (True,)}, "has 1 values for 2 levels"),
    ({"groups": 5}, "8 does not divide into groups=5"),
    ({"heads": (2, 3)}, "16 does not divide into heads=3"),
    ({"pooled_conditions": "text"}, "unknown pooled_conditions 'text'"),
    ({"pooled_conditions": "text_time"}, "needs size_width"),
  ],
)
def test_a_config_that_cannot_be_built_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(LIKE_SD2, **changes)


@pytest.mark.parametrize(
  ("config", "changes", "message"),
  [
    ("sd2", {"pooled": jnp.zeros((2, 3))}, "leave them out"),
    ("sdxl", {"pooled": None}, "needs pooled text"),
    ("sdxl", {"pooled": jnp.zeros((2, 3))}, "width 3; expected 10"),
    ("sd2", {"context": jnp.zeros((2, 5, 7))}, "of width 7"),
  ],
)
def test_conditions_that_do_not_fit_are_refused(config, changes, message):
  config = CONFIGS[config]
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: make(config)(**inputs(config) | changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
    ({"_class_name": "UNet2DModel"}, "_class_name='UNet2DModel'"),
    ({"down_block_types": ["AttnDownBlock2D"] * 2}, "AttnDownBlock2D"),
    ({"up_block_types": ["UpBlock2D"] * 2}, "up_block_types"),
    ({"cross_attention_dim": [12, 12]}, r"cross_attention_dim=\(12, 12\)"),
    ({"flash": True}, r"flash=True \(unknown\)"),
  ],
)
def test_a_config_of_another_network_is_refused(changes, message):
  written = config_json.export_config(LIKE_SD2, unet.CONFIG)
  theirs = json.loads(json.dumps({**written, **changes}))
  with pytest.raises(ValueError, match=message):
    config_json.import_config(theirs, unet.Config, unet.CONFIG)
