# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from cc_jax.data import charts


def test_a_chart_is_an_image_with_every_point_in_its_frame():
  points = [
    charts.Point(x, y, f"{x}", (x - 1, x + 1), (y / 2, y * 2))
    for x, y in ((1, 5.0), (2, 900.0), (7.5, -3.0))
  ]
  text = charts.alone(
    charts.chart(
      "a <b>",
      {"one": points, "two": [charts.Point(3, 4), charts.Point(4, math.nan)]},
      x="x & y",
      y="y",
    )
  )
  root = ElementTree.fromstring(text)
  assert root.attrib["aria-label"] == "a <b>"
  wide, tall = map(float, root.attrib["viewBox"].split()[2:])
  circles = [node for node in root.iter() if node.tag.endswith("circle")]
  assert len(circles) == 4
  for node in circles:
    assert 0 < float(node.attrib["cx"]) < wide
    assert 0 < float(node.attrib["cy"]) < tall
  for node in root.iter():
    for name in ("x1", "x2"):
      assert 0 <= float(node.attrib.get(name, 0)) <= wide
    for name in ("y1", "y2"):
      assert 0 <= float(node.attrib.get(name, 0)) <= tall
  # Higher is larger.
  heights = [float(node.attrib["cy"]) for node in circles]
  assert heights[1] < heights[0] < heights[2]
  assert re.search(r">one</text>.*>two</text>", text, re.S)


def test_one_point_is_a_chart_and_none_is_not():
  text = charts.chart("x", {"": [charts.Point(0, 0)]}, x="x", y="y")
  assert text.count("<circle") == 1
  with pytest.raises(ValueError, match="no point to draw in 'x'"):
    charts.chart("x", {"": [charts.Point(0, math.inf)]}, x="x", y="y")


@pytest.mark.parametrize(
  ("low", "high"),
  [
    (0, 1),
    (-3.2, 7),
    (1e-7, 3e-7),
    (5e4, 9e6),
    (0.99, 1.01),
    (128, 128 + 1e-9),
  ],
)
def test_ticks_are_round_few_and_inside(low, high):
  found = charts.ticks(low, high)
  assert 2 <= len(found) <= 7
  steps = {f"{b - a:.2g}" for a, b in itertools.pairwise(found)}
  assert len(steps) == 1
  assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
