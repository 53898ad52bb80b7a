# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from cc_jax.metrics import clip_score


def draw(seed, count=30, width=16):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((count, width)).astype(np.float32)


def test_scores_are_cosines_of_torch_from_zero():
  images, captions = draw(0), draw(1)
  cosine = torch.nn.functional.cosine_similarity(
    torch.tensor(images), torch.tensor(captions)
  ).numpy()
  assert (cosine < 0).any()
  expected = 100 * cosine.clip(min=0)
  found = clip_score.scores(images, captions)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  mean = clip_score.clip_score(images, captions)
  assert mean == pytest.approx(expected.mean(), abs=1e-5)


def test_lengths_do_not_matter():
  images = draw(0)
  assert clip_score.clip_score(images, 7 * images) == pytest.approx(100)
  assert clip_score.clip_score(images, -images) == 0


def test_each_image_has_one_caption():
  with pytest.raises(ValueError, match="30 images with 29 captions"):
    clip_score.scores(draw(0), draw(1, 29))


def test_what_cannot_be_measured_is_refused():
  broken = draw(1)
  broken[4] = np.nan
  with pytest.raises(ValueError, match="captions: row 4 is not finite"):
    clip_score.scores(draw(0), broken)
  with pytest.raises(ValueError, match="16 of images, 8 of captions"):
    clip_score.scores(draw(0), draw(1, width=8))
  broken[4] = 0
  with pytest.raises(ValueError, match="captions: row 4 is zero"):
    clip_score.scores(draw(0), broken)
