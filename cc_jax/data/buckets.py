# SPDX-License-Identifier: Apache-2.0
"""Aspect buckets: the few frames (height, width) that a batch can have.

A picture is cropped to the frame nearest to its own shape, so that batches are
rectangles and little is lost. "PixArt-alpha", arXiv 2310.00426, §3; the idea is
NovelAI's.
"""

from collections.abc import Sequence
import math

# In units of 64; all but the last two exist on their sides, too.
_UNITS = """8x32 8x31 8x30 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 12x21
  12x20 13x19 13x18 14x18 14x17 15x17 15x16 11x21 16x16"""
_WIDE = [tuple(64 * int(n) for n in b.split("x")) for b in _UNITS.split()]
_BOTH = _WIDE + [(w, h) for h, w in _WIDE[:-2]]
PIXART = tuple(sorted(_BOTH, key=lambda frame: frame[0] / frame[1]))
"""PixArt-alpha's 40 frames (height, width) at 1024, as published."""

# What diffusers' pipelines leave out when they sample.
_NOT_SAMPLED = (0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88)


def buckets(side: int, step: int | None = None) -> tuple[tuple[int, int], ...]:
  """Lists frames (height, width) of about the area of a square, widest first.

  None has more pixels than the square, so that one compiled shape, padded to
  the square's tokens, serves them all; none is longer than 4 to 1.

  Args:
    side: of the square.
    step: of which heights and widths are multiples: every height, with the
      largest width that fits. None scales `PIXART`, whose step is 64 at 1024.

  Raises:
    ValueError: when `side` is not a multiple of `step` (of 128 without one).
  """
  if side < 1 or side % (step or 128):
    raise ValueError(f"side={side} is not a multiple of {step or 128}")
  if step is None:
    return tuple((h * side // 1024, w * side // 1024) for h, w in PIXART)
  heights = range(step, 2 * side + 1, step)
  frames = [(h, side * side // h // step * step) for h in heights]
  return tuple(f for f in frames if max(f) <= 4 * min(f))


def nearest_bucket(
  height: int, width: int, table: Sequence[tuple[int, int]]
) -> int:
  """The index in `table` of the frame that loses least to the crop.

  Nearest in the logarithm of height over width, so that a picture and the same
  picture on its side are treated alike; the first of equals.
  """
  distances = [abs(math.log(h / w * width / height)) for h, w in table]
  return distances.index(min(distances))


def nearest_bin(ratio: float, side: int) -> tuple[int, int]:
  """The frame (height, width) that an image of a shape is sampled in.

  By diffusers' rule for PixArt: of 33 of the 40, that whose ratio, rounded to
  two digits, is nearest.

  Args:
    ratio: height over width.
    side: of the square, a multiple of 128. One that is none, as for toy models,
      has frames in steps of a quarter of it.
  """
  table = buckets(side) if side % 128 == 0 else buckets(side, max(1, side // 4))
  key = lambda frame: round(frame[0] / frame[1], 2)
  table = [frame for frame in table if key(frame) not in _NOT_SAMPLED]
  return min(table, key=lambda frame: abs(key(frame) - ratio))


def ratio(text: str) -> float:
  """Height over width, of "16:9" (width first, as screens have it) or "0.56".

  Raises:
    ValueError: it is neither, or longer than 4 to 1.
  """
  width, _, height = text.partition(":")
  try:
    found = float(height) / float(width) if height else float(width)
    if not 1 / 4 <= found <= 4:
      raise ValueError
  except (ValueError, ZeroDivisionError):
    raise ValueError(
      f"aspect={text!r}; expected WIDTH:HEIGHT or height over width, from 1:4 "
      "to 4:1"
    ) from None
  return found
