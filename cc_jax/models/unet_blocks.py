# SPDX-License-Identifier: Apache-2.0
"""What the U-Net consists of: maps of pixels through residual blocks and
transformers.

"High-Resolution Image Synthesis with Latent Diffusion Models", arXiv
2112.10752, appendix B.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Bool, Float

from cc_jax.core import sharding
from cc_jax.models import layers


class TransformerBlock(nnx.Module):
  """Attention of pixels to pixels, of pixels to text, then GEGLU."""

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    source_width: int,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    plain = dict(bias=False, out_init=layers.ZEROS)
    self.norm1 = layers.layer_norm(width, **kinds)
    self.attn1 = layers.Attention(width, heads, **plain, **kinds)
    self.norm2 = layers.layer_norm(width, **kinds)
    self.attn2 = layers.Attention(
      width, heads, source_width=source_width, **plain, **kinds
    )
    self.norm3 = layers.layer_norm(width, **kinds)
    self.mlp = layers.MLP(width, 4 * width, gated=True, **kinds)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
  ) -> Float[Array, "B T D"]:
    with jax.named_scope("attn1"):
      x = x + self.attn1(self.norm1(x))
    with jax.named_scope("attn2"):
      x = x + self.attn2(self.norm2(x), context, mask)
    with jax.named_scope("mlp"):
      return x + self.mlp(self.norm3(x))


class SpatialTransformer(nnx.Module):
  """x + a transformer over the pixels of x."""

  def __init__(
    self,
    width: int,
    heads: int,
    depth: int,
    *,
    source_width: int,
    groups: int,
    linear: bool = True,
    remat: str = "none",
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)

    # The same computation either way; files differ in the rank of the kernel.
    def project():
      if linear:
        return layers.linear(width, width, **kinds)
      return layers.conv(width, width, 1, **kinds)

    def make(rngs):
      return TransformerBlock(
        width, heads, source_width=source_width, dtype=dtype, rngs=rngs
      )

    self.remat = remat
    self.norm = layers.group_norm(width, groups, 1e-6, **kinds)
    self.proj_in = project()
    self.blocks = layers.stack(make, depth, rngs)
    self.proj_out = project()

  def __call__(
    self,
    x: Float[Array, "B H W C"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
  ) -> Float[Array, "B H W C"]:
    B, H, W, C = x.shape
    h = self.proj_in(self.norm(x)).reshape(B, H * W, C)
    h = layers.scan(self.blocks, h, context, mask, remat=self.remat)
    return x + self.proj_out(h.reshape(B, H, W, C))


class Level(nnx.Module):
  """The blocks at one resolution, on the way down, in the middle or up.

  A residual block may be followed by a transformer. What is between them, the
  maps that are kept or joined, is the network's.
  """

  def __init__(
    self,
    resnets: Sequence[layers.ResnetBlock],
    attentions: Sequence[SpatialTransformer],
    downsample: layers.Downsample | None,
    upsample: layers.Upsample | None,
    *,
    remat: str,
  ):
    self.resnets = nnx.List(resnets)
    self.attentions = nnx.List(attentions)
    self.downsample = downsample
    self.upsample = upsample
    self.remat = remat

  def resnet(
    self, index: int, x: Float[Array, "B H W C"], time: Float[Array, "B F"]
  ) -> Float[Array, "B H W O"]:
    """One residual block."""
    block = self.resnets[index]
    with jax.named_scope("resnet"):
      run = layers.checkpointed(type(block).__call__, self.remat)
      return sharding.constrain(run(block, x, time))

  def attend(
    self,
    index: int,
    x: Float[Array, "B H W C"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None,
  ) -> Float[Array, "B H W C"]:
    """The transformer after a residual block, where there is one."""
    if index >= len(self.attentions):
      return x
    with jax.named_scope("transformer"):
      return sharding.constrain(self.attentions[index](x, context, mask))
