# SPDX-License-Identifier: Apache-2.0
"""A picture, files of it, and files of PNG by hand."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def scene(height=48, width=64):
  """Smooth colours, no two corners alike: [H W 3] uint8."""
  y, x = np.mgrid[:height, :width]
  red = 40 + 170 * y / height
  green = 40 + 170 * x / width
  blue = 120 + 60 * np.sin(x / 9) * np.cos(y / 7)
  return np.stack([red, green, blue], -1).round().astype(np.uint8)


def saved(image, kind, **options):
  """A picture (array or PIL) as the bytes of a file."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def chunk(name, data):
  """A part of a PNG file."""
  crc = struct.pack(">I", zlib.crc32(name + data))
  return struct.pack(">I", len(data)) + name + data + crc


def png(width, height, depth=8, colour=2, rows=b"", before=b""):
  """A PNG file by hand, of sizes and depths that Pillow would not write."""
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + before
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def distance(a, b):
  """Mean difference, in grey levels."""
  assert a.shape == b.shape
  return np.abs(a.astype(float) - b.astype(float)).mean()
