# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import tiny

from cc_jax.pipelines import preview
from cc_jax.tasks import task as tasks


def test_bytes_are_rounded_to_nearest():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  levels = np.repeat(levels, 3, axis=-1)
  for off in (-0.4, 0.0, 0.4):
    near = np.clip((levels + off) / 255, 0, 1)
    np.testing.assert_array_equal(preview.to_bytes(near), levels)


def test_an_autoencoder_is_shown_below_what_it_was_given(data, tmp_path):
  made = tiny.config(data, tmp_path, train__task="autoencoder")
  with made.unlocked(), made.ignore_type():
    made.model.vae = tiny.VAE
  params = jax.jit(tasks.make(made).init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, tiny.SIZE, tiny.SIZE, 3), np.uint8)
  show = preview.make(made)
  sheet = show(params, {"image": pixels})
  factor = 7  # 16 pixels are enlarged to at least 112
  first = sheet[24 : 24 + 112 : factor, 24 : 24 + 112 : factor]
  np.testing.assert_array_equal(first, pixels[0])
  # Two rows: the pictures, then the reconstructions.
  assert sheet.shape[0] == 2 * 24 + 2 * 112 + 16
  other = show(params, {"image": 255 - pixels})
  assert (other[24 + 112 + 16 :] != sheet[24 + 112 + 16 :]).any()


def test_samples_are_a_row_a_prompt_from_the_same_noise(data, tmp_path):
  made = tiny.config(data, tmp_path, sample__steps=2, sample__each=2)
  params = jax.jit(tasks.make(made).init)(jax.random.key(0))
  show = preview.make(made)
  sheet = show(params, {})
  np.testing.assert_array_equal(show(params, {}), sheet)
  assert sheet.shape[1] == 2 * 24 + 2 * 112 + 16
