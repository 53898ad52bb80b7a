# SPDX-License-Identifier: Apache-2.0
"""PatchGAN: real or made, patch by patch.

"Image-to-Image Translation with Conditional Adversarial Networks",
arXiv 1611.07004, §3.2.2; decoders of VQGANs and autoencoders are trained
against it (arXiv 2012.09841, §3.1). Its batch norms always use the statistics
of the batch that they are given, of all devices: it is trained, and never used
otherwise, so there are no running ones. Names are those of taming's code.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import config_json, sharding
from cc_jax.models import layers

NORMS = ("batch", "group")
EPS = 1e-5  # of the norms, torch's own
GROUPS = 32

# As taming begins.
INIT = nnx.initializers.normal(0.02)


def scale_init(key: Any, shape: Any, dtype: Any) -> Any:
  """Scales around 1, with the deviation of the kernels."""
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Config:
  """A PatchGAN.

  Attributes:
    channels: of the first layer; each further one has twice as many, up to
      eight times.
    depth: layers that halve height and width; two more do not.
    norm: "batch" as published, or "group", whose result for an image does not
      depend on the others.
  """

  channels: int = 64
  depth: int = 3
  norm: str = "batch"

  def __post_init__(self):
    if self.norm not in NORMS:
      raise ValueError(f"norm={self.norm!r}; expected {' or '.join(NORMS)}")
    if self.depth < 1 or self.channels < 1:
      raise ValueError(
        f"depth={self.depth}, channels={self.channels}; expected 1 or more"
      )

  @property
  def smallest(self) -> int:
    """Pixels a side, below which nothing is left to judge."""
    # Each of the two layers without a stride takes one row.
    return 3 * 2**self.depth


class Norm(nnx.Module):
  """Normalises over the batch, or over groups of channels of each image."""

  def __init__(self, channels: int, norm: str, *, rngs: nnx.Rngs):
    self.norm = norm
    self.scale = nnx.Param(scale_init(rngs.params(), (channels,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((channels,)))

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    B, H, W, C = x.shape
    h = x.astype(jnp.float32)
    if self.norm == "batch":
      axes = (0, 1, 2)
    else:
      groups = min(GROUPS, C)
      h, axes = h.reshape(B, H, W, groups, C // groups), (1, 2, 4)
    mean = jnp.mean(h, axis=axes, keepdims=True)
    var = jnp.mean(jnp.square(h - mean), axis=axes, keepdims=True)
    h = ((h - mean) * jax.lax.rsqrt(var + EPS)).reshape(x.shape)
    return (h * self.scale[...] + self.bias[...]).astype(x.dtype)


class Discriminator(nnx.Module):
  """Images -> a logit for each patch: above 0 where it looks real."""

  def __init__(
    self,
    config: Config,
    *,
    dtype: layers.Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(init=INIT, dtype=dtype, rngs=rngs)
    pad = ((1, 1), (1, 1))
    widths = [
      config.channels * min(2**layer, 8) for layer in range(config.depth + 1)
    ]
    strides = [*[2] * (config.depth - 1), 1]
    self.config = config
    self.convs = nnx.List(
      [
        layers.conv(3, widths[0], 4, stride=2, padding=pad, **kinds),
        *(
          layers.conv(
            before, width, 4, stride=stride, padding=pad, bias=False, **kinds
          )
          for before, width, stride in zip(
            widths, widths[1:], strides, strict=False
          )
        ),
        layers.conv(widths[-1], 1, 4, padding=pad, **kinds),
      ]
    )
    self.norms = nnx.List(
      [Norm(width, config.norm, rngs=rngs) for width in widths[1:]]
    )

  def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B I J 1"]:
    """Logits in float32 of images in [-1, 1].

    Raises:
      ValueError: images have fewer pixels a side than `Config.smallest`.
    """
    check_size(self.config, *x.shape[1:3])
    with jax.named_scope("discriminator"):
      x = jax.nn.leaky_relu(self.convs[0](x), 0.2)
      for conv, norm in zip(self.convs[1:-1], self.norms, strict=True):
        x = sharding.constrain(jax.nn.leaky_relu(norm(conv(x)), 0.2))
      return self.convs[-1](x).astype(jnp.float32)


def check_size(config: Config, height: int, width: int) -> None:
  """Refuses images of which nothing is left to judge."""
  if min(height, width) < config.smallest:
    raise ValueError(
      f"a discriminator of depth {config.depth} for images of {height} x "
      f"{width} pixels; expected at least {config.smallest} a side, or a "
      "smaller depth"
    )


# Of pix2pix, taming and HFAiLab: each logit sees 70 x 70 pixels.
PATCHES_70 = Config()

# Places in taming's list, which counts norms and activations too.
DEEPEST = 8
NAMES = (
  ("convs.0", "main.0"),
  *((f"convs.{n}", f"main.{3 * n - 1}") for n in range(1, DEEPEST)),
  *((f"norms.{n}", f"main.{3 * n + 3}") for n in range(DEEPEST)),
)
CONFIG = config_json.ConfigTable(written={"_class_name": "PatchGAN"})
# Running statistics, see above.
UNUSED = tuple(
  f"main.{3 * n + 3}.{name}"
  for n in range(DEEPEST)
  for name in ("running_mean", "running_var", "num_batches_tracked")
)
