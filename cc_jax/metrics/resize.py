# SPDX-License-Identifier: Apache-2.0
"""Images as InceptionV3 is given them: how they are resized changes FID.

"On Aliased Resizing and Surprising Subtleties in GAN Evaluation", arXiv
2104.11222. A resize is two matrices, one for rows and one for columns, so it
runs on the device, in float32, and what Pillow, torch and TensorFlow do differs
in the matrices only. Compare numbers of one mode.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, UInt8
import numpy as np

SIZE = 299  # of InceptionV3's images, as in models/inception.py


def bicubic(source: int, target: int) -> Float[np.ndarray, "{target} {source}"]:
  """Pillow's BICUBIC: the cubic of a = -1/2, made wider to shrink an image.

  Pixel centres are at halves. What is outside the image has no weight, and the
  weights of a pixel are divided by their sum.
  """
  scale = source / target
  width = max(scale, 1.0)
  centre = (np.arange(target)[:, None] + 0.5) * scale
  at = np.arange(source) + 0.5
  x = np.abs(at - centre) / width
  near = (1.5 * x - 2.5) * x**2 + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
  return weights / weights.sum(axis=1, keepdims=True)


def bilinear(
  source: int, target: int, *, centred: bool = True
) -> Float[np.ndarray, "{target} {source}"]:
  """The line between two pixels, however much an image shrinks (it aliases).

  Args:
    source: pixels there are.
    target: pixels there shall be.
    centred: whether pixel centres are at halves, as in torch's interpolate; if
      not, the first pixels are one above the other, as in TensorFlow 1, which
      moves the image by half a pixel.
  """
  # In float32, as there.
  scale, half = np.float32(source / target), np.float32(0.5)
  place = np.arange(target, dtype=np.float32)
  if centred:
    place = np.maximum((place + half) * scale - half, 0)
  else:
    place = place * scale
  low = np.minimum(place.astype(int), source - 1)
  high = np.minimum(low + 1, source - 1)
  weights = np.zeros((target, source))
  rows = np.arange(target)
  np.add.at(weights, (rows, low), 1 - (place - low))
  np.add.at(weights, (rows, high), place - low)
  return weights


def separable(
  images: Num[Array, "B H W C"],
  rows: Float[np.ndarray, "P H"],
  columns: Float[np.ndarray, "E W"],
) -> Float[Array, "B P E C"]:
  """Images with a matrix applied to each row and one to each column.

  Both in float32, whatever the images are; rows first, as Pillow.
  """
  highest = jax.lax.Precision.HIGHEST
  x = images.astype(jnp.float32)
  x = jnp.einsum("ew,bhwc->bhec", jnp.float32(columns), x, precision=highest)
  return jnp.einsum("ph,bhec->bpec", jnp.float32(rows), x, precision=highest)


# The weights of each mode, and the shift and scale of bytes after it.
MODES: dict[str, tuple[Callable, float, float]] = {
  # clean-fid's; resized values are not rounded to bytes.
  "clean": (bicubic, 128.0, 128.0),
  # pytorch-fid's.
  "legacy_pytorch": (bilinear, 127.5, 127.5),
  # torch-fidelity's, and that of TensorFlow's graph, the first FID.
  "legacy_tensorflow": (
    functools.partial(bilinear, centred=False),
    128.0,
    128.0,
  ),
}


def to_inception(
  images: UInt8[Array | np.ndarray, "B H W 3"], mode: str = "clean"
) -> Float[Array, "B I I 3"]:
  """Bytes -> what models/inception.py reads, 299 x 299 pixels.

  Bytes, since what is compared are files of images: generated ones are rounded
  like real ones. Height and width are resized each for itself, so a picture
  that is not square is distorted, as in the references.

  Args:
    images: RGB from 0 to 255.
    mode: one of `MODES`, which have clean-fid's names.

  Raises:
    ValueError: there is no such mode.
  """
  if mode not in MODES:
    raise ValueError(f"unknown mode {mode!r}; expected {', '.join(MODES)}")
  weights, shift, scale = MODES[mode]
  _, height, width, _ = images.shape
  rows, columns = weights(height, SIZE), weights(width, SIZE)
  with jax.named_scope("to_inception"):
    x = separable(jnp.asarray(images), rows, columns)
    return (x - shift) / scale
