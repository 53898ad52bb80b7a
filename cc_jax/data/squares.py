# SPDX-License-Identifier: Apache-2.0
"""Pictures as squares of pixels, as image processors of transformers make them.

A network that looks at pictures wants them of one size, and each was trained
with its own way to that size. All resize with Pillow's bicubic filter, which
smooths what it makes smaller and rounds to bytes.
"""

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from cc_jax.data import images

SQUASH, CROP, PAD = "squash", "crop", "pad"
WAYS = (SQUASH, CROP, PAD)
"""To the square as it is (BLIP-2); its middle (CLIP, llava-hf's LLaVA 1.5);
all of it, with bars of CLIP's mean colour (LLaVA 1.5's own code)."""

_GREY = (122, 116, 104)


def square(
  image: UInt8[np.ndarray, "H W 3"],
  size: int,
  way: str,
  *,
  original: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Makes a picture a square of `size` pixels a side, in one of `WAYS`.

  Args:
    image: the picture.
    size: pixels a side.
    way: one of `WAYS`.
    original: its height and width, where it was decoded smaller.

  Raises:
    ValueError: another way.
  """
  check(way)
  height, width = original or image.shape[:2]
  # A picture decoded at an eighth has h/8 rows, the last one in part.
  reduction = max(1, round(height / image.shape[0]))
  box = (0.0, 0.0, width / reduction, height / reduction)
  if way == SQUASH:
    return _resize(image, size, size, box)
  if way == CROP:
    shorter = min(height, width)
    # Cut to whole pixels, as the processor does.
    tall, wide = (int(size * side / shorter) for side in (height, width))
    return _middle(_resize(image, tall, wide, box), size)
  height, width = image.shape[:2]
  longer = max(height, width)
  padded = np.empty((longer, longer, 3), np.uint8)
  padded[...] = _GREY
  top, left = (longer - height) // 2, (longer - width) // 2
  padded[top : top + height, left : left + width] = image
  return _resize(padded, size, size)


def decode(
  data: bytes, size: int, way: str, *, middle: int = 0
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Decodes a file and makes it a square.

  A large JPEG is decoded at a half, quarter or eighth of its size
  (`images.decode`), so it may be a few grey levels away from what transformers
  makes of it.

  Args:
    data: a whole file.
    size: pixels a side.
    way: one of `WAYS`.
    middle: first crops the middle square, and makes it no larger than so many
      pixels a side; 0 for the whole picture.

  Raises:
    images.ImageError: it cannot be decoded.
    ValueError: another way.
  """
  check(way)
  needed = max(middle, size)
  height, width = images.probe(data)[:2]
  scale = max(height, width) if way == PAD and not middle else 1
  at_least = (
    (needed, needed)
    if scale == 1
    else tuple(max(1, needed * side // scale) for side in (height, width))
  )
  image = images.decode(data, at_least=at_least)
  if not middle:
    return square(image, size, way, original=(height, width))
  shorter = min(image.shape[:2])
  image = _middle(image, shorter)
  if shorter > middle:
    image = _resize(image, middle, middle)
  return square(image, size, way)


def check(way: str) -> None:
  """Refuses what is none of `WAYS`.

  Raises:
    ValueError: it is none.
  """
  if way not in WAYS:
    raise ValueError(f"resize={way!r}; expected one of {', '.join(WAYS)}")


def _resize(
  image: np.ndarray,
  height: int,
  width: int,
  box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
  picture = Image.fromarray(image)
  bicubic = Image.Resampling.BICUBIC
  return np.asarray(picture.resize((width, height), bicubic, box))


def _middle(image: np.ndarray, size: int) -> np.ndarray:
  top, left = ((side - size) // 2 for side in image.shape[:2])
  return image[top : top + size, left : left + size]
