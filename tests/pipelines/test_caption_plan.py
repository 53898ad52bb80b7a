# SPDX-License-Identifier: Apache-2.0
"""The published captioners by their shapes; nothing is compiled here."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from cc_jax.core import config as configs
from cc_jax.core import flops, sharding, tree
from cc_jax.pipelines import caption_plan, plan_lines

ROOT = pathlib.Path(__file__).parents[2]


def config(captioner, **fields):
  made = configs.load(f"{ROOT}/configs/base.py")
  configs.resolve(made, "runs/x")
  made.caption.captioner = captioner
  for name, value in fields.items():
    made.caption[name] = value
  return made


def operations(work):
  jaxpr = jax.make_jaxpr(work.write)(work.params, work.pixels, work.key).jaxpr
  return flops.by_scope(jaxpr, work.length - 1)


def test_blip2_costs_its_weights_for_each_token_and_its_eyes_once():
  mesh = sharding.make_mesh()
  made = config("blip2", batch_size=8, length=11)
  work = caption_plan.abstract(made, mesh)
  text = work.params["text"]
  assert work.pixels.shape == (8, 224, 224, 3)
  assert (work.prompt, work.length) == (33, 11)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(text))
  found = operations(work)
  # Two for each weight of a block, and each token, of eight images.
  blocks = tree.count(text["blocks"])
  assert found["lm"] / 8 / 33 == pytest.approx(2 * blocks, rel=0.05)
  head = tree.count(text["token"])
  each = found["while"] / 8 / 10
  assert each == pytest.approx(2 * (blocks + head), rel=0.02)
  eyes = 2 * 257 * tree.count(work.params["vision"]["blocks"])
  assert found["vit_g"] / 8 == pytest.approx(eyes, rel=0.05)


def test_llava_is_split_over_four_devices_with_its_image_in_the_prompt():
  mesh = sharding.make_mesh(tensor=4)
  work = caption_plan.abstract(
    config("llava", batch_size=4, prompt="What is it?"), mesh
  )
  assert work.pixels.shape == (4, 336, 336, 3)
  # The start, 576 patches, "USER:", "ASSISTANT:" and three words.
  assert work.prompt == 1 + 576 + 6
  leaf = work.params["text"]["blocks"]["attn"]["q"]["kernel"]
  layers, width, out = leaf.shape
  assert leaf.sharding.shard_shape(leaf.shape) == (layers, width, out // 4)


def test_what_cannot_be_planned_is_refused():
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match="'metadata' is no network to plan for"):
    caption_plan.abstract(config("metadata"), mesh)
  with pytest.raises(ValueError, match="batch_size=12 does not divide over 8"):
    caption_plan.abstract(config("blip2", batch_size=12), mesh)


def test_a_plan_of_captions_reads_as_images_and_hours():
  found = {
    "parameters": 3_000_000_000,
    "prompt_tokens": 33,
    "caption_tokens": 30,
    "fits": True,
    "hbm_gib": 9.0,
    "hbm_gib_usable": 30.75,
    "hbm_gib_parts": {"weights": 7.0, "temporary": 2.0},
    "cycles_share_of_scopes": {"vit_g": 0.25, "caption": 0.75, "": 0.001},
    "batch_size": 256,
    "batch_s": 2.0,
    "images_per_s_per_chip": 32.0,
    "mfu": 0.5,
    "images": 70_000_000,
    "hours": 9.5,
    "dollars": None,
  }
  lines = plan_lines.of_captions(found)
  assert lines[2] == "256 images in 2.00 s: vit_g 25 %, caption 75 %"
  assert "70,000,000 images in 9.5 hours, price unknown" in lines[3]
  small = plan_lines.of_captions({**found, "fits": False})
  assert "try a smaller caption.batch_size" in small[-1]
