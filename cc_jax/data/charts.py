# SPDX-License-Identifier: Apache-2.0
"""Charts of points and lines, as SVG: in a page, or a file of their own."""

from collections.abc import Iterator, Mapping, Sequence
import html
import itertools
import math
import re
from typing import NamedTuple

_WIDE, _TALL = 520, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 44  # Room around the axes.
_HEAD = 26  # For the title of a file.
_CAP = 2.5  # Half of the end of an interval.
COLOURS = ("#4c6f94", "#b5543a", "#5d8a54", "#8a6aa3", "#a88532", "#3f8d8d")
STYLE = (
  "text{font:12px system-ui,sans-serif;fill:#6a675f}"
  ".axis{stroke:#b9b4a8;fill:none}.grid{stroke:#dedad2;fill:none}"
)


Real = float | int


class Point(NamedTuple):
  """A point, with the bounds between which it may be.

  Attributes:
    x: place.
    y: place.
    label: written beside it; "" for none.
    xs: bounds of x; None for none.
    ys: bounds of y; None for none.
  """

  x: Real
  y: Real
  label: str = ""
  xs: tuple[Real, Real] | None = None
  ys: tuple[Real, Real] | None = None


def ticks(low: Real, high: Real, most: int = 6) -> list[float]:
  """Round numbers within bounds, `most` of them or fewer.

  >>> ticks(0.3, 2.1)
  [0.5, 1.0, 1.5, 2.0]
  """
  span = high - low
  if not span:
    return [low]
  ten = 10.0 ** math.floor(math.log10(span / most))
  step = next(s * ten for s in (1, 2, 5, 10, 20) if span / (s * ten) <= most)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  digits = max(0, -math.floor(math.log10(step)))
  return [round(step * i, digits) for i in range(first, last + 1)]


def chart(
  title: str,
  series: Mapping[str, Sequence[Point]],
  *,
  x: str,
  y: str,
  dots: bool = True,
) -> str:
  """An SVG of lines through points, with a legend if there are several.

  Args:
    title: for those who do not see it.
    series: points by name, in order; those not finite are left out.
    x: the name of the axis.
    y: likewise.
    dots: whether points are marked.

  Raises:
    ValueError: there is no point.
  """
  whole = {
    name: [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    for name, points in series.items()
  }
  every = [point for points in whole.values() for point in points]
  if not every:
    raise ValueError(f"no point to draw in {title!r}")
  left, right = _bounds([v for p in every for v in (p.x, *(p.xs or ()))])
  low, high = _bounds([v for p in every for v in (p.y, *(p.ys or ()))])
  at_x = lambda v: (
    _LEFT + (_WIDE - _LEFT - _RIGHT) * (v - left) / (right - left)
  )
  # Names stand above all that is drawn, so that no line runs through them.
  top = _TOP + (16 * len(whole) if len(whole) > 1 else 0)
  at_y = lambda v: (
    _TALL - _BOTTOM - (_TALL - top - _BOTTOM) * (v - low) / (high - low)
  )
  shapes = []
  places = _labels(
    [[(at_x(p.x), at_y(p.y), p.label) for p in one] for one in whole.values()]
  )
  for tick in ticks(low, high):
    shapes.append(_line(_LEFT, at_y(tick), _WIDE - _RIGHT, at_y(tick), "grid"))
    shapes.append(_text(_LEFT - 8, at_y(tick) + 4, _number(tick), "end"))
  for tick in ticks(left, right):
    shapes.append(
      _line(
        at_x(tick), _TALL - _BOTTOM, at_x(tick), _TALL - _BOTTOM + 4, "axis"
      )
    )
    shapes.append(_text(at_x(tick), _TALL - _BOTTOM + 18, _number(tick)))
  base = _TALL - _BOTTOM
  shapes.append(_line(_LEFT, base, _WIDE - _RIGHT, base, "axis"))
  middle = (_LEFT + _WIDE - _RIGHT) / 2
  shapes.append(_text(middle, _TALL - 8, x))
  turn = f' transform="rotate(-90 13 {(top + base) / 2:.0f})"'
  shapes.append(_text(13, (top + base) / 2, y, more=turn))
  for place, (name, points) in enumerate(whole.items()):
    colour = COLOURS[place % len(COLOURS)]
    joined = " ".join(f"{at_x(p.x):.1f},{at_y(p.y):.1f}" for p in points)
    shapes.append(
      f'<polyline points="{joined}" fill="none" stroke="{colour}" '
      'stroke-width="1.6"/>'
    )
    for p in points:
      ends, h, v = [], at_x(p.x), at_y(p.y)
      if p.xs:
        one, two = at_x(p.xs[0]), at_x(p.xs[1])
        ends.append((one, v, two, v))
        ends += [(end, v - _CAP, end, v + _CAP) for end in (one, two)]
      if p.ys:
        one, two = at_y(p.ys[0]), at_y(p.ys[1])
        ends.append((h, one, h, two))
        ends += [(h - _CAP, end, h + _CAP, end) for end in (one, two)]
      for one in ends:
        shapes.append(_line(*one, more=f' style="stroke:{colour}"'))
      if dots:
        told = f"{p.label or name}: {_number(p.x)}, {_number(p.y)}"
        shapes.append(
          f'<circle cx="{h:.1f}" cy="{v:.1f}" r="{2 if ends else 3}" '
          f'fill="{colour}"><title>{html.escape(told)}</title></circle>'
        )
      if p.label:
        shapes.append(_text(*next(places), p.label))
    if len(whole) > 1:
      shapes.append(
        f'<text x="{_LEFT}" y="{_TOP + 16 * place + 6}" '
        f'style="fill:{colour}">{html.escape(name)}</text>'
      )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_TALL}" '
    f'role="img" aria-label="{html.escape(title)}">{"".join(shapes)}</svg>'
  )


def _labels(
  series: Sequence[Sequence[tuple[Real, Real, str]]],
) -> Iterator[tuple[Real, Real]]:
  """Where the label of each point stands, as its middle on its ground line.

  Near its point, and on as little as can be of lines, points, and labels that
  stand already.
  """
  # Lines as points close by one another, each of little weight.
  taken = [
    (x + (u - x) * i / 40, y + (v - y) * i / 40, 1.0)
    for one in series
    for (x, y, _), (u, v, _) in itertools.pairwise(one)
    for i in range(40)
  ]
  taken += [(x, y, 20.0) for one in series for x, y, _ in one]
  for x, y, label in itertools.chain(*series):
    if not label:
      continue
    half, best = 3.5 * len(label) + 1, (math.inf, x, y)
    for place, (far, turn) in enumerate(itertools.product((1, 2, 3), range(8))):
      angle = math.pi * (turn / 4 - 0.25)  # The first is to the upper right.
      u = x + (half + 3 + 6 * far) * math.cos(angle)
      v = y + 4 + (5 + 7 * far) * math.sin(angle)
      inside = half < u < _WIDE - half and 12 < v < _TALL - _BOTTOM - 2
      cost = place / 2 + (0 if inside else 1000)
      for h, w, weight in taken:
        if abs(h - u) < half + 2 and v - 12 < w < v + 3:
          cost += weight
      best = min(best, (cost, u, v))
    _, u, v = best
    # What stands there, as points that no other label may have in it.
    taken += [
      (u + dx, v - dy, 50.0) for dx in (-half, 0, half) for dy in (0, 5, 10)
    ]
    yield u, v


def alone(svg: str) -> str:
  """A chart as a file of its own, its title above it."""
  head, _, rest = svg.partition(">")
  title = re.search(r'aria-label="([^"]*)"', head)[1]
  frame = f'viewBox="0 0 {_WIDE} {_TALL}"'
  tall = _TALL + _HEAD
  head = head.replace(frame, f'viewBox="0 {-_HEAD} {_WIDE} {tall}"')
  ground = f'<rect y="{-_HEAD}" width="100%" height="100%" fill="white"/>'
  return (
    f'{head} width="{_WIDE}" height="{tall}"><style>{STYLE}</style>{ground}'
    f'<text x="{_WIDE / 2}" y="{4 - _HEAD / 2}" text-anchor="middle">{title}'
    f"</text>{rest}\n"
  )


def _bounds(values: list[Real]) -> tuple[float, float]:
  """A little more than what values span."""
  low, high = float(min(values)), float(max(values))
  room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
  return low - room, high + room


def _number(value: Real) -> str:
  return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _line(
  x1: Real, y1: Real, x2: Real, y2: Real, kind: str = "", more: str = ""
) -> str:
  named = f' class="{kind}"' if kind else ""
  return (
    f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    f"{named}{more}/>"
  )


def _text(
  x: Real, y: Real, text: str, anchor: str = "middle", more: str = ""
) -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>'
    f"{html.escape(text)}</text>"
  )
