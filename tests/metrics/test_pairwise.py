# SPDX-License-Identifier: Apache-2.0
import numpy as np
from scipy.spatial import distance

from cc_jax.metrics import pairwise


def test_blocks_are_all_rows_once():
  for count in (1, 9, 10, 11, 30):
    rows = [np.arange(count)[b] for b in pairwise.blocks(count, 10)]
    assert np.array_equal(np.concatenate(rows), np.arange(count))
    assert max(map(len, rows)) <= 10


def test_distances_are_scipys():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((30, 64)), rng.standard_normal((20, 64))
  ours = pairwise.squared(*pairwise.centred(x, y))
  theirs = distance.cdist(x, y, "sqeuclidean")
  np.testing.assert_allclose(ours, theirs, rtol=2e-6)


def test_distances_far_from_zero_are_kept():
  # Features of InceptionV3 are positive; their distances are much smaller.
  rng = np.random.default_rng(0)
  x, y = 1e4 + rng.standard_normal((2, 30, 64))
  ours = pairwise.squared(*pairwise.centred(x, y))
  theirs = distance.cdist(x, y, "sqeuclidean")
  np.testing.assert_allclose(ours, theirs, rtol=2e-6)
