# SPDX-License-Identifier: Apache-2.0
"""The U-Net that predicts noise (or v, or x0) of latents from text states.

"High-Resolution Image Synthesis with Latent Diffusion Models", arXiv
2112.10752, §3.3 and appendix B; its sizes in Stable Diffusion 2 and in "SDXL",
arXiv 2307.01952. It is the network that CommonCanvas, arXiv 2310.16825,
trains: S has the shape of SD2, L the body of SDXL behind SD2's text encoder,
XL the whole of SDXL.

Initial weights are torch's defaults, except that the last convolution, the
second convolution of each residual block and the last layer of each attention
are zero, as CommonCanvas trains SDXL from scratch: each residual branch begins
as nothing, and so does the prediction.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from cc_jax.core import config_json, spelling
from cc_jax.models import layers, unet_blocks


@dataclasses.dataclass(frozen=True)
class Config:
  """A conditional U-Net; the defaults are those of diffusers' files.

  Attributes:
    sample_size: height and width of the latents it was trained on, or both;
      not used in the computation.
    in_channels: of the latents.
    out_channels: of the prediction.
    channels: of each level, from full resolution down; each level but the
      last halves height and width.
    attention: which levels have transformers; the middle always has.
    layers_per_block: residual blocks a level on the way down; one more on the
      way up.
    depth: transformer blocks after each residual block, one number or one a
      level; the middle has the last level's.
    heads: of the attentions, likewise. diffusers calls it attention_head_dim.
    source_width: of the text states E.
    linear_projection: the layers into and out of a transformer are stored as
      linear layers, not as 1x1 convolutions.
    groups: of the group norms; must divide each of `channels`.
    pooled_conditions: "text_time" adds pooled text and six sizes to the
      embedding of the timestep, as SDXL; None does not.
    size_width: sinusoids of each of the sizes.
    conditions_width: pooled width P + 6 `size_width`.
  """

  sample_size: int | tuple[int, int] | None = None
  in_channels: int = 4
  out_channels: int = 4
  channels: tuple[int, ...] = (320, 640, 1280, 1280)
  attention: tuple[bool, ...] = (True, True, True, False)
  layers_per_block: int = 2
  depth: int | tuple[int, ...] = 1
  heads: int | tuple[int, ...] = 8
  source_width: int = 1280
  linear_projection: bool = False
  groups: int = 32
  pooled_conditions: str | None = None
  size_width: int | None = None
  conditions_width: int | None = None

  def __post_init__(self):
    levels = len(self.channels)
    for name in ("attention", "depth", "heads"):
      value = getattr(self, name)
      if isinstance(value, tuple) and len(value) != levels:
        raise ValueError(
          f"{name}={value} has {len(value)} values for {levels} levels of "
          f"channels={self.channels}"
        )
    for level, width in enumerate(self.channels):
      parts = {"groups": self.groups, "heads": self.at(level)[1]}
      for name, count in parts.items():
        if width % count:
          raise ValueError(
            f"channels={self.channels}: {width} does not divide into "
            f"{name}={count}"
          )
    if self.pooled_conditions not in (None, "text_time"):
      raise ValueError(
        f"unknown pooled_conditions {self.pooled_conditions!r}; expected "
        "None or 'text_time'"
      )
    if self.pooled_conditions and not (self.size_width and self.pooled_width):
      raise ValueError(
        "pooled_conditions='text_time' needs size_width and conditions_width; "
        f"got {self.size_width} and {self.conditions_width}"
      )

  def at(self, level: int) -> tuple[int, int]:
    """(depth, heads) of the transformers of a level."""
    pick = lambda value: value[level] if isinstance(value, tuple) else value
    return pick(self.depth), pick(self.heads)

  @property
  def pooled_width(self) -> int:
    """Width P of the pooled text; 0 where it is not used."""
    return (self.conditions_width or 0) - 6 * (self.size_width or 0)


class UNet2DCondition(nnx.Module):
  """A prediction for noised latents, from timestep and text.

  Args:
    config: the architecture.
    dtype: of the computation.
    remat: what the backward pass keeps of each residual block and transformer
      block: "none" (everything), "dots" or "full" (see layers.checkpointed).
    rngs: for the initial weights.
  """

  def __init__(
    self,
    config: Config,
    *,
    dtype: layers.Dtype = jnp.float32,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.config, self.dtype = config, dtype
    channels, depth = config.channels, config.layers_per_block
    width, last = channels[0], len(channels) - 1
    self.conv_in = layers.conv(config.in_channels, width, **kinds)
    self.time_embedding = layers.TimeMLP(width, 4 * width, **kinds)
    self.add_embedding = (
      layers.TimeMLP(config.conditions_width, 4 * width, **kinds)
      if config.pooled_conditions
      else None
    )

    def make(level, widths, attentions, **options):
      blocks, heads = config.at(level)
      return unet_blocks.Level(
        widths,
        channels[level],
        attentions=attentions,
        heads=heads,
        depth=blocks,
        time_width=4 * channels[0],
        source_width=config.source_width,
        groups=config.groups,
        linear=config.linear_projection,
        remat=remat,
        **options,
        **kinds,
      )

    # Every map on the way down is read once on the way up, the last first.
    skips = [width]
    self.down_blocks = nnx.List()
    for level, out in enumerate(channels):
      widths, down = [width] + [out] * (depth - 1), level < last
      attentions = depth * config.attention[level]
      self.down_blocks.append(make(level, widths, attentions, downsample=down))
      skips += [out] * (depth + down)
      width = out
    self.mid_block = make(last, [width, width], 1)
    self.up_blocks = nnx.List()
    for level in reversed(range(len(channels))):
      read = [width] + [channels[level]] * depth
      widths = [own + skips.pop() for own in read]
      attentions = (depth + 1) * config.attention[level]
      self.up_blocks.append(make(level, widths, attentions, upsample=level > 0))
      width = channels[level]
    self.norm_out = layers.group_norm(width, config.groups, 1e-5, **kinds)
    self.conv_out = layers.conv(
      width, config.out_channels, init=layers.ZEROS, **kinds
    )

  def embed(
    self,
    t: Num[Array, "B"],
    pooled: Float[Array, "B P"] | None = None,
    sizes: Num[Array, "B 6"] | None = None,
  ) -> Float[Array, "B F"]:
    """The vector of conditions that every residual block reads."""
    config = self.config
    time = self.time_embedding(
      layers.timestep_embedding(t, config.channels[0]).astype(self.dtype)
    )
    if self.add_embedding is None:
      if pooled is not None or sizes is not None:
        raise ValueError(
          "pooled text and sizes given to a U-Net whose pooled_conditions is "
          "None; leave them out"
        )
      return time
    if pooled is None or sizes is None:
      raise ValueError(
        "pooled_conditions='text_time' needs pooled text and time_ids"
      )
    if pooled.shape[-1] != config.pooled_width:
      raise ValueError(
        f"pooled text of width {pooled.shape[-1]}; expected "
        f"{config.pooled_width} (conditions_width - 6 size_width)"
      )
    sizes = layers.timestep_embedding(sizes, config.size_width)
    more = [pooled, sizes.reshape(len(sizes), -1)]
    more = jnp.concatenate([x.astype(self.dtype) for x in more], axis=-1)
    return time + self.add_embedding(more)

  def __call__(
    self,
    xt: Float[Array, "B H W C"],
    t: Num[Array, "B"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
    pooled: Float[Array, "B P"] | None = None,
    time_ids: Num[Array, "B 6"] | None = None,
  ) -> Float[Array, "B H W O"]:
    """What the network was trained to predict, in float32.

    Args:
      xt: noised latents, scaled to unit variance; of any height and width.
      t: timesteps, in [0, 1000) for the published checkpoints.
      context: text states.
      mask: true where a text state may be attended to; None is everywhere.
      pooled: pooled text, for `pooled_conditions` only.
      time_ids: original height, width, top and left of the crop, target
        height, width, in pixels; for `pooled_conditions` only.

    Raises:
      ValueError: conditions that the config does not have, or lacks.
    """
    if context.shape[-1] != self.config.source_width:
      raise ValueError(
        f"text states of width {context.shape[-1]}; expected "
        f"source_width={self.config.source_width}"
      )
    time = self.embed(t, pooled, time_ids)
    context = context.astype(self.dtype)
    maps = [self.conv_in(xt)]
    for number, level in enumerate(self.down_blocks):
      with jax.named_scope(f"down_{number}"):
        maps += level.down(maps[-1], time, context, mask)
    with jax.named_scope("mid"):
      x = self.mid_block.middle(maps[-1], time, context, mask)
    for number, level in enumerate(self.up_blocks):
      count = len(level.resnets)
      maps, read = maps[:-count], maps[-count:]
      # Twice the height, but where an odd map was padded on the way down.
      size = maps[-1].shape[1:3] if maps else None
      with jax.named_scope(f"up_{number}"):
        x = level.up(x, read, time, context, mask, size)
    x = self.conv_out(layers.norm_silu(self.norm_out, x))
    return x.astype(jnp.float32)


# stabilityai/stable-diffusion-2-base; CommonCanvas-S.
SD2 = Config(
  sample_size=64,
  heads=(5, 10, 20, 20),
  source_width=1024,
  linear_projection=True,
)
# stabilityai/stable-diffusion-xl-base-1.0; CommonCanvas-XL.
SDXL = Config(
  sample_size=128,
  channels=(320, 640, 1280),
  attention=(False, True, True),
  depth=(1, 2, 10),
  heads=(5, 10, 20),
  source_width=2048,
  linear_projection=True,
  pooled_conditions="text_time",
  size_width=256,
  conditions_width=2816,
)
# CommonCanvas-L: SDXL's body, SD2's text encoder, no other conditions.
COMMON_CANVAS_L = dataclasses.replace(
  SDXL,
  sample_size=64,
  source_width=1024,
  pooled_conditions=None,
  size_width=None,
  conditions_width=None,
)

NAMES: spelling.Names = (
  ("blocks", "transformer_blocks.{l}"),
  ("q", "to_q"),
  ("k", "to_k"),
  ("v", "to_v"),
  ("out", "to_out.0"),
  ("mlp.up", "ff.net.0.proj[0/2]"),
  ("mlp.gate", "ff.net.0.proj[1/2]"),
  ("mlp.down", "ff.net.2"),
  ("up", "linear_1"),
  ("down", "linear_2"),
  ("time", "time_emb_proj"),
  ("shortcut", "conv_shortcut"),
  ("downsample", "downsamplers.0"),
  ("upsample", "upsamplers.0"),
  ("norm_out", "conv_norm_out"),
)

UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}

# Variants of diffusers' class that no model here has.
FALSE = (
  "center_input_sample class_embeddings_concat dual_cross_attention "
  "only_cross_attention resnet_skip_time_act"
).split()
NONE = (
  "class_embed_type cross_attention_norm encoder_hid_dim encoder_hid_dim_type "
  "mid_block_only_cross_attention num_attention_heads num_class_embeds "
  "reverse_transformer_layers_per_block time_cond_proj_dim "
  "time_embedding_act_fn time_embedding_dim timestep_post_act"
).split()

CONFIG = config_json.ConfigTable(
  renamed={
    "channels": "block_out_channels",
    "attention": "down_block_types",
    "depth": "transformer_layers_per_block",
    "heads": "attention_head_dim",
    "source_width": "cross_attention_dim",
    "linear_projection": "use_linear_projection",
    "groups": "norm_num_groups",
    "pooled_conditions": "addition_embed_type",
    "size_width": "addition_time_embed_dim",
    "conditions_width": "projection_class_embeddings_input_dim",
  },
  coded={
    "down_block_types": {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
  },
  fixed={
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    **dict.fromkeys(FALSE, False),
    **dict.fromkeys(NONE),
  },
  derived=lambda config: {
    "up_block_types": tuple(UP[level] for level in config.attention[::-1])
  },
  # The softmax is in float32 here whatever this says.
  ignored=("upcast_attention",),
)
