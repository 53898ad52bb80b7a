# SPDX-License-Identifier: Apache-2.0
"""Pictures for people to look at: labelled grids, and PNG."""

from collections.abc import Sequence
import io
import math
import textwrap

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
  """Encodes as PNG without metadata: the same pixels give the same bytes."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG", compress_level=6)
  return file.getvalue()


_MARGIN, _GAP, _TILE, _FONT, _LINE = 24, 16, 112, 14, 19  # pixels


def grid(
  images: UInt8[np.ndarray, "N H W 3"],
  columns: int,
  labels: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
  """Lays pictures out in rows on white, each with its label under it.

  Small pictures are enlarged by a whole factor, pixels kept crisp, so that a
  label finds room; long labels wrap, to three lines at most.

  Raises:
    ValueError: without images or columns, or with another number of labels.
  """
  count, height, width = images.shape[:3]
  if not count or columns < 1:
    raise ValueError(f"grid of {count} images in {columns} columns; give both")
  if labels is not None and len(labels) != count:
    raise ValueError(f"{len(labels)} labels for {count} images; give as many")
  factor = max(1, math.ceil(_TILE / width))
  height, width, columns = height * factor, width * factor, min(columns, count)
  font = ImageFont.load_default(_FONT)
  letters = int(width / font.getlength("n"))
  texts = [
    textwrap.wrap(label, letters, max_lines=3, placeholder="…")
    for label in labels or [""] * count
  ]
  # A row is as high as its longest label needs.
  lines = [max(map(len, texts[i:][:columns])) for i in range(0, count, columns)]
  rows = [height + (_LINE * n + 6 if n else 0) for n in lines]
  across = 2 * _MARGIN + columns * (width + _GAP) - _GAP
  down = 2 * _MARGIN + sum(rows) + _GAP * (len(rows) - 1)
  sheet = Image.new("RGB", (across, down), "white")
  draw = ImageDraw.Draw(sheet)
  for i, text in enumerate(texts):
    row, column = divmod(i, columns)
    x = _MARGIN + column * (width + _GAP)
    y = _MARGIN + sum(rows[:row]) + row * _GAP
    tile = Image.fromarray(images[i])
    tile = tile.resize((width, height), Image.Resampling.NEAREST)
    sheet.paste(tile, (x, y))
    # A hairline keeps pictures with a white ground apart from the sheet.
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline="#dddddd")
    for n, line in enumerate(text):
      middle = (x + width / 2, y + height + 5 + n * _LINE)
      draw.text(middle, line, font=font, fill="#333333", anchor="ma")
  return np.asarray(sheet)
