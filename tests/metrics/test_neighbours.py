# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sklearn import neighbors

from cc_jax.metrics import neighbours


def draw(seed, count, width=12):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("rows", [7, 50, 8192])
def test_neighbours_are_scikit_learns(k, rows, monkeypatch):
  monkeypatch.setattr(neighbours, "BANK_ROWS", rows)
  queries, bank = draw(0, 40), draw(1, 150)
  found = neighbours.nearest(queries, bank, k)
  theirs = neighbors.NearestNeighbors(n_neighbors=k, metric="cosine").fit(bank)
  distance, row = theirs.kneighbors(queries)
  assert np.array_equal(found.row, row)
  np.testing.assert_allclose(found.cosine, 1 - distance, atol=1e-6)


def test_more_queries_than_a_block_has():
  queries, bank = draw(0, 1100), draw(1, 30)
  found = neighbours.nearest(queries, bank, 2)
  assert found.row.shape == (1100, 2)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  expected = (unit(queries) @ unit(bank).T).argmax(axis=1)
  assert np.array_equal(found.row[:, 0], expected)


def test_a_copy_is_found(tmp_path):
  bank = np.memmap(tmp_path / "bank", np.float32, "w+", shape=(100, 12))
  bank[:] = draw(0, 100)
  queries = draw(1, 5)
  queries[3] = 2 * bank[71]
  found = neighbours.nearest(queries, bank)
  assert found.row[3, 0] == 71
  assert found.cosine[3, 0] == pytest.approx(1, abs=1e-6)
  assert found.cosine[[0, 1, 2, 4]].max() < 0.95


def test_all_of_a_bank_and_equals_in_their_order(monkeypatch):
  monkeypatch.setattr(neighbours, "BANK_ROWS", 40)
  bank = np.repeat(np.eye(3, dtype=np.float32), 30, axis=0)
  found = neighbours.nearest(np.float32([[3, 2, 1]]), bank, 90)
  assert np.array_equal(found.row[0], np.arange(90))


def test_a_bank_with_too_few_images_is_refused():
  with pytest.raises(ValueError, match="k=5 neighbours in a bank of 4 images"):
    neighbours.nearest(draw(0, 2), draw(1, 4), 5)


def test_what_cannot_be_measured_is_refused(monkeypatch):
  monkeypatch.setattr(neighbours, "BANK_ROWS", 10)
  bank = draw(1, 30)
  bank[13] = np.nan
  with pytest.raises(ValueError, match="bank from row 10: row 3 is not finite"):
    neighbours.nearest(draw(0, 2), bank)
  with pytest.raises(ValueError, match="12 of queries, 11 of bank"):
    neighbours.nearest(draw(0, 2), draw(1, 30, width=11))
