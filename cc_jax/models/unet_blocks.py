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
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cc_jax.core import sharding
from cc_jax.models import layers, residual


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

  Args:
    widths: channels of the map that each residual block reads.
    width: channels of the map that each gives.
    attentions: how many residual blocks a transformer follows.
    heads: of its attentions.
    depth: of each transformer, in blocks.
    time_width: of the vector of conditions F.
    source_width: of the text states E.
    groups: of the group norms.
    linear: see `SpatialTransformer`.
    downsample: halve height and width at the end.
    upsample: double them at the end.
    remat: what the backward pass keeps (see layers.checkpointed).
    dtype: of the computation.
    rngs: for the initial weights.
  """

  def __init__(
    self,
    widths: Sequence[int],
    width: int,
    *,
    attentions: int,
    heads: int,
    depth: int,
    time_width: int,
    source_width: int,
    groups: int,
    linear: bool,
    downsample: bool = False,
    upsample: bool = False,
    remat: str,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.remat = remat
    self.resnets = nnx.List(
      residual.ResnetBlock(
        read,
        width,
        time_width=time_width,
        groups=groups,
        out_init=layers.ZEROS,
        **kinds,
      )
      for read in widths
    )
    self.attentions = nnx.List(
      SpatialTransformer(
        width,
        heads,
        depth,
        source_width=source_width,
        groups=groups,
        linear=linear,
        remat=remat,
        **kinds,
      )
      for _ in range(attentions)
    )
    self.downsample = (
      residual.Downsample(width, width, **kinds) if downsample else None
    )
    self.upsample = (
      residual.Upsample(width, width, **kinds) if upsample else None
    )

  def down(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B F"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
  ) -> list[Float[Array, "B ..."]]:
    """The map after each step; the way up reads them all."""
    maps = []
    for index in range(len(self.resnets)):
      x = self._attend(index, self._resnet(index, x, time), context, mask)
      maps.append(x)
    return maps if self.downsample is None else [*maps, self.downsample(x)]

  def middle(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B F"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
  ) -> Float[Array, "B H W O"]:
    """A transformer between two residual blocks."""
    x = self._attend(0, self._resnet(0, x, time), context, mask)
    return self._resnet(1, x, time)

  def up(
    self,
    x: Float[Array, "B H W C"],
    maps: Sequence[Float[Array, "B H W _"]],
    time: Float[Array, "B F"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
    size: tuple[int, int] | None = None,
  ) -> Float[Array, "B I J O"]:
    """Joins the maps of the way down, the last first.

    `size` is the height and width to upsample to.
    """
    for index, skip in enumerate(reversed(maps)):
      x = self._resnet(index, jnp.concatenate([x, skip], axis=-1), time)
      x = self._attend(index, x, context, mask)
    return x if self.upsample is None else self.upsample(x, size)

  def _resnet(self, index, x, time):
    block = self.resnets[index]
    with jax.named_scope("resnet"):
      run = layers.checkpointed(type(block).__call__, self.remat)
      return sharding.constrain(run(block, x, time))

  def _attend(self, index, x, context, mask):
    """The transformer after a residual block, where there is one."""
    if index >= len(self.attentions):
      return x
    with jax.named_scope("transformer"):
      return sharding.constrain(self.attentions[index](x, context, mask))
