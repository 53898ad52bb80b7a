# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cc_jax.metrics import features


def test_a_row_that_is_not_finite_is_named():
  rows = np.ones((5, 3))
  rows[2, 1], rows[4, 0] = np.nan, np.inf
  expected = "^generated: row 2 is not finite, as are 2 of 5 rows"
  with pytest.raises(ValueError, match=expected):
    features.check(real=np.ones((4, 3)), generated=rows)


def test_sets_of_different_networks_are_refused():
  with pytest.raises(ValueError, match="2048 of real, 768 of generated"):
    features.check(real=np.ones((2, 2048)), generated=np.ones((2, 768)))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (4, 0)])
def test_what_is_not_rows_is_refused(shape):
  with pytest.raises(ValueError, match=r"real: features of shape .*expected"):
    features.check(real=np.ones(shape))


def test_unit_rows_have_length_1():
  rows = np.random.default_rng(0).standard_normal((20, 7)).astype(np.float16)
  made = features.unit(1000 * rows, "rows")
  assert made.dtype == np.float32
  np.testing.assert_allclose((made**2).sum(axis=1), 1, rtol=1e-6)


def test_a_zero_row_has_no_direction():
  with pytest.raises(ValueError, match="captions: row 1 is zero"):
    features.unit(np.array([[1.0, 2.0], [0.0, 0.0]]), "captions")
