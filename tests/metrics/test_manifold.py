# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.spatial import distance
from sklearn import neighbors

from cc_jax.metrics import manifold


def draw(seed, count, width=8, shift=0.0):
  return np.random.default_rng(seed).standard_normal((count, width)) + shift


def reference(real, generated, k):
  """All four from the whole matrix of distances, in float64."""

  def radii(rows):
    found = neighbors.NearestNeighbors(n_neighbors=k).fit(rows)
    # Without rows of its own, scikit-learn leaves a row itself out.
    return found.kneighbors()[0][:, -1]

  between = distance.cdist(real, generated)
  near_real = between <= radii(real)[:, None]
  near_generated = between <= radii(generated)
  return (
    near_real.any(axis=0).mean(),
    near_generated.any(axis=1).mean(),
    near_real.sum(axis=0).mean() / k,
    near_real.any(axis=1).mean(),
  )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(
  ("count", "shift"), [(120, 0.0), (90, 1.0), (1200, 0.5)]
)
def test_all_four_are_those_of_the_whole_matrix(k, count, shift):
  real, generated = draw(0, 130), draw(1, count, shift=shift)
  expected = reference(real, generated, k)
  found = manifold.precision_recall(real, generated, k)
  found += manifold.density_coverage(real, generated, k)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  assert 0 < found[0] < 1


def test_the_same_images_are_all_real_and_all_there():
  x = draw(0, 50)
  assert manifold.precision_recall(x, x) == (1, 1)
  assert manifold.density_coverage(x, x).coverage == 1


def test_images_far_from_real_ones_are_neither():
  x, y = draw(0, 50), draw(1, 50, shift=100)
  assert manifold.precision_recall(x, y) == (0, 0)
  assert manifold.density_coverage(x, y) == (0, 0)


def test_a_model_that_makes_half_of_what_there_is():
  """Two clusters, of which one is generated: precise, and without recall."""
  near, far = draw(0, 100, 2), draw(1, 100, 2, shift=100)
  real = np.concatenate([near, far])
  generated = near + 1e-3
  assert manifold.precision_recall(real, generated) == (1, 0.5)
  assert manifold.density_coverage(real, generated).coverage == 0.5
  # And the other way round.
  assert manifold.precision_recall(generated, real) == (0.5, 1)


def test_one_line_by_hand():
  """Real images at 0, 1, 3, 7, whose second neighbours are 3, 2, 3, 6 away."""
  real = np.array([[0.0], [1.0], [3.0], [7.0]])
  generated = np.array([[-2.5], [4.0], [14.0], [0.5]])
  # They are in 1 (of 0), 2 (of 3, 7), 0 and 3 (of 0, 1, 3) balls.
  found = manifold.density_coverage(real, generated, k=2)
  assert found == ((1 + 2 + 0 + 3) / 4 / 2, 1)
  # Theirs are 6.5, 10, 13.5 and 13.5 wide, wherefore all real ones are in one.
  assert manifold.precision_recall(real, generated, k=2) == (0.75, 1)


def test_a_ball_has_its_border():
  real = np.array([[0.0], [2.0], [4.0], [10.0]])
  generated = np.array([[-2.0], [-3.0], [-9.0]])
  found = manifold.precision_recall(real, generated, k=1)
  assert found.precision == pytest.approx(1 / 3)
  assert manifold.density_coverage(real, generated, k=1) == (1 / 3, 0.25)


def test_an_outlier_raises_precision_more_than_density():
  real = np.concatenate([draw(0, 100, 2), [[1000.0, 0.0]]])
  generated = np.array([[500.0, 0.0]] * 100) + draw(1, 100, 2)
  assert manifold.precision_recall(real, generated).precision == 1
  found = manifold.density_coverage(real, generated)
  assert found.density == pytest.approx(1 / 5)
  assert found.coverage == pytest.approx(1 / 101)


def test_sets_alike_have_the_expected_density_and_coverage():
  found = manifold.density_coverage(draw(0, 2000, 4), draw(1, 2000, 4))
  assert found.density == pytest.approx(1, abs=0.05)
  assert found.coverage == pytest.approx(1 - 2**-5, abs=0.015)


@pytest.mark.parametrize("k", [0, 10])
def test_neighbours_that_are_not_there_are_refused(k):
  x, y = draw(0, 20), draw(1, 10)
  expected = f"k={k} nearest neighbours among 10 images"
  with pytest.raises(ValueError, match=expected):
    manifold.precision_recall(x, y, k)
  with pytest.raises(ValueError, match=expected):
    manifold.density_coverage(y, x, k)


def test_what_cannot_be_measured_is_refused():
  x = draw(0, 40)
  broken = x.copy()
  broken[7, 3] = np.nan
  with pytest.raises(ValueError, match="real: row 7 is not finite"):
    manifold.precision_recall(broken, x)
  with pytest.raises(ValueError, match="8 of real, 7 of generated"):
    manifold.density_coverage(x, x[:, :7])
