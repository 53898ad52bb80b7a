# SPDX-License-Identifier: Apache-2.0
"""PixArt-alpha's transformer, which denoises latents by the states of T5.

"PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic
Text-to-Image Synthesis", arXiv 2310.00426, §2.3: DiT (models/dit.py) with
attention to a caption in each block, and one modulation by the timestep for all
blocks, to which each adds a table of its own (adaLN-single). This project
trains it on Creative-Commons images. Files are those of diffusers'
PixArtTransformer2DModel, and the authors' .pth.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from cc_jax.core import config_json, spelling
from cc_jax.models import layers, patches, recompute


@dataclasses.dataclass(frozen=True)
class Config:
  """A text-conditional transformer; the defaults are those of diffusers.

  Attributes:
    sample_size: height and width of the latents it was trained on; positions
      are counted in its patches.
    patch: height and width of a patch of the latents, one token.
    in_channels: of the latents.
    out_channels: of the prediction, noise and what its variance is
      interpolated by; as `in_channels` where None.
    heads: N.
    head_width: K.
    depth: number of blocks L.
    caption_width: of the text states E; None where they have the width D and
      are not projected.
    eps: of the norms within blocks.
    interpolation_scale: by which positions are divided, so that a large map
      spans those of the smaller one that was trained before; None is
      sample_size // 64, at least 1.
    micro_conditions: the network is told size and aspect ratio of the image;
      None is whether `sample_size` is 128. Ours of other sizes may have them.
    null_tokens: tokens of `null_caption`, 0 where there is none.
  """

  sample_size: int = 128
  patch: int = 2
  in_channels: int = 4
  out_channels: int | None = 8
  heads: int = 16
  head_width: int = 72
  depth: int = 28
  caption_width: int | None = None
  eps: float = 1e-6
  interpolation_scale: float | int | None = None
  micro_conditions: bool | None = None
  null_tokens: int = 0

  def __post_init__(self):
    # What None stands for is written out: configs that mean the same are equal.
    if self.interpolation_scale is None:
      scale = max(self.sample_size // 64, 1)
      object.__setattr__(self, "interpolation_scale", scale)
    if self.micro_conditions is None:
      object.__setattr__(self, "micro_conditions", self.sample_size == 128)
    patches.check_sizes(self)
    if self.micro_conditions and self.width % 3:
      raise ValueError(
        f"heads={self.heads} of head_width={self.head_width}: their product "
        "must divide by 3 for micro_conditions, which are three numbers"
      )

  @property
  def width(self) -> int:
    """D."""
    return self.heads * self.head_width

  @property
  def source_width(self) -> int:
    """Width of the text states E."""
    return self.caption_width or self.width


class Block(nnx.Module):
  """Attention to the image, to the caption, and an MLP.

  The attention to the caption reads the states as they are: neither normed nor
  modulated, and its result is not gated.
  """

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    norm = dict(affine=False, **kinds)
    width, heads, xavier = config.width, config.heads, patches.XAVIER
    self.table = patches.table(6, width, rngs)
    self.norm1 = layers.layer_norm(width, config.eps, **norm)
    self.attn1 = layers.Attention(
      width, heads, init=patches.fused_xavier(3), out_init=xavier, **kinds
    )
    self.attn2 = layers.Attention(
      width,
      heads,
      init=xavier,
      source_init=patches.fused_xavier(2),
      out_init=layers.ZEROS,
      **kinds,
    )
    self.norm2 = layers.layer_norm(width, config.eps, **norm)
    self.mlp = layers.MLP(
      width, 4 * width, act="gelu_tanh", init=xavier, **kinds
    )

  def __call__(
    self,
    x: Float[Array, "B T D"],
    modulation: Float[Array, "B 6 D"],
    context: Float[Array, "B S D"],
    mask: Bool[Array, "#B #S"] | None = None,
    token_mask: Bool[Array, "#B #T"] | None = None,
  ) -> Float[Array, "B T D"]:
    six = jnp.split(self.table[...] + modulation, 6, axis=1)  # [B 1 D] each
    shift1, scale1, gate1, shift2, scale2, gate2 = six
    with jax.named_scope("attn1"):
      h = patches.modulate(self.norm1(x), shift1, scale1)
      x = x + (gate1 * self.attn1(h, mask=token_mask)).astype(x.dtype)
    with jax.named_scope("attn2"):
      x = x + self.attn2(x, context, mask)
    with jax.named_scope("mlp"):
      h = patches.modulate(self.norm2(x), shift2, scale2)
      h = recompute.kept(self.mlp(h))
      return x + (gate2 * h).astype(x.dtype)


class PixArt(nnx.Module):
  """A prediction for noised latents, from timestep and text.

  `null_caption` [S E], where there is one, stands for no caption: random states
  that the authors trained with and never trained. diffusers encodes an empty
  caption instead.

  Args:
    config: the architecture.
    dtype: of the computation.
    remat: what the backward pass keeps of each block: "none" (everything),
      "dots" or "full" (see layers.checkpointed).
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
    normal = dict(init=patches.NORMAL, **kinds)
    width, patch, third = config.width, config.patch, config.width // 3
    self.config, self.dtype, self.remat = config, dtype, remat
    self.patch = patches.Patch(patch, config.in_channels, width, **kinds)
    read = lambda out: layers.TimeMLP(patches.SINUSOIDS, out, **normal)
    self.time = read(width)
    self.size = read(third) if config.micro_conditions else None
    self.ratio = read(third) if config.micro_conditions else None
    self.modulation = layers.linear(width, 6 * width, **normal)
    source, null = config.source_width, config.null_tokens
    project = dict(out=width, act="gelu_tanh", **normal)
    self.caption = (
      layers.MLP(source, width, **project) if config.caption_width else None
    )
    self.null_caption = patches.table(null, source, rngs) if null else None
    self.blocks = layers.stack(
      lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs
    )
    self.norm_out = layers.layer_norm(width, 1e-6, affine=False, **kinds)
    self.final_table = patches.table(2, width, rngs)
    channels = config.out_channels or config.in_channels
    self.proj_out = layers.linear(
      width, patch * patch * channels, init=layers.ZEROS, **kinds
    )

  def embed(
    self,
    t: Num[Array, "B"],
    sizes: Num[Array, "B 2"] | None = None,
    ratio: Num[Array, "B"] | None = None,
  ) -> Float[Array, "B D"]:
    """The vector of conditions.

    Raises:
      ValueError: conditions that the config does not have, or lacks.
    """

    def read(layer, numbers):
      sinusoids = layers.timestep_embedding(numbers, patches.SINUSOIDS)
      return layer(sinusoids.astype(self.dtype))

    time = read(self.time, t)
    if not self.config.micro_conditions:
      if sizes is not None or ratio is not None:
        raise ValueError(
          "sizes or ratio given to a transformer without micro_conditions; "
          "leave them out"
        )
      return time
    if sizes is None or ratio is None:
      raise ValueError("micro_conditions need sizes and ratio of the images")
    three = [
      read(self.size, sizes[:, 0]),
      read(self.size, sizes[:, 1]),
      read(self.ratio, ratio),
    ]
    return time + jnp.concatenate(three, axis=-1)

  def drop(
    self, context: Float[Array, "B S E"], dropped: Bool[Array, "B"]
  ) -> Float[Array, "B S E"]:
    """Puts the null caption in place of some captions; masks stay theirs.

    Raises:
      ValueError: there is no null caption, or one of fewer tokens.
    """
    S, tokens = context.shape[1], self.config.null_tokens
    if S > tokens:
      raise ValueError(
        f"captions of {S} tokens, and null_tokens={tokens}; set null_tokens, "
        "or drop captions for the states of an empty one"
      )
    null = jax.lax.stop_gradient(self.null_caption[:S].astype(context.dtype))
    return jnp.where(dropped[:, None, None], null, context)

  def on_tokens(
    self,
    tokens: Float[Array, "B T P"],
    positions: Float[Any, "#B T 2"],
    t: Num[Array, "B"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
    sizes: Num[Array, "B 2"] | None = None,
    ratio: Num[Array, "B"] | None = None,
    token_mask: Bool[Array, "#B #T"] | None = None,
  ) -> Float[Array, "B T Q"]:
    """As a call, on the tokens of `patches.patchify`, some of them padding.

    Images of all aspect buckets are one shape to compile if they are padded to
    one number of tokens. `positions` are those of `patches.grid`; `token_mask`
    is false where a token is padding, to which none attends.
    """
    config = self.config
    if context.shape[-1] != config.source_width:
      raise ValueError(
        f"text states of width {context.shape[-1]}; expected "
        f"caption_width={config.source_width}"
      )
    time = self.embed(t, sizes, ratio)
    six = self.modulation(jax.nn.silu(time)).astype(jnp.float32)
    six = six.reshape(len(time), 6, config.width)
    context = context.astype(self.dtype)
    if self.caption is not None:
      with jax.named_scope("caption"):
        context = self.caption(context)
    places = patches.position_embedding(positions, config.width)
    x = self.patch(tokens) + places
    with jax.named_scope("blocks"):
      states = (six, context, mask, token_mask)
      x = x.astype(self.dtype)
      x = layers.scan(self.blocks, x, *states, remat=self.remat)
    # The vector itself, without the activation and layer before the blocks.
    two = self.final_table[...] + time.astype(jnp.float32)[:, None]
    shift, scale = jnp.split(two, 2, axis=1)
    x = self.proj_out(patches.modulate(self.norm_out(x), shift, scale))
    return x.astype(jnp.float32)

  def __call__(
    self,
    xt: Float[Array, "B H W C"],
    t: Num[Array, "B"],
    context: Float[Array, "B S E"],
    mask: Bool[Array, "#B #S"] | None = None,
    sizes: Num[Array, "B 2"] | None = None,
    ratio: Num[Array, "B"] | None = None,
  ) -> Float[Array, "B H W O"]:
    """What the network was trained to predict, in float32.

    Args:
      xt: noised latents, scaled to unit variance.
      t: timesteps, in [0, 1000) for the published checkpoints.
      context: text states.
      mask: true where a text state may be attended to; None is everywhere.
      sizes: height and width of the image in pixels; for micro-conditions
        only. In training those of the original.
      ratio: height / width; for micro-conditions only.

    Raises:
      ValueError: conditions that the config does not have, or lacks; a height
        or width that does not divide into patches.
    """
    config, (H, W) = self.config, xt.shape[1:3]
    patch = config.patch
    tokens = patches.patchify(xt, patch)
    positions = patches.grid(
      H // patch,
      W // patch,
      base=config.sample_size // patch,
      scale=config.interpolation_scale,
    )[None]
    x = self.on_tokens(tokens, positions, t, context, mask, sizes, ratio)
    return patches.unpatchify(x, H, W, patch)


# PixArt-alpha/PixArt-XL-2-256x256 and -SAM-256x256.
XL_256 = Config(sample_size=32, caption_width=4096)
# PixArt-alpha/PixArt-XL-2-512x512.
XL_512 = Config(sample_size=64, caption_width=4096)
# PixArt-alpha/PixArt-XL-2-1024-MS, -LCM-XL-2-1024-MS.
XL_1024 = Config(sample_size=128, caption_width=4096)

NAMES: spelling.Names = (
  *patches.NAMES,
  ("time", "adaln_single.emb.timestep_embedder"),
  ("size", "adaln_single.emb.resolution_embedder"),
  ("ratio", "adaln_single.emb.aspect_ratio_embedder"),
  ("modulation", "adaln_single.linear"),
  ("null_caption", "caption_projection.y_embedding"),
  ("caption", "caption_projection"),
  ("table", "scale_shift_table"),
  ("final_table", "scale_shift_table"),
)

CONFIG = config_json.ConfigTable(
  renamed={
    **patches.RENAMED,
    "caption_width": "caption_channels",
    "micro_conditions": "use_additional_conditions",
  },
  fixed={
    **patches.FIXED,
    "_class_name": "PixArtTransformer2DModel",
    "attention_type": "default",
    "norm_type": "ada_norm_single",
  },
  legacy=patches.LEGACY,
  derived=lambda config: {"cross_attention_dim": config.width},
  # Counts timesteps, of which nothing is looked up.
  ignored=(*patches.IGNORED, "num_embeds_ada_norm"),
  own=("null_tokens",),
)


def complete(config: Config, tensors: spelling.Tensors) -> Config:
  """A config with what its config.json leaves out: the null caption.

  Published files have it, those that diffusers writes do not.
  """
  null = tensors.get("caption_projection.y_embedding")
  tokens = null.shape[0] if null else 0
  return dataclasses.replace(config, null_tokens=tokens)


def original_config(tensors: spelling.Tensors) -> Config:
  """The config of a file of the authors, by the shapes of its tensors."""
  return Config(
    **patches.sizes(tensors),
    caption_width=tensors["y_embedder.y_proj.fc1.weight"].shape[1],
    micro_conditions="csize_embedder.mlp.0.weight" in tensors,
    null_tokens=tensors["y_embedder.y_embedding"].shape[0],
  )


# PixArt-XL-2-1024-MS.pth and its like: averaged weights where there are some.
_ORIGINAL = spelling.Format(
  names=(
    *patches.ORIGINAL,
    ("size.up", "csize_embedder.mlp.0"),
    ("size.down", "csize_embedder.mlp.2"),
    ("ratio.up", "ar_embedder.mlp.0"),
    ("ratio.down", "ar_embedder.mlp.2"),
    ("modulation", "t_block.1"),
    ("null_caption", "y_embedder.y_embedding"),
    ("caption.up", "y_embedder.y_proj.fc1"),
    ("caption.down", "y_embedder.y_proj.fc2"),
    ("table", "scale_shift_table"),
    ("final_table", "final_layer.scale_shift_table"),
    ("attn2.q", "cross_attn.q_linear"),
    ("attn2.k", "cross_attn.kv_linear[0/2]"),
    ("attn2.v", "cross_attn.kv_linear[1/2]"),
    ("attn2.out", "cross_attn.proj"),
  ),
  marker="t_block.1.weight",
  config=original_config,
  unused=("pos_embed",),
  keys=("state_dict_ema",),
)
FORMATS = (_ORIGINAL, _ORIGINAL._replace(keys=("state_dict",)))
