# SPDX-License-Identifier: Apache-2.0
"""Curves as a picture, for READMEs and work folders: lines, PNG."""

from collections.abc import Mapping, Sequence

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_COLOURS = ("#1f5fa8", "#c8501e", "#2f7d4f", "#7a4fa3")
_WIDE, _HIGH = 760, 440  # Pixels of the picture,
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 66, 56  # and of its margins.


def lines(
  series: Mapping[str, Sequence[tuple[float | int, float]]],
  *,
  title: str,
  across: str,
) -> UInt8[np.ndarray, "h w 3"]:
  """Shares, from 0 to 100 %, over numbers from 0 on.

  Args:
    series: points (number, share) of each line, by its name.
    title: over the chart.
    across: what the numbers are.

  Raises:
    ValueError: no points.
  """
  points = [point for line in series.values() for point in line]
  if not points:
    raise ValueError("no points to draw")
  far = max(x for x, _ in points) or 1
  sheet = Image.new("RGB", (_WIDE, _HIGH), "white")
  draw = ImageDraw.Draw(sheet)
  font, small = ImageFont.load_default(16), ImageFont.load_default(13)
  right, bottom = _WIDE - _RIGHT, _HIGH - _BOTTOM

  def place(x, share):
    return (
      _LEFT + x / far * (right - _LEFT),
      bottom - share * (bottom - _TOP),
    )

  draw.text((_LEFT, 14), title, font=font, fill="#222222")
  for share in (0, 0.25, 0.5, 0.75, 1):
    y = place(0, share)[1]
    draw.line((_LEFT, y, right, y), fill="#dddddd")
    text = f"{share:.0%}"
    draw.text((_LEFT - 8, y), text, font=small, fill="#555555", anchor="rm")
  for number in sorted({x for x, _ in points}):
    x = place(number, 0)[0]
    draw.line((x, bottom, x, bottom + 5), fill="#999999")
    text = f"{number:,.0f}"
    draw.text((x, bottom + 8), text, font=small, fill="#555555", anchor="ma")
  middle = ((_LEFT + right) / 2, _HIGH - 22)
  draw.text(middle, across, font=small, fill="#555555", anchor="ma")
  start = _LEFT
  for (name, line), colour in zip(series.items(), _COLOURS, strict=False):
    spots = [place(*point) for point in sorted(line)]
    draw.line(spots, fill=colour, width=3, joint="curve")
    for x, y in spots:
      draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    draw.line((start, 48, start + 22, 48), fill=colour, width=3)
    draw.text((start + 28, 48), name, font=small, fill="#222222", anchor="lm")
    start += 48 + small.getlength(name)
  return np.asarray(sheet)
