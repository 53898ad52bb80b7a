# SPDX-License-Identifier: Apache-2.0
"""The autoencoder between images and latents.

"High-Resolution Image Synthesis with Latent Diffusion Models", arXiv
2112.10752, §3.1 and appendix G. Diffusion runs on the latents of
`AutoencoderKL`: images are encoded once, before training, and samples are
decoded at the end. Latents are unscaled here; `Config.scaling_factor`, which
brings them to unit variance, is applied where latents are noised.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, UInt8

from cc_jax.core import config_json
from cc_jax.models import autoencoder_blocks, layers

EPS = 1e-6  # of the group norms


@dataclasses.dataclass(frozen=True)
class Config:
  """An AutoencoderKL.

  Attributes:
    in_channels: of images that are encoded.
    out_channels: of images that are decoded.
    channels: of each level, from full resolution down; each level but the
      last halves height and width.
    layers_per_block: residual blocks a level; the decoder has one more.
    latent_channels: of the latents.
    groups: of the group norms; must divide each of `channels`.
    mid_attention: the lowest level has a self-attention.
    sample_size: height and width of the images it was trained on; not used
      in the computation.
    scaling_factor: 1 / standard deviation of the latents; not used here.
  """

  in_channels: int = 3
  out_channels: int = 3
  channels: tuple[int, ...] = (64,)
  layers_per_block: int = 1
  latent_channels: int = 4
  groups: int = 32
  mid_attention: bool = True
  sample_size: int = 32
  scaling_factor: float = 0.18215

  def __post_init__(self):
    autoencoder_blocks.check_groups(self.channels, self.groups)

  @property
  def factor(self) -> int:
    """Pixels a latent, along height and along width."""
    return 2 ** (len(self.channels) - 1)


class AutoencoderKL(nnx.Module):
  """An encoder to a Gaussian over latents, and a decoder from them."""

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
      attention=(False,) * len(config.channels),
      layers_per_block=config.layers_per_block,
      groups=config.groups,
      eps=EPS,
      mid_attention=config.mid_attention,
    )
    z = config.latent_channels
    self.encoder = autoencoder_blocks.Encoder(
      config.in_channels, 2 * z, **shape, **kinds
    )
    self.quant_conv = layers.conv(2 * z, 2 * z, 1, **kinds)
    self.post_quant_conv = layers.conv(z, z, 1, **kinds)
    self.decoder = autoencoder_blocks.Decoder(
      z, config.out_channels, **shape, **kinds
    )

  def encode(
    self, x: Float[Array, "B H W C"]
  ) -> tuple[Float[Array, "B I J Z"], Float[Array, "B I J Z"]]:
    """Mean and standard deviation of the latents of images.

    Args:
      x: images in [-1, 1]. A height or width that `Config.factor` does not
        divide loses its last rows or columns.

    Returns:
      (mean, std), float32 and unscaled, at height and width / `Config.factor`.
    """
    with jax.named_scope("encode"):
      moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
      mean, logvar = jnp.split(moments, 2, axis=-1)
      # Beyond these the exponential leaves float32's useful range.
      return mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0))

  def latents(
    self, pixels: UInt8[Array, "B H W C"]
  ) -> tuple[BFloat16[Array, "B I J Z"], BFloat16[Array, "B I J Z"]]:
    """The same of images in bytes, rounded as datasets have it."""
    mean, std = self.encode(pixels.astype(jnp.float32) / 127.5 - 1)
    return mean.astype(jnp.bfloat16), std.astype(jnp.bfloat16)

  def decode(self, z: Float[Array, "B H W Z"]) -> Float[Array, "B I J C"]:
    """Images, float32 and about [-1, 1], from unscaled latents."""
    with jax.named_scope("decode"):
      return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)


# stabilityai/sd-vae-ft-ema, the autoencoder of Stable Diffusion 1 and 2.
SD = Config(
  channels=(128, 256, 512, 512),
  layers_per_block=2,
  sample_size=512,
  scaling_factor=0.18215,
)
# The same shape, trained anew for SDXL.
SDXL = dataclasses.replace(SD, sample_size=1024, scaling_factor=0.13025)

NAMES = autoencoder_blocks.NAMES


def _block_types(config: Config) -> dict[str, Any]:
  levels = len(config.channels)
  return {
    "down_block_types": ("DownEncoderBlock2D",) * levels,
    "up_block_types": ("UpDecoderBlock2D",) * levels,
  }


CONFIG = config_json.ConfigTable(
  renamed={
    "channels": "block_out_channels",
    "groups": "norm_num_groups",
    "mid_attention": "mid_block_add_attention",
  },
  fixed={
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
  },
  derived=_block_types,
  # Asks for float32 where the computation would be float16.
  ignored=("force_upcast",),
)
