# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import scipy.linalg

from cc_jax.metrics import frechet


def draw(seed, count, width, *, dtype=np.float64):
  """Features of correlated dimensions, all positive, as InceptionV3's."""
  rng = np.random.default_rng(seed)
  mix = rng.standard_normal((width, width)) / width**0.5
  return np.exp(rng.standard_normal((count, width)) @ mix).astype(dtype)


def by_square_root(x, y):
  """FID as clean-fid and pytorch-fid compute it, by scipy's sqrtm."""
  mu1, mu2 = x.mean(axis=0), y.mean(axis=0)
  c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  root = scipy.linalg.sqrtm(c1 @ c2).real
  step = mu1 - mu2
  return step @ step + np.trace(c1) + np.trace(c2) - 2 * np.trace(root)


def by_singular_values(x, y):
  """FID of few images: Tr (C1 C2)^(1/2) is the nuclear norm of X1 X2'."""
  x0, y0 = x - x.mean(axis=0), y - y.mean(axis=0)
  x0, y0 = x0 / np.sqrt(len(x) - 1), y0 / np.sqrt(len(y) - 1)
  step = x.mean(axis=0) - y.mean(axis=0)
  nuclear = np.linalg.norm(x0 @ y0.T, "nuc")
  return step @ step + (x0**2).sum() + (y0**2).sum() - 2 * nuclear


def test_gaussians_with_independent_dimensions_have_a_closed_form():
  rng = np.random.default_rng(0)
  mean, (s1, s2) = rng.standard_normal((2, 16)), rng.random((2, 16))
  one = frechet.Gaussian(mean[0], np.diag(s1**2))
  other = frechet.Gaussian(mean[1], np.diag(s2**2))
  expected = ((mean[0] - mean[1]) ** 2).sum() + ((s1 - s2) ** 2).sum()
  assert frechet.distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_a_rotation_changes_nothing():
  x, y = draw(0, 100, 12), draw(1, 80, 12)
  turn = np.linalg.qr(np.random.default_rng(2).standard_normal((12, 12)))[0]
  expected = frechet.fid(x, y)
  assert frechet.fid(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-10)


def test_two_gaussians_of_two_dimensions():
  # C1 C2 has eigenvalues 4 +- sqrt(7), whose roots' sum is sqrt(14).
  one = frechet.Gaussian(np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))
  other = frechet.Gaussian(np.array([3.0, 4.0]), np.diag([1.0, 3.0]))
  expected = 25 + 4 + 4 - 2 * np.sqrt(14)
  assert frechet.distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_fid_is_that_of_the_square_root_of_the_product():
  x, y = draw(0, 300, 48), draw(1, 200, 48)
  expected = by_square_root(x, y)
  assert frechet.fid(x, y) == pytest.approx(expected, rel=1e-10)
  assert frechet.fid(y, x) == pytest.approx(expected, rel=1e-10)


def test_fid_of_the_same_images_is_zero():
  x = draw(0, 300, 48)
  assert 0 <= frechet.fid(x, x) < 1e-10 * np.cov(x, rowvar=False).trace()


def test_a_shift_costs_its_square():
  x = draw(0, 100, 5)
  step = np.arange(5.0)
  assert frechet.fid(x, x + step) == pytest.approx(30, rel=1e-10)


def test_few_images_are_refused_with_the_remedy():
  x, y = draw(0, 48, 48), draw(1, 200, 48)
  expected = "FID of 48 images needs more than 48, .*KID, or set allow_few"
  for sets in ((x, y), (y, x)):
    with pytest.raises(ValueError, match=expected):
      frechet.fid(*sets)


def test_few_images_can_be_allowed():
  x, y = draw(0, 20, 64), draw(1, 30, 64)
  ours = frechet.fid(x, y, allow_few=True)
  assert ours == pytest.approx(by_singular_values(x, y), rel=1e-6)


def test_published_statistics_need_no_count():
  x, y = draw(0, 100, 8), draw(1, 100, 8)
  real = frechet.Gaussian(x.mean(axis=0), np.cov(x, rowvar=False))
  ours = frechet.gaussian(frechet.moments(y))
  expected = frechet.fid(x, y)
  assert frechet.distance(ours, real) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batches_add_up_to_the_whole(dtype):
  x = 1000 + draw(0, 157, 24, dtype=dtype)
  seen = frechet.moments(x[:1])
  for start in range(1, len(x), 13):
    seen = frechet.add(seen, x[start : start + 13])
  made = frechet.gaussian(seen)
  whole = x.astype(np.float64)
  assert made.count == 157
  assert made.cov.dtype == np.float64
  np.testing.assert_allclose(made.mean, whole.mean(axis=0), rtol=1e-14)
  expected = np.cov(whole, rowvar=False)
  np.testing.assert_allclose(made.cov, expected, atol=1e-11)


def test_hosts_are_merged_in_any_order():
  x = draw(0, 90, 6)
  parts = [
    frechet.moments(x[s]) for s in (slice(40), slice(40, 41), slice(41, 90))
  ]
  for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
    one, two, three = (parts[i] for i in order)
    seen = frechet.merge(frechet.merge(one, two), three)
    made = frechet.gaussian(seen)
    np.testing.assert_allclose(made.mean, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(made.cov, np.cov(x, rowvar=False), atol=1e-12)


def test_one_image_has_no_covariance():
  with pytest.raises(ValueError, match="1 image has no covariance"):
    frechet.gaussian(frechet.moments(draw(0, 1, 4)))


def test_what_cannot_be_measured_is_refused():
  x = draw(0, 40, 8)
  broken = x.copy()
  broken[7, 3] = np.nan
  with pytest.raises(ValueError, match="generated: row 7 is not finite"):
    frechet.fid(x, broken)
  with pytest.raises(ValueError, match="row 7 is not finite"):
    frechet.add(frechet.moments(x), broken)
  with pytest.raises(ValueError, match="8 of real, 7 of generated"):
    frechet.fid(x, x[:, :7])
  with pytest.raises(ValueError, match="8 of one, 7 of other"):
    frechet.merge(frechet.moments(x), frechet.moments(x[:, :7]))


def test_a_covariance_of_another_file_is_refused():
  mean, cov = np.zeros(3), np.eye(3)
  one = frechet.Gaussian(mean, cov)
  for wrong in (np.eye(4), cov + np.nan, cov[0]):
    with pytest.raises(ValueError, match="expected 3 x 3 finite numbers"):
      frechet.distance(one, frechet.Gaussian(mean, wrong))


def test_the_standard_error_is_the_spread_of_fresh_images():
  width, count = 6, 600
  real = frechet.gaussian(frechet.moments(draw(0, 2000, width)))
  rng = np.random.default_rng(1)
  mix = np.diag(0.5 ** np.arange(width)) + 0.1
  fresh = lambda: 1 + rng.standard_normal((count, width)) @ mix
  found, errors = [], []
  for _ in range(400):
    x = fresh()
    seen = frechet.gaussian(frechet.moments(x))
    found.append(frechet.distance(seen, real))
    errors.append(frechet.standard_error(x, real))
  # The spread of 400 draws is known to 3.5 %.
  assert np.mean(errors) == pytest.approx(np.std(found), rel=0.12)


def test_the_standard_error_needs_more_images_than_dimensions():
  real = frechet.gaussian(frechet.moments(draw(0, 40, 8)))
  with pytest.raises(ValueError, match="error of FID of 8 images needs more"):
    frechet.standard_error(draw(1, 8, 8), real)
