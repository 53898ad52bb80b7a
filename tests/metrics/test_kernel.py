# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cc_jax.metrics import kernel


def draw(seed, count, width, shift=0.0):
  rng = np.random.default_rng(seed)
  return np.abs(rng.standard_normal((count, width))) + shift


def polynomial(x, y):
  """MMD^2 of the cubic kernel, pair by pair."""
  k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3
  m = len(x)
  same = sum(
    k(x[i], x[j]) + k(y[i], y[j]) for i in range(m) for j in range(m) if i != j
  )
  other = sum(k(a, b) for a in x for b in y)
  return same / (m * (m - 1)) - 2 * other / m**2


def gaussian(x, y, sigma=10.0):
  """MMD^2 of the Gaussian kernel over all pairs, in float64."""
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  y = y / np.linalg.norm(y, axis=1, keepdims=True)
  both = np.concatenate([x, y]).astype(np.float64)
  squared = ((both[:, None] - both) ** 2).sum(axis=-1)
  k = np.exp(-squared / (2 * sigma**2))
  n = len(x)
  return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def test_kid_of_all_images_is_the_sum_over_pairs():
  x, y = draw(0, 24, 16), draw(1, 24, 16, shift=0.2)
  found = kernel.kid(x, y, subsets=3, size=1000)
  assert found.mean == pytest.approx(polynomial(x, y), rel=1e-5)
  # Each draw has all images, in another order.
  assert found.std < 1e-6


def test_kid_of_subsets_has_no_bias():
  """Of sets alike it is zero on the mean, however few images there are."""
  found = [
    kernel.kid(draw(2 * i, 30, 8), draw(2 * i + 1, 40, 8), subsets=2, size=20)
    for i in range(300)
  ]
  means = np.array([kid.mean for kid in found])
  error = means.std() / np.sqrt(len(means))
  assert abs(means.mean()) < 4 * error
  assert (means < 0).any()


def test_kid_does_not_depend_on_the_size_of_subsets():
  x, y = draw(0, 400, 8), draw(1, 400, 8, shift=0.1)
  few, many = (kernel.kid(x, y, subsets=200, size=s) for s in (50, 200))
  assert few.mean == pytest.approx(many.mean, abs=4 * few.std / 200**0.5)
  assert many.std < few.std


def test_kid_depends_on_its_seed_only():
  x, y = draw(0, 60, 8), draw(1, 60, 8)
  one = kernel.kid(x, y, subsets=5, size=20, seed=1)
  assert one == kernel.kid(x, y, subsets=5, size=20, seed=1)
  assert one != kernel.kid(x, y, subsets=5, size=20, seed=2)


def test_kid_of_too_little_is_refused():
  x = draw(0, 4, 8)
  with pytest.raises(ValueError, match="KID of 100 subsets of 1 images"):
    kernel.kid(x, x[:1])
  with pytest.raises(ValueError, match="KID of 0 subsets"):
    kernel.kid(x, x, subsets=0)


def test_cmmd_is_the_sum_over_pairs():
  # More rows than a block has, and numbers of them that do not divide.
  x, y = draw(0, 1100, 6), draw(1, 700, 6, shift=0.05)
  expected = 1000 * gaussian(x, y)
  assert kernel.cmmd(x, y) == pytest.approx(expected, rel=1e-5)
  assert kernel.cmmd(y, x) == pytest.approx(expected, rel=1e-5)


def test_cmmd_has_another_width_and_scale():
  x, y = draw(0, 50, 6), draw(1, 40, 6)
  expected = 7 * gaussian(x, y, sigma=0.5)
  found = kernel.cmmd(x, y, sigma=0.5, scale=7.0)
  assert found == pytest.approx(expected, rel=1e-5)


def test_small_differences_are_not_lost_to_float32():
  """k is 0.99 and more; in float32 the means would be known to 1e-4 of 1000."""
  x = draw(0, 500, 32)
  y = x + 0.002 * draw(1, 500, 32)
  expected = 1000 * gaussian(x, y)
  assert expected < 1e-5
  assert kernel.cmmd(x, y) == pytest.approx(expected, rel=0.01)


def test_cmmd_of_the_same_images_is_zero():
  x = draw(0, 100, 16)
  assert kernel.cmmd(x, x) == 0


def test_cmmd_is_of_directions():
  x, y = draw(0, 50, 6), draw(1, 40, 6)
  expected = kernel.cmmd(x, y)
  assert kernel.cmmd(3 * x, 0.1 * y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", [kernel.kid, kernel.cmmd])
def test_what_cannot_be_measured_is_refused(metric):
  x = draw(0, 40, 8)
  broken = x.copy()
  broken[7, 3] = np.nan
  with pytest.raises(ValueError, match="generated: row 7 is not finite"):
    metric(x, broken)
  with pytest.raises(ValueError, match="8 of real, 7 of generated"):
    metric(x, x[:, :7])
