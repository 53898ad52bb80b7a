# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from cc_jax.metrics import caption_score


def test_the_score_is_the_geometric_mean_of_probabilities():
  p = np.array([[0.5, 0.125, 0.9], [0.2, 1.0, 1.0]])
  mask = np.array([[True, True, False], [True, False, False]])
  found = caption_score.scores(np.log(p), mask)
  np.testing.assert_allclose(found, [0.25, 0.2])
  assert caption_score.caption_score(np.log(p), mask) == pytest.approx(0.225)


def test_the_score_is_the_exponential_of_torch_s_cross_entropy():
  logits, tokens = torch.randn(1, 7, 11), torch.randint(0, 11, (1, 7))
  loss = torch.nn.functional.cross_entropy(logits[0], tokens[0])
  log_p = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].numpy()
  found = caption_score.caption_score(log_p, np.ones((1, 7), bool))
  assert found == pytest.approx(torch.exp(-loss).item(), rel=1e-5)


@pytest.mark.parametrize(
  ("log_p", "mask", "words"),
  [
    ([[0.0], [0.0]], [[True], [False]], "prompt 1 has no tokens"),
    ([[-1.0], [0.5]], [[True], [True]], "prompt 1 has a probability"),
    ([[np.nan]], [[True]], "prompt 0 has a probability"),
  ],
)
def test_what_is_no_probability_is_refused(log_p, mask, words):
  with pytest.raises(ValueError, match=words):
    caption_score.scores(np.array(log_p), np.array(mask))
