# SPDX-License-Identifier: Apache-2.0
"""InceptionV3 with the weights that FID is defined by.

"Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567,
table 1, as Google's inception-2015-12-05 has it; FID is of arXiv 1706.08500,
§4. Numbers of papers are of this network and no other: its average pooling
leaves the border out, and its last block pools by the maximum.

Its weights are one file of torch (core/pickles.py), alone in a folder or with
others:

  pt_inception-2015-12-05-6726825d.pth
      https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/
      pt_inception-2015-12-05-6726825d.pth

torch-fidelity has the same weights, whose name begins with "weights-" in place
of "pt_"; rename that file.
"""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import config_json, sharding, spelling
from cc_jax.models import layers, pools

EPS = 1e-3  # of the batch norms
# TPUs would round float32 to bfloat16; others' numbers are not rounded.
PRECISION = jax.lax.Precision.HIGHEST

SIZE = 299  # height and width of the images of FID
SMALLEST = 75  # below it the last maps have no pixel


@dataclasses.dataclass(frozen=True)
class Config:
  """An InceptionV3.

  Attributes:
    classes: 1008, of which 1000 are ImageNet's.
    divisor: of the number of channels of each layer; 1 is the network of FID,
      others are small ones for tests.
  """

  classes: int = 1008
  divisor: int = 1

  def __post_init__(self):
    if self.divisor < 1 or 16 % self.divisor:
      raise ValueError(f"divisor={self.divisor}: expected 1, 2, 4, 8 or 16")


class Layer(NamedTuple):
  """A convolution: its name in files, channels, size; padded to keep size.

  Without padding where its stride is 2, or where it is not `padded`.
  """

  name: str
  out: int
  height: int = 1
  width: int = 1
  stride: int = 1
  padded: bool = True


class Branch(NamedTuple):
  """Layers one after another, on pooled maps where `pool` says so.

  With `fork` the last two layers stand side by side.
  """

  layers: tuple[Layer, ...]
  pool: str = ""
  fork: bool = False


def _a(pool: int) -> tuple[Branch, ...]:
  return (
    Branch((Layer("branch1x1", 64),)),
    Branch((Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, 5, 5))),
    Branch(
      (
        Layer("branch3x3dbl_1", 64),
        Layer("branch3x3dbl_2", 96, 3, 3),
        Layer("branch3x3dbl_3", 96, 3, 3),
      )
    ),
    Branch((Layer("branch_pool", pool),), pool="average"),
  )


B = (
  Branch((Layer("branch3x3", 384, 3, 3, stride=2),)),
  Branch(
    (
      Layer("branch3x3dbl_1", 64),
      Layer("branch3x3dbl_2", 96, 3, 3),
      Layer("branch3x3dbl_3", 96, 3, 3, stride=2),
    )
  ),
  Branch((), pool="halve"),
)


def _c(inner: int) -> tuple[Branch, ...]:
  return (
    Branch((Layer("branch1x1", 192),)),
    Branch(
      (
        Layer("branch7x7_1", inner),
        Layer("branch7x7_2", inner, 1, 7),
        Layer("branch7x7_3", 192, 7, 1),
      )
    ),
    Branch(
      (
        Layer("branch7x7dbl_1", inner),
        Layer("branch7x7dbl_2", inner, 7, 1),
        Layer("branch7x7dbl_3", inner, 1, 7),
        Layer("branch7x7dbl_4", inner, 7, 1),
        Layer("branch7x7dbl_5", 192, 1, 7),
      )
    ),
    Branch((Layer("branch_pool", 192),), pool="average"),
  )


D = (
  Branch((Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, 3, 3, 2))),
  Branch(
    (
      Layer("branch7x7x3_1", 192),
      Layer("branch7x7x3_2", 192, 1, 7),
      Layer("branch7x7x3_3", 192, 7, 1),
      Layer("branch7x7x3_4", 192, 3, 3, stride=2),
    )
  ),
  Branch((), pool="halve"),
)


def _e(pool: str) -> tuple[Branch, ...]:
  return (
    Branch((Layer("branch1x1", 320),)),
    Branch(
      (
        Layer("branch3x3_1", 384),
        Layer("branch3x3_2a", 384, 1, 3),
        Layer("branch3x3_2b", 384, 3, 1),
      ),
      fork=True,
    ),
    Branch(
      (
        Layer("branch3x3dbl_1", 448),
        Layer("branch3x3dbl_2", 384, 3, 3),
        Layer("branch3x3dbl_3a", 384, 1, 3),
        Layer("branch3x3dbl_3b", 384, 3, 1),
      ),
      fork=True,
    ),
    Branch((Layer("branch_pool", 192),), pool=pool),
  )


# The first layers; POOLED are those after which maps are halved.
STEM = (
  Layer("Conv2d_1a_3x3", 32, 3, 3, stride=2),
  Layer("Conv2d_2a_3x3", 32, 3, 3, padded=False),
  Layer("Conv2d_2b_3x3", 64, 3, 3),
  Layer("Conv2d_3b_1x1", 80),
  Layer("Conv2d_4a_3x3", 192, 3, 3, padded=False),
)
POOLED = (2, 4)

BLOCKS = {
  "Mixed_5b": _a(32),
  "Mixed_5c": _a(64),
  "Mixed_5d": _a(64),
  "Mixed_6a": B,
  "Mixed_6b": _c(128),
  "Mixed_6c": _c(160),
  "Mixed_6d": _c(160),
  "Mixed_6e": _c(192),
  "Mixed_7a": D,
  "Mixed_7b": _e("average"),
  "Mixed_7c": _e("maximum"),
}


POOLS = {
  "": lambda x: x,
  "halve": pools.halve,
  "average": pools.average,
  "maximum": pools.maximum,
}


class BatchNorm(nnx.Module):
  """Normalises [B H W C] by means and variances that were stored in training.

  All four are weights here: nothing is trained and nothing is updated.
  """

  def __init__(self, channels: int, dtype: layers.Dtype):
    self.dtype = dtype
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))
    self.mean = nnx.Param(jnp.zeros(channels))
    self.var = nnx.Param(jnp.ones(channels))

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    x = x.astype(jnp.float32) - self.mean[...]
    x = x * jax.lax.rsqrt(self.var[...] + EPS)
    return (x * self.scale[...] + self.bias[...]).astype(self.dtype)


class ConvNorm(nnx.Module):
  """ReLU(norm(conv(x))), the one layer of this network.

  Without padding it is computed with, and the border left out: to the same
  bits, and on CPUs XLA takes a quarter to an eighth of the time.
  """

  def __init__(
    self,
    channels: int,
    layer: Layer,
    config: Config,
    *,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    self.cut = not layer.padded
    self.out = layer.out // config.divisor
    self.conv = nnx.Conv(
      channels,
      self.out,
      (layer.height, layer.width),
      strides=layer.stride,
      padding="SAME" if layer.stride == 1 else "VALID",
      use_bias=False,
      precision=PRECISION,
      kernel_init=layers.INIT,
      dtype=dtype,
      rngs=rngs,
    )
    self.norm = BatchNorm(self.out, dtype)

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J O"]:
    x = self.conv(x)
    x = x[:, 1:-1, 1:-1] if self.cut else x
    return jax.nn.relu(self.norm(x))


class Block(nnx.Module):
  """Branches side by side; their channels follow one another."""

  def __init__(
    self,
    channels: int,
    branches: tuple[Branch, ...],
    config: Config,
    *,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    self.pools = tuple(branch.pool for branch in branches)
    self.forks = tuple(branch.fork for branch in branches)
    self.branches = nnx.List()
    self.out = 0
    for branch in branches:
      made, width = [], channels
      for place, layer in enumerate(branch.layers):
        if branch.fork and place == len(branch.layers) - 1:
          width = made[-2].out
        made.append(ConvNorm(width, layer, config, dtype=dtype, rngs=rngs))
        width = made[-1].out
      self.branches.append(nnx.List(made))
      self.out += width + branch.fork * width

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J O"]:
    outputs = []
    branches = zip(self.branches, self.pools, self.forks, strict=True)
    for convs, pool, fork in branches:
      h, side_by_side = POOLS[pool](x), 2 if fork else 0
      chain = len(convs) - side_by_side
      for conv in list(convs)[:chain]:
        h = conv(h)
      ends = [conv(h) for conv in list(convs)[chain:]]
      outputs += ends or [h]
    return sharding.constrain(jnp.concatenate(outputs, axis=-1))


class Features(NamedTuple):
  """What InceptionV3 says of images, float32.

  Attributes:
    pooled: the mean of the last maps over positions: FID and KID.
    logits_unbiased: of the classes, without their bias: the Inception Score,
      as in torch-fidelity and in TensorFlow's graph.
  """

  pooled: Float[Array, "B D"]
  logits_unbiased: Float[Array, "B V"]


class InceptionV3(nnx.Module):
  """Images -> features."""

  def __init__(
    self,
    config: Config,
    *,
    dtype: layers.Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    self.stem, width = nnx.List(), 3
    for layer in STEM:
      self.stem.append(ConvNorm(width, layer, config, **kinds))
      width = self.stem[-1].out
    self.blocks = nnx.List()
    for branches in BLOCKS.values():
      self.blocks.append(Block(width, branches, config, **kinds))
      width = self.blocks[-1].out
    # Its bias is in the files and is not used.
    self.head = layers.linear(width, config.classes, **kinds)

  def __call__(self, x: Float[Array, "B H W 3"]) -> Features:
    """The features of images.

    Args:
      x: RGB in about [-1, 1], for FID of 299 x 299 pixels. Of bytes p in 0 to
        255 torch-fidelity takes (p - 128) / 128, as TensorFlow's graph does,
        pytorch-fid p / 127.5 - 1. How images are resized changes FID, see arXiv
        2104.11222, and is left to the caller.

    Raises:
      ValueError: images have no pixel left in the last maps.
    """
    check_size(*x.shape[1:3])
    with jax.named_scope("inception"):
      for place, layer in enumerate(self.stem):
        x = layer(x)
        x = pools.halve(x) if place in POOLED else x
      for block in self.blocks:
        x = block(x)
      pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
      logits = jnp.einsum(
        "bd,dv->bv", pooled, self.head.kernel[...], precision=PRECISION
      )
      return Features(pooled, logits)


def check_size(height: int, width: int) -> None:
  """Refuses images that are too small for the network."""
  if min(height, width) < SMALLEST:
    raise ValueError(
      f"InceptionV3 of {height} x {width} pixels; expected {SIZE} x {SIZE}, "
      f"and at least {SMALLEST} a side"
    )


# The network of FID.
FID = Config()

NAMES: spelling.Names = (
  *((f"stem.{place}", layer.name) for place, layer in enumerate(STEM)),
  *(
    (f"blocks.{b}.branches.{n}.{place}", f"{block}.{layer.name}")
    for b, (block, branches) in enumerate(BLOCKS.items())
    for n, branch in enumerate(branches)
    for place, layer in enumerate(branch.layers)
  ),
  ("norm", "bn"),
  ("mean", "running_mean"),
  ("var", "running_var"),
  ("head", "fc"),
)
CONFIG = config_json.ConfigTable(
  fixed={"network": "inception-2015-12-05"},
  written={"_class_name": "InceptionV3"},
)

PICKLES = ("pt_inception-2015-12-05-6726825d.pth",)
