# SPDX-License-Identifier: Apache-2.0
"""cc-jax bench on captions, which are to be those of transformers."""

import jax
import numpy as np
import parity
import pytest
import tiny

from cc_jax.models import kinds
from cc_jax.pipelines import caption_speed, image_captioner
from cc_jax.stages import bench


def small(folder, kind, **fields):
  fields = {
    "bench__steps": 0,
    "bench__loader_seconds": 0.0,
    "bench__networks": (),
    "bench__compare": "torch",
    "bench__repeats": 1,
    "bench__caption__captioner": kind,
    "bench__caption__width": 32,
    "bench__caption__vision_depth": 2,
    "bench__caption__text_depth": 1,
    "bench__caption__size": 28,
    "bench__caption__batch_size": 2,
    "bench__caption__tokens": 4,
    "bench__caption__beams": 2,
  } | fields
  return tiny.config("data", folder, **fields)


def test_captions_are_measured_beside_transformers(tmp_path):
  found = bench.main(small(tmp_path, "blip2"), str(tmp_path))
  seconds, theirs = found["caption_seconds"], found["caption_torch_seconds"]
  assert found["caption_speedup"] == theirs / seconds
  assert found["caption_images_per_second"] == 2 / seconds
  assert found["caption_tokens_per_second"] == 8 / seconds
  assert found["caption_torch_tokens_per_second"] == 8 / theirs
  assert found["caption_slowest"]


@pytest.mark.parametrize(
  ("kind", "decoding"),
  [("blip2", "greedy"), ("blip2", "beam"), ("llava", "greedy")],
)
def test_both_sides_write_the_same(tmp_path, kind, decoding):
  made = small(tmp_path, kind, bench__caption__decoding=decoding)
  recipe, network, prompt, pixels = caption_speed.writing(made)
  structure, shapes = kinds.structure(kind, network)
  params = parity.scramble(shapes)
  write = image_captioner.writer(structure, network, prompt, recipe)
  ours = np.asarray(jax.jit(write)(params, pixels, jax.random.key(0)))
  theirs = caption_speed.caption_reference(
    recipe, network, params, prompt, pixels
  )
  np.testing.assert_array_equal(ours, theirs())
  assert ours.shape == (2, 4)
