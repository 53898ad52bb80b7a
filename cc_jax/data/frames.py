# SPDX-License-Identifier: Apache-2.0
"""What of an image is encoded: which frame, and which part of the image.

A frame is a height and width in pixels; images are resized until they just
cover it and cropped to it.
"""

from collections.abc import Mapping
import hashlib
from typing import Any, NamedTuple

from cc_jax.data import buckets, images, passes

CROPS = ("centre", "random")

# Longer images have no bucket: PixArt-alpha's code leaves them out, too.
LONGEST = 4


class Frames(NamedTuple):
  """How images are cropped.

  Attributes:
    table: frames (height, width), one of which an image gets.
    crop: one of `CROPS`. A random place follows from seed and key alone.
    enlarge: whether images that are too small for their frame are enlarged;
      else they are rejects, as in CommonCanvas (arXiv 2310.16825), which has no
      image at a resolution that it does not reach.
    seed: of random crops.
  """

  table: tuple[tuple[int, int], ...]
  crop: str = "centre"
  enlarge: bool = False
  seed: int = 0

  @property
  def bucketed(self) -> bool:
    """Whether frames differ in shape."""
    return len(self.table) > 1


def make(
  size: int,
  *,
  bucketed: bool = False,
  step: int = 0,
  crop: str = "centre",
  enlarge: bool = False,
  seed: int = 0,
) -> Frames:
  """Frames of one size: the square, or all of about its area.

  Args:
    size: pixels a side of the square.
    bucketed: each image gets the frame nearest to its shape.
    step: of the frames' sides, see `buckets.buckets`; 0 for PixArt's 40.
    crop: as of `Frames`.
    enlarge: as of `Frames`.
    seed: as of `Frames`.

  Raises:
    ValueError: a size or step that has no frames, or another crop.
  """
  if crop not in CROPS:
    raise ValueError(f"encode.crop={crop!r}; expected {' or '.join(CROPS)}")
  if size < 1 or step < 0:
    raise ValueError(f"encode.size={size}, bucket_step={step}; expected pixels")
  table = buckets.buckets(size, step or None) if bucketed else ((size, size),)
  return Frames(table, crop, enlarge, seed)


def cut(
  example: Mapping[str, Any],
  frames: Frames,
  decoded: images.Decoded | None = None,
) -> images.Cover | passes.Reject:
  """Decodes an image and cuts its frame out.

  Args:
    example: with `image`, the bytes of a file, and `key`.
    frames: among which to choose.
    decoded: as of `images.decode`, for several cuts of one image.

  Returns:
    The crop, or a reject: "image_" and one of `images.REASONS`, "too_small", or
    "too_long" where there are several frames.
  """
  data = example["image"]
  try:
    height, width, _ = images.probe(data)
    if frames.bucketed and max(height, width) > LONGEST * min(height, width):
      return passes.Reject("too_long", detail=f"{height} x {width}")
    frame = frames.table[buckets.nearest_bucket(height, width, frames.table)]
    if not frames.enlarge and (height < frame[0] or width < frame[1]):
      detail = f"{height} x {width} for {frame[0]} x {frame[1]}"
      return passes.Reject("too_small", detail=detail)
    return images.decode_cover(
      data,
      *frame,
      position=_position(example["key"], frames),
      decoded=decoded,
    )
  except images.ImageError as error:
    return passes.Reject(f"image_{error.reason}", detail=str(error))


def _position(key: str, frames: Frames) -> tuple[float, float]:
  if frames.crop == "centre":
    return 0.5, 0.5
  digest = hashlib.sha256(f"{frames.seed} {key}".encode()).digest()
  y, x = (int.from_bytes(digest[i : i + 6]) / 2**48 for i in (0, 6))
  return y, x
