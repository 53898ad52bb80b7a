# SPDX-License-Identifier: Apache-2.0
"""Pictures from bytes that nobody has checked.

`decode` gives uint8 RGB `[H W 3]` in sRGB, upright, on white where the file is
transparent, or raises `ImageError` with one of `REASONS`. Nothing is decoded
before the header has been judged. The content decides the format; names of
files are never looked at. Sizes are height first, everywhere.
"""

from collections.abc import Iterator
import contextlib
import functools
import io
import re
import threading
from typing import NamedTuple
import warnings

from jaxtyping import Int32, UInt8
import numpy as np
from PIL import (
  BmpImagePlugin,
  ExifTags,
  GifImagePlugin,
  Image,
  ImageCms,
  JpegImagePlugin,
  PngImagePlugin,
  TiffImagePlugin,
  WebPImagePlugin,
)

REASONS = (
  "empty",  # no bytes
  "format",  # none of JPEG PNG WebP GIF BMP TIFF, or pixels without a meaning
  "truncated",  # the file ends too early
  "corrupt",  # the file contradicts itself
  "animated",  # more than one frame or page
  "too_large",  # over max_pixels, or metadata over Pillow's limits
)
"""Every `ImageError.reason`."""

MAX_PIXELS = 100_000_000
"""The largest picture that is decoded by default: 300 MB as RGB."""


# Of one file, by the width and height that it was decoded at.
Decoded = dict[tuple[int, int], np.ndarray]


class ImageError(ValueError):
  """A picture that is refused; `reason` is one of `REASONS`."""

  def __init__(self, reason: str, detail: str):
    super().__init__(f"{reason}: {detail}")
    self.reason = reason


class Probe(NamedTuple):
  """What a header says, once the picture is upright."""

  height: int
  width: int
  format: str


class Cover(NamedTuple):
  """A crop, and what SDXL's micro-conditioning says about it."""

  image: UInt8[np.ndarray, "H W 3"]
  size: Int32[np.ndarray, "2"]  # height, width before resizing
  crop: Int32[np.ndarray, "2"]  # top, left in pixels after resizing


# The classes are called directly: Image.open warns about big pictures with a
# limit of its own, and reads phones' two-picture JPEGs as animations.
_FORMATS = (
  (rb"\xff\xd8\xff", "JPEG", JpegImagePlugin.JpegImageFile),
  (rb"\x89PNG\r\n\x1a\n", "PNG", PngImagePlugin.PngImageFile),
  (rb"RIFF(?s:....)WEBP", "WebP", WebPImagePlugin.WebPImageFile),
  (rb"GIF8[79]a", "GIF", GifImagePlugin.GifImageFile),
  (rb"BM", "BMP", BmpImagePlugin.BmpImageFile),
  (rb"II\*\0|MM\0\*", "TIFF", TiffImagePlugin.TiffImageFile),
)
_MODES = "1 L P LA PA RGB RGBA RGBX RGBa CMYK YCbCr I;16 I;16L I;16B I;16N"
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# warnings.catch_warnings changes the whole process; only one thread may.
_WARNINGS = threading.Lock()


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Probe:
  """Reads the size from the header; no pixel is decoded.

  Args:
    data: a whole file; what follows the header is not looked at.
    max_pixels: height times width above which the picture is refused.

  Raises:
    ImageError: with one of `REASONS`, as far as the header gives it away.
  """
  picture, name, orientation = _open(data, max_pixels)
  return Probe(*picture.size[:: 1 if orientation >= 5 else -1], name)


def decode(
  data: bytes,
  *,
  at_least: tuple[int, int] | None = None,
  max_pixels: int = MAX_PIXELS,
  decoded: Decoded | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
  """Decodes a picture to upright sRGB, in an array that is not writeable.

  Applied: EXIF orientation, ICC profiles (a broken one is ignored), CMYK and
  YCCK to RGB, 16 bits scaled to 8, palettes, transparency over white.

  Args:
    data: a whole file: JPEG, PNG, WebP, GIF, BMP or TIFF, one frame.
    at_least: height and width that the picture will be reduced to. A JPEG is
      then decoded at a half, quarter or eighth of its size, several times
      faster, but not under twice `at_least`: nearer to it, the difference to
      the full picture's reduction reached 5 grey levels, and so is 0.8.
    max_pixels: height times width above which the picture is refused.
    decoded: what was decoded of this file before, which is not done again, and
      to which this is added.

  Raises:
    ImageError: with one of `REASONS`.
  """
  picture, name, orientation = _open(data, max_pixels)
  # Pillow reads a TIFF's tags again on loading, and may warn again.
  with _refusals(), _quiet() if name == "TIFF" else contextlib.nullcontext():
    if at_least and name == "JPEG":
      h, w = at_least if orientation < 5 else at_least[::-1]
      picture.draft(None, (2 * w, 2 * h))
    reduced = picture.size
    if decoded and reduced in decoded:
      return decoded[reduced]
    picture.load()
    picture = _rgb(picture)
    if orientation in _UPRIGHT:
      picture = picture.transpose(_UPRIGHT[orientation])
    made = np.asarray(picture)
  if decoded is not None:
    decoded[reduced] = made
  return made


def decode_cover(
  data: bytes,
  height: int,
  width: int,
  *,
  position: tuple[float, float] = (0.5, 0.5),
  max_pixels: int = MAX_PIXELS,
  decoded: Decoded | None = None,
) -> Cover:
  """`decode` and `resize_cover` at once, with no more pixels than it takes.

  With `decoded`, as of `decode`, several covers of a file share its pixels.
  """
  size = probe(data, max_pixels=max_pixels)[:2]
  image = decode(
    data, at_least=(height, width), max_pixels=max_pixels, decoded=decoded
  )
  return resize_cover(image, height, width, position=position, size=size)


def resize_cover(
  image: UInt8[np.ndarray, "H W 3"],
  height: int,
  width: int,
  *,
  position: tuple[float, float] = (0.5, 0.5),
  size: tuple[int, int] | None = None,
) -> Cover:
  """Resizes until the frame is just covered (Lanczos) and crops to it.

  Args:
    image: the picture.
    height: of the frame.
    width: of the frame.
    position: of the crop, 0 top or left, 1 bottom or right.
    size: the original's height and width where `image` was decoded smaller.

  Returns:
    The crop with `size` and `crop` as SDXL is conditioned on them (Podell et
    al. 2023, section 2.2), each height first.

  Raises:
    ValueError: for an empty frame or a position outside [0, 1].
  """
  if min(height, width) < 1 or min(position) < 0 or max(position) > 1:
    raise ValueError(
      f"frame {height} x {width} at position={position}; expected sides of at"
      " least 1 and a position in [0, 1]"
    )
  h, w = size or image.shape[:2]
  scale = max(height / h, width / w)
  full_h, full_w = max(height, round(h * scale)), max(width, round(w * scale))
  top = round(position[0] * (full_h - height))
  left = round(position[1] * (full_w - width))
  # A picture decoded at an eighth has h/8 rows, the last one in part.
  reduction = max(1, round(h / image.shape[0]))
  y, x = h / full_h / reduction, w / full_w / reduction
  box = (left * x, top * y, (left + width) * x, (top + height) * y)
  # reducing_gap: three times faster from 2000 to 256, for 0.25 grey levels.
  picture = Image.fromarray(image).resize(
    (width, height), Image.Resampling.LANCZOS, box, reducing_gap=2.0
  )
  return Cover(np.asarray(picture), np.int32((h, w)), np.int32((top, left)))


def _open(data, max_pixels):
  """The undecoded picture, the name of its format and its EXIF orientation."""
  if not data:
    raise ImageError("empty", "0 bytes")
  known = [row for row in _FORMATS if re.match(row[0], data)]
  if not known:
    raise ImageError("format", f"starts with {data[:8]!r}")
  _, name, opener = known[0]
  with _refusals(), _quiet():
    picture = opener(io.BytesIO(data))
    width, height = picture.size
    if width * height > max_pixels:
      raise ImageError(
        "too_large", f"{height} x {width} is over max_pixels={max_pixels}"
      )
    if getattr(picture, "is_animated", False):
      raise ImageError("animated", f"{name} with more than one frame")
    if picture.mode not in _MODES.split():
      raise ImageError("format", f"{name} of mode {picture.mode}")
    # Pillow turns a TIFF upright itself.
    return picture, name, 1 if name == "TIFF" else _orientation(picture)


def _orientation(picture) -> int:
  try:
    tag = picture.getexif().get(ExifTags.Base.Orientation)
    return tag if tag in _UPRIGHT else 1
  # Whatever is wrong with the metadata, the picture is not lost for it.
  except Exception:
    return 1


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
  """Turns what a decoder raises on hostile bytes into an `ImageError`."""
  try:
    yield
  except ImageError:
    raise
  # Decoders raise a dozen types, struct.error and SyntaxError among them.
  except Exception as error:
    text = str(error)
    if re.search("MAX_TEXT|text chunks|decompression bomb", text):
      reason = "too_large"
    else:
      reason = "truncated" if "truncated" in text.lower() else "corrupt"
    raise ImageError(reason, f"{type(error).__name__}: {text}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences Pillow where its warnings are about metadata only."""
  with _WARNINGS, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield


def _rgb(picture):
  """Any of `_MODES` -> RGB in sRGB, over white."""
  profile = picture.info.get("icc_profile")
  transparent = picture.info.get("transparency")
  if picture.mode.startswith("I;16"):  # convert() would clip at 255
    wide = np.asarray(picture).astype(np.uint32)
    grey = (wide * 255 + 32767) // 65535
    if isinstance(transparent, int):
      grey[wide == transparent] = 255
    picture = Image.fromarray(grey.astype(np.uint8))
  elif transparent is not None or picture.mode in ("LA", "PA", "RGBA", "RGBa"):
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    picture = white.convert("RGB")
  elif picture.mode not in ("L", "RGB", "CMYK"):
    picture = picture.convert("RGB")
  to_srgb = _to_srgb(profile, picture.mode) if profile else None
  if to_srgb:
    return ImageCms.applyTransform(picture, to_srgb)
  return picture.convert("RGB")


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str):
  """The transform of a profile, or None where there is nothing to do."""
  try:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
      return None
    return ImageCms.buildTransform(
      source, ImageCms.createProfile("sRGB"), mode, "RGB"
    )
  # Broken, or of another colour space than the picture: better than no picture.
  except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
    return None
