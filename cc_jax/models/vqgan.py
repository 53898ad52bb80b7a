# SPDX-License-Identifier: Apache-2.0
"""VQGAN: images as a grid of codes, and back.

"Taming Transformers for High-Resolution Image Synthesis", arXiv 2012.09841,
§3.1. CLIP-GEN's prior (arXiv 2203.00386) predicts the codes of an image from
its CLIP embedding. Files are those of diffusers' VQModel; those of the paper's
authors (taming) and of HFAiLab's CLIP-GEN are read too. What training adds,
a gradient through the codes and the losses, belongs to its task.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cc_jax.core import config_json, spelling
from cc_jax.models import autoencoder_blocks, layers


@dataclasses.dataclass(frozen=True)
class Config:
  """A VQGAN.

  The defaults are those of diffusers' VQModel: they hold for keys that a
  config.json leaves out.

  Attributes:
    in_channels: of images that are encoded.
    out_channels: of images that are decoded.
    channels: of each level, from full resolution down; each level but the
      last halves height and width.
    attention: which levels have self-attention after each residual block.
    layers_per_block: residual blocks a level; the decoder has one more.
    latent_channels: of the encoder's features.
    codebook_size: number of codes V.
    codebook_width: of a codebook entry; `latent_channels` if it is None.
    groups: of the group norms; must divide each of `channels`.
    mid_attention: the lowest level ends in a self-attention.
    sample_size: height and width of the images it was trained on; not used
      in the computation.
    eps: of the group norms. diffusers has no such key and computes with 1e-6.
  """

  in_channels: int = 3
  out_channels: int = 3
  channels: tuple[int, ...] = (64,)
  attention: tuple[bool, ...] = (False,)
  layers_per_block: int = 1
  latent_channels: int = 3
  codebook_size: int = 256
  codebook_width: int | None = None
  groups: int = 32
  mid_attention: bool = True
  sample_size: int = 32
  eps: float = 1e-6

  def __post_init__(self):
    autoencoder_blocks.check_groups(self.channels, self.groups)
    if len(self.attention) != len(self.channels):
      raise ValueError(
        f"attention={self.attention}: expected one value for each of "
        f"channels={self.channels}"
      )

  @property
  def factor(self) -> int:
    """Pixels a code, along height and along width."""
    return 2 ** (len(self.channels) - 1)


class VQGAN(nnx.Module):
  """An encoder, a codebook, and a decoder of its entries."""

  def __init__(
    self,
    config: Config,
    *,
    dtype: layers.Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    shape: dict[str, Any] = dict(
      channels=config.channels,
      attention=config.attention,
      layers_per_block=config.layers_per_block,
      groups=config.groups,
      eps=config.eps,
      mid_attention=config.mid_attention,
    )
    z, size = config.latent_channels, config.codebook_size
    width = config.codebook_width or z
    self.encoder = autoencoder_blocks.Encoder(
      config.in_channels, z, **shape, **kinds
    )
    self.quant_conv = layers.conv(z, width, 1, **kinds)
    # As taming begins: entries close together, so that many are used.
    self.codebook = nnx.Embed(
      size,
      width,
      embedding_init=lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -1 / size, 1 / size
      ),
      rngs=rngs,
    )
    self.post_quant_conv = layers.conv(width, z, 1, **kinds)
    self.decoder = autoencoder_blocks.Decoder(
      z, config.out_channels, **shape, **kinds
    )

  def encode(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J Z"]:
    """Vectors of images, before they are quantised.

    Args:
      x: images in [-1, 1]. A height or width that `Config.factor` does not
        divide loses its last rows or columns.

    Returns:
      float32, at height and width / `Config.factor`.
    """
    with jax.named_scope("encode"):
      return self.quant_conv(self.encoder(x)).astype(jnp.float32)

  def quantise(
    self, z: Float[Array, "B H W Z"]
  ) -> tuple[Float[Array, "B H W Z"], Int[Array, "B H W"]]:
    """The codebook entries nearest to vectors, and their codes: eq. 2.

    In float32 at full precision whatever the type of the computation: entries
    lie closer together than bfloat16 resolves.

    Returns:
      (entries, codes): float32 and int32. Of entries equally near it is the
      first. No gradient reaches `z` through the entries.
    """
    with jax.named_scope("quantise"):
      table = self.codebook.embedding[...]
      # |z - c|^2 = |z|^2 - 2 z c + |c|^2, of which |z|^2 is all codes' alike.
      products = jnp.einsum(
        "bhwc,vc->bhwv",
        z.astype(jnp.float32),
        table,
        precision=jax.lax.Precision.HIGHEST,
      )
      distances = jnp.sum(jnp.square(table), axis=-1) - 2 * products
      codes = jnp.argmin(distances, axis=-1).astype(jnp.int32)
      return self.lookup(codes), codes

  def lookup(self, codes: Int[Array, "B H W"]) -> Float[Array, "B H W Z"]:
    """The codebook entries of codes, float32; NaN where there is none."""
    return self.codebook(codes)

  def decode(self, zq: Float[Array, "B H W Z"]) -> Float[Array, "B I J C"]:
    """Images, float32 and about [-1, 1], from codebook entries."""
    with jax.named_scope("decode"):
      return self.decoder(self.post_quant_conv(zq)).astype(jnp.float32)

  def decode_codes(self, codes: Int[Array, "B H W"]) -> Float[Array, "B I J C"]:
    """Images, float32 and about [-1, 1], from codes."""
    return self.decode(self.lookup(codes))


# taming's vqgan_imagenet_f16_16384.
F16_16384 = Config(
  channels=(128, 128, 256, 256, 512),
  attention=(False, False, False, False, True),
  layers_per_block=2,
  latent_channels=256,
  codebook_size=16384,
  codebook_width=256,
  sample_size=256,
)
# taming's vqgan_imagenet_f16_1024.
F16_1024 = dataclasses.replace(F16_16384, codebook_size=1024)
# HFAiLab's vqgan_coco: torch's own eps, where taming sets it.
HFAILAB = dataclasses.replace(F16_16384, eps=1e-5)

NAMES: spelling.Names = (
  *autoencoder_blocks.NAMES,
  ("codebook", "quantize.embedding"),
)


def taming_names(config: Config) -> spelling.Names:
  """The spelling of taming, which numbers the decoder's levels downwards."""
  last = len(config.channels) - 1
  return (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("down_blocks", "down"),
    *(
      (f"up_blocks.{level}", f"up.{last - level}") for level in range(last + 1)
    ),
    ("attn.q", "q"),
    ("attn.k", "k"),
    ("attn.v", "v"),
    ("attn.out", "proj_out"),
    ("resnets", "block"),
    ("attentions", "attn"),
    ("shortcut", "nin_shortcut"),
    ("codebook", "quantize.embedding"),
  )


def hfailab_names(config: Config) -> spelling.Names:
  """The spelling of HFAiLab: the layers of a half in one list, in order."""
  rows, last = [], len(config.channels) - 1
  halves = (
    ("encoder.down", config.attention, config.layers_per_block, "downsample"),
    (
      "decoder.up",
      config.attention[::-1],
      config.layers_per_block + 1,
      "upsample",
    ),
  )
  for half, attention, depth, resample in halves:
    ours = []
    for level, attends in enumerate(attention):
      for block in range(depth):
        ours.append(f"{level}.resnets.{block}")
        ours += [f"{level}.attentions.{block}"] * attends
      ours += [f"{level}.{resample}"] * (level < last)
    rows += [
      (f"{half}_blocks.{layer}", f"{half}.{place}")
      for place, layer in enumerate(ours)
    ]
  return (
    *rows,
    ("mid_block.resnets.0", "mid.0"),
    ("mid_block.attentions.0", "mid.1"),
    ("mid_block.resnets.1", "mid.2"),
    ("q.weight", "in_proj_weight[0/3]"),
    ("k.weight", "in_proj_weight[1/3]"),
    ("v.weight", "in_proj_weight[2/3]"),
    ("q.bias", "in_proj_bias[0/3]"),
    ("k.bias", "in_proj_bias[1/3]"),
    ("v.bias", "in_proj_bias[2/3]"),
    ("attn.out", "attn.out_proj"),
    ("norm1", "block.0"),
    ("conv1", "block.2"),
    ("norm2", "block.3"),
    ("conv2", "block.6"),
    ("norm_out", "final.0"),
    ("conv_out", "final.2"),
    ("quant_conv", "encoder.final.3"),
    ("post_quant_conv", "decoder.quant_conv_in"),
    ("codebook", "quantizer.embedding"),
  )


# Files of 1024 codes bring a config.json, or are refused by their shapes.
def _taming_config(tensors: spelling.Tensors) -> Config:
  """Of the shape that was published, with the file's number of codes."""
  codes = tensors["quantize.embedding.weight"].shape[0]
  return dataclasses.replace(F16_16384, codebook_size=codes)


TAMING_FORMAT = spelling.Format(
  taming_names(F16_16384),
  marker="encoder.mid.attn_1.q.weight",
  config=_taming_config,
  unused=("loss.",),
  keys=("state_dict",),
)
HFAILAB_FORMAT = spelling.Format(
  hfailab_names(HFAILAB),
  marker="quantizer.embedding.weight",
  config=HFAILAB,
  unused=("discriminator.",),
  keys=("model",),
)


def _derived(config: Config) -> dict[str, Any]:
  blocks = {True: "AttnUpDecoderBlock2D", False: "UpDecoderBlock2D"}
  return {"up_block_types": tuple(blocks[up] for up in config.attention[::-1])}


CONFIG = config_json.ConfigTable(
  renamed={
    "channels": "block_out_channels",
    "attention": "down_block_types",
    "codebook_size": "num_vq_embeddings",
    "codebook_width": "vq_embed_dim",
    "groups": "norm_num_groups",
    "mid_attention": "mid_block_add_attention",
    "eps": "norm_eps",
  },
  coded={
    "down_block_types": {
      True: "AttnDownEncoderBlock2D",
      False: "DownEncoderBlock2D",
    }
  },
  fixed={"_class_name": "VQModel", "act_fn": "silu", "norm_type": "group"},
  derived=_derived,
  # How diffusers scales latents and where it wants float32.
  ignored=("scaling_factor", "force_upcast"),
  # Lets diffusers decode codes; without it, entries only.
  written={"lookup_from_codebook": True},
  own=("norm_eps",),
)
