# SPDX-License-Identifier: Apache-2.0
"""LPIPS: how different two images look, by the features of a VGG16.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
arXiv 1801.03924, eq. 1, version 0.1 of its weights; the network is "Very Deep
Convolutional Networks", arXiv 1409.1556, configuration D. Autoencoders are
trained with it.

Its weights are two files of torch (core/pickles.py), in one folder:

  vgg16-397923af.pth  https://download.pytorch.org/models/vgg16-397923af.pth
                      torchvision's, trained on ImageNet
  vgg.pth             lpips/weights/v0.1/vgg.pth of
                      https://github.com/richzhang/PerceptualSimilarity
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import config_json, sharding
from cc_jax.models import layers

# Of torchvision's normalisation, for pixels in [-1, 1] instead of [0, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10

# Convolutions a level; between levels height and width are halved.
DEPTHS = (2, 2, 3, 3, 3)
SMALLEST = 2 ** (len(DEPTHS) - 1)


@dataclasses.dataclass(frozen=True)
class Config:
  """A VGG16; `channels` are those of each level, from full resolution down."""

  channels: tuple[int, ...] = (64, 128, 256, 512, 512)

  def __post_init__(self):
    if len(self.channels) != len(DEPTHS):
      raise ValueError(
        f"channels={self.channels}: expected {len(DEPTHS)} levels"
      )


class VGG16(nnx.Module):
  """The convolutions of a VGG16, in one list from first to last."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    widths = [
      width
      for width, depth in zip(config.channels, DEPTHS, strict=True)
      for _ in range(depth)
    ]
    self.convs = nnx.List(
      [
        layers.conv(before, width, dtype=dtype, rngs=rngs)
        for before, width in zip([3, *widths], widths, strict=False)
      ]
    )

  def __call__(
    self, x: Float[Array, "B H W 3"]
  ) -> list[Float[Array, "B _h _w _c"]]:
    """The last features of each level: relu1_2, 2_2, 3_3, 4_3 and 5_3."""
    convs, features = iter(self.convs), []
    for level, depth in enumerate(DEPTHS):
      if level:
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
      for _ in range(depth):
        x = jax.nn.relu(next(convs)(x))
      x = sharding.constrain(x)
      features.append(x)
    return features


class LPIPS(nnx.Module):
  """The distance of two images; `dtype` is that of the convolutions."""

  def __init__(
    self,
    config: Config,
    *,
    dtype: layers.Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.config = config
    self.vgg = VGG16(config, dtype=dtype, rngs=rngs)
    # All ones is the paper's distance without calibration.
    self.heads = nnx.List(
      [
        nnx.Conv(
          width,
          1,
          (1, 1),
          use_bias=False,
          kernel_init=nnx.initializers.ones_init(),
          rngs=rngs,
        )
        for width in config.channels
      ]
    )

  def __call__(
    self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]
  ) -> Float[Array, "B"]:
    """From 0, for the same image, upwards.

    Args:
      x: RGB in [-1, 1], of at least 16 x 16 pixels.
      y: the same.

    Raises:
      ValueError: images are smaller.
    """
    check_size(*x.shape[1:3])
    total = jnp.zeros(len(x))
    features = zip(self.vgg(scaled(x)), self.vgg(scaled(y)), strict=True)
    for head, (a, b) in zip(self.heads, features, strict=True):
      square = jnp.square(unit(a) - unit(b))
      # The head is linear, so that it may follow the mean over positions.
      mean = jnp.mean(square, axis=(1, 2), keepdims=True)
      total = total + head(mean)[:, 0, 0, 0]
    return total


def check_size(height: int, width: int) -> None:
  """Refuses images that have no pixel left on the lowest level."""
  if min(height, width) < SMALLEST:
    raise ValueError(
      f"LPIPS of {height} x {width} pixels; expected at least {SMALLEST} a side"
    )


def scaled(x: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
  """Pixels in [-1, 1] as the VGG16 expects them."""
  return (x.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)


def unit(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """x / (|x| + 1e-10) over C, in float32; with a finite slope at 0."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  # The slope of a square root at 0 is infinite, which would make NaN of the
  # ReLU's 0 where all features of a position are 0; 1e10 stays 0 there.
  nonzero = square > 0
  norm = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1)), 0)
  return x / (norm + EPS)


VGG = Config()

# Places in torchvision's list, which counts activations and poolings too.
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
NAMES = (
  *((f"vgg.convs.{n}", f"features.{place}") for n, place in enumerate(PLACES)),
  *((f"heads.{n}", f"lin{n}.model.1") for n in range(len(DEPTHS))),
)
CONFIG = config_json.ConfigTable(
  fixed={"network": "vgg16", "version": "0.1"},
  written={"_class_name": "LPIPS"},
)

# The published files, and what in them classifies ImageNet.
PICKLES = ("vgg16-397923af.pth", "vgg.pth")
UNUSED = ("classifier.",)
