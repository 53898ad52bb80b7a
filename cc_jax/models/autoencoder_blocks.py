# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder of the autoencoders.

"Taming Transformers for High-Resolution Image Synthesis", arXiv 2012.09841,
appendix A. models/autoencoder.py and models/vqgan.py put their
bottlenecks between the two.
"""

from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Float

from cc_jax.core import convert, sharding
from cc_jax.models import layers, residual

# A stride-2 convolution that looks one pixel beyond the right and lower edge.
ASYMMETRIC = ((0, 1), (0, 1))


def check_groups(channels: tuple[int, ...], groups: int) -> None:
  """Refuses channels that group norms cannot divide.

  Raises:
    ValueError: one of `channels` is no multiple of `groups`.
  """
  for width in channels:
    if width % groups:
      raise ValueError(
        f"channels={channels}: {width} does not divide into groups={groups}"
      )


class SpatialAttention(nnx.Module):
  """x + attn(norm(x)): each position sees all others, with one head."""

  def __init__(
    self,
    width: int,
    *,
    groups: int,
    eps: float,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.norm = layers.group_norm(width, groups, eps, **kinds)
    self.attn = layers.Attention(width, 1, **kinds)

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    B, H, W, C = x.shape
    h = self.attn(self.norm(x).reshape(B, H * W, C))
    return x + h.reshape(B, H, W, C)


class Mid(nnx.Module):
  """The lowest level: residual block, self-attention, residual block."""

  def __init__(
    self,
    width: int,
    *,
    groups: int,
    eps: float,
    attention: bool,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(groups=groups, eps=eps, dtype=dtype, rngs=rngs)
    self.resnets = nnx.List(
      [residual.ResnetBlock(width, width, **kinds) for _ in range(2)]
    )
    self.attentions = nnx.List(
      [SpatialAttention(width, **kinds) for _ in range(attention)]
    )

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    x = self.resnets[0](x)
    for attention in self.attentions:
      x = attention(x)
    return sharding.constrain(self.resnets[1](x))


class Level(nnx.Module):
  """Blocks at one resolution, then the step to the next one.

  Where the level has attention it follows each residual block.
  """

  def __init__(
    self,
    width: int,
    out: int,
    depth: int,
    *,
    groups: int,
    eps: float,
    attention: bool,
    down: bool = False,
    up: bool = False,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    norms: dict[str, Any] = dict(groups=groups, eps=eps)
    self.resnets = nnx.List(
      [
        residual.ResnetBlock(
          width if block == 0 else out, out, **norms, **kinds
        )
        for block in range(depth)
      ]
    )
    self.attentions = nnx.List(
      [
        SpatialAttention(out, **norms, **kinds)
        for _ in range(depth * attention)
      ]
    )
    self.downsample = (
      residual.Downsample(out, out, padding=ASYMMETRIC, **kinds)
      if down
      else None
    )
    self.upsample = residual.Upsample(out, out, **kinds) if up else None

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J O"]:
    for block, resnet in enumerate(self.resnets):
      x = resnet(x)
      if self.attentions:
        x = self.attentions[block](x)
    for resample in (self.downsample, self.upsample):
      if resample is not None:
        x = resample(x)
    return sharding.constrain(x)


class Encoder(nnx.Module):
  """Images to features, each level at half the resolution of the one before."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    *,
    channels: tuple[int, ...],
    attention: tuple[bool, ...],
    layers_per_block: int,
    groups: int,
    eps: float,
    mid_attention: bool = True,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    norms: dict[str, Any] = dict(groups=groups, eps=eps)
    self.conv_in = layers.conv(in_channels, channels[0], **kinds)
    self.down_blocks = nnx.List(
      [
        Level(
          channels[max(level - 1, 0)],
          out,
          layers_per_block,
          attention=attention[level],
          down=level < len(channels) - 1,
          **norms,
          **kinds,
        )
        for level, out in enumerate(channels)
      ]
    )
    width = channels[-1]
    self.mid_block = Mid(width, attention=mid_attention, **norms, **kinds)
    self.norm_out = layers.group_norm(width, **norms, **kinds)
    self.conv_out = layers.conv(width, out_channels, **kinds)

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J Z"]:
    x = self.conv_in(x)
    for level in self.down_blocks:
      x = level(x)
    return self.conv_out(jax.nn.silu(self.norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
  """Features to images: the encoder backwards, one residual block more."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    *,
    channels: tuple[int, ...],
    attention: tuple[bool, ...],
    layers_per_block: int,
    groups: int,
    eps: float,
    mid_attention: bool = True,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    norms: dict[str, Any] = dict(groups=groups, eps=eps)
    width, upward = channels[-1], channels[::-1]
    self.conv_in = layers.conv(in_channels, width, **kinds)
    self.mid_block = Mid(width, attention=mid_attention, **norms, **kinds)
    self.up_blocks = nnx.List(
      [
        Level(
          upward[max(level - 1, 0)],
          out,
          layers_per_block + 1,
          attention=attention[-1 - level],
          up=level < len(channels) - 1,
          **norms,
          **kinds,
        )
        for level, out in enumerate(upward)
      ]
    )
    self.norm_out = layers.group_norm(channels[0], **norms, **kinds)
    self.conv_out = layers.conv(channels[0], out_channels, **kinds)

  def __call__(self, z: Float[Array, "B H W Z"]) -> Float[Array, "B I J C"]:
    x = self.mid_block(self.conv_in(z))
    for level in self.up_blocks:
      x = level(x)
    return self.conv_out(jax.nn.silu(self.norm_out(x)))


# The spelling of diffusers.
NAMES: convert.Names = (
  ("norm", "group_norm"),
  ("attn.q", "to_q"),
  ("attn.k", "to_k"),
  ("attn.v", "to_v"),
  ("attn.out", "to_out.0"),
  ("shortcut", "conv_shortcut"),
  ("downsample", "downsamplers.0"),
  ("upsample", "upsamplers.0"),
  ("norm_out", "conv_norm_out"),
)
