# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cc_jax.data import charts

BLUE, ORANGE = (31, 95, 168), (200, 80, 30)


def heights(picture, colour):
  """The highest row of a colour below the legend, column by column."""
  found = (picture == colour).all(axis=-1)
  found[:60] = False
  columns = np.flatnonzero(found.any(axis=0))
  return {int(x): int(np.argmax(found[:, x])) for x in columns}


def test_a_line_rises_where_its_shares_do():
  series = {"one": [(100, 0.1), (200, 0.9)], "two": [(100, 0.1), (200, 0.2)]}
  picture = charts.lines(series, title="shares", across="steps")
  assert picture.dtype == np.uint8
  for colour, (first, last) in ((BLUE, (0.1, 0.9)), (ORANGE, (0.1, 0.2))):
    rows = heights(picture, colour)
    left, right = min(rows), max(rows)
    drawn = rows[left + 8] - rows[right - 8]
    whole = picture.shape[0] - 66 - 56
    assert drawn / whole == pytest.approx(last - first, abs=0.05)


def test_a_chart_of_nothing_is_refused():
  with pytest.raises(ValueError, match="no points"):
    charts.lines({"one": []}, title="", across="")
