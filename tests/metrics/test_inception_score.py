# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from cc_jax.metrics import inception_score


def reference(logits, splits):
  """As torch-fidelity computes it, in the order of the images."""
  p = torch.softmax(torch.tensor(logits, dtype=torch.float64), dim=1)
  scores = []
  for i in range(splits):
    part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
    marginal = part.mean(dim=0, keepdim=True)
    kl = (part * (part.log() - marginal.log())).sum(dim=1)
    scores.append(kl.mean().exp().item())
  return np.mean(scores), np.std(scores)


def test_images_sure_of_one_class_each_score_their_number():
  logits = 1000.0 * np.eye(7)[np.arange(70) % 7]
  found = inception_score.inception_score(logits, seed=None)
  assert found.mean == pytest.approx(7, rel=1e-12)
  assert found.std == pytest.approx(0, abs=1e-12)


def test_images_of_no_class_score_one():
  found = inception_score.inception_score(np.zeros((50, 9)))
  assert found == pytest.approx((1, 0), abs=1e-12)


def test_images_of_one_class_score_one():
  logits = np.tile(np.arange(9.0), (50, 1))
  assert inception_score.inception_score(logits).mean == pytest.approx(1)


@pytest.mark.parametrize("splits", [1, 5, 10])
def test_the_score_is_that_of_torch(splits):
  logits = 3 * np.random.default_rng(0).standard_normal((200, 40))
  logits = logits.astype(np.float32)
  found = inception_score.inception_score(logits, splits=splits, seed=None)
  assert found == pytest.approx(reference(logits, splits), rel=1e-10)


def test_a_common_bias_of_logits_changes_nothing():
  logits = np.random.default_rng(0).standard_normal((100, 12))
  one = inception_score.inception_score(logits)
  other = inception_score.inception_score(logits + 1e4)
  assert one == pytest.approx(other, rel=1e-9)


def test_sorted_images_are_dealt_at_random():
  logits = 1000.0 * np.eye(10)[np.arange(1000) // 100]
  in_order = inception_score.inception_score(logits, seed=None)
  assert in_order.mean == pytest.approx(1)
  shuffled = inception_score.inception_score(logits, seed=0)
  assert shuffled.mean > 9
  assert shuffled == inception_score.inception_score(logits, seed=0)


def test_fewer_images_than_splits_are_refused():
  with pytest.raises(ValueError, match="splits=10 of 9 images"):
    inception_score.inception_score(np.zeros((9, 5)))


def test_a_row_that_is_not_finite_is_named():
  logits = np.zeros((20, 5))
  logits[3, 1] = np.inf
  with pytest.raises(ValueError, match="logits: row 3 is not finite"):
    inception_score.inception_score(logits)
