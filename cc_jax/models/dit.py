# SPDX-License-Identifier: Apache-2.0
"""DiT: a transformer that denoises latents, conditioned on a class.

"Scalable Diffusion Models with Transformers", arXiv 2212.09748, §3.2, with its
adaLN-Zero blocks. PixArt-alpha, arXiv 2310.00426, §2.2, begins its training
with such a network and builds its own from it. Files are those of diffusers'
DiTTransformer2DModel, and of the authors.

The authors' DiT and diffusers' compute two things differently from the same
weights: the frequencies of the timestep, and the epsilon of one norm. Both are
fields of `Config`; the defaults are diffusers'.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from cc_jax.core import config_json, spelling
from cc_jax.models import layers, patches, recompute


@dataclasses.dataclass(frozen=True)
class Config:
  """A class-conditional transformer; the defaults are those of diffusers.

  Attributes:
    sample_size: height and width of the latents it was trained on; positions
      are counted in its patches.
    patch: height and width of a patch of the latents, one token.
    in_channels: of the latents.
    out_channels: of the prediction; as `in_channels` where None. Twice that
      where the variance is learned.
    heads: N.
    head_width: K.
    depth: number of blocks L.
    classes: without the null class, which stands for none and comes last.
    eps: of the norm before the MLP; the other norms have 1e-6.
    frequency_shift: the timestep's frequencies are 10000^(-i / (128 - shift)).
      The published weights were trained with 0; diffusers computes with 1.
  """

  sample_size: int = 32
  patch: int = 2
  in_channels: int = 4
  out_channels: int | None = None
  heads: int = 16
  head_width: int = 72
  depth: int = 28
  classes: int = 1000
  eps: float = 1e-5
  frequency_shift: int = 1

  def __post_init__(self):
    patches.check_sizes(self)

  @property
  def width(self) -> int:
    """D."""
    return self.heads * self.head_width


class Block(nnx.Module):
  """adaLN-Zero: attention and MLP, each normed, modulated and gated."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    width = config.width
    norm = dict(affine=False, **kinds)
    self.modulation = layers.linear(
      width, 6 * width, init=layers.ZEROS, **kinds
    )
    self.norm1 = layers.layer_norm(width, 1e-6, **norm)
    self.attn1 = layers.Attention(
      width,
      config.heads,
      init=patches.fused_xavier(3),
      out_init=patches.XAVIER,
      **kinds,
    )
    self.norm2 = layers.layer_norm(width, config.eps, **norm)
    self.mlp = layers.MLP(
      width, 4 * width, act="gelu_tanh", init=patches.XAVIER, **kinds
    )

  def __call__(
    self,
    x: Float[Array, "B T D"],
    condition: Float[Array, "B D"],
    token_mask: Bool[Array, "#B #T"] | None = None,
  ) -> Float[Array, "B T D"]:
    six = patches.parts(self.modulation(jax.nn.silu(condition)), 6)
    shift1, scale1, gate1, shift2, scale2, gate2 = six
    with jax.named_scope("attn1"):
      h = self.attn1(
        patches.modulate(self.norm1(x), shift1, scale1), mask=token_mask
      )
      x = x + (gate1 * h).astype(x.dtype)
    with jax.named_scope("mlp"):
      h = self.mlp(patches.modulate(self.norm2(x), shift2, scale2))
      h = recompute.kept(h)
      return x + (gate2 * h).astype(x.dtype)


class DiT(nnx.Module):
  """A prediction for noised latents, from timestep and class.

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
    zeros = dict(init=layers.ZEROS, **kinds)
    width, patch = config.width, config.patch
    self.config, self.dtype, self.remat = config, dtype, remat
    self.patch = patches.Patch(patch, config.in_channels, width, **kinds)
    self.time = layers.TimeMLP(
      patches.SINUSOIDS, width, init=patches.NORMAL, **kinds
    )
    self.label = nnx.Embed(
      config.classes + 1, width, embedding_init=patches.NORMAL, **kinds
    )
    self.blocks = layers.stack(
      lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs
    )
    self.final_modulation = layers.linear(width, 2 * width, **zeros)
    self.norm_out = layers.layer_norm(width, 1e-6, affine=False, **kinds)
    channels = config.out_channels or config.in_channels
    self.proj_out = layers.linear(width, patch * patch * channels, **zeros)

  def on_tokens(
    self,
    tokens: Float[Array, "B T P"],
    positions: Float[Any, "#B T 2"],
    t: Num[Array, "B"],
    labels: Int[Array, "B"],
    token_mask: Bool[Array, "#B #T"] | None = None,
  ) -> Float[Array, "B T Q"]:
    """As a call, on the tokens of `patchify`, of which some may be padding.

    Args:
      tokens: patches of noised latents.
      positions: of `grid`, for each token.
      t: timesteps.
      labels: classes.
      token_mask: false where a token is padding, which none attends to.
    """
    sinusoids = layers.timestep_embedding(
      t, patches.SINUSOIDS, shift=self.config.frequency_shift
    )
    condition = self.time(sinusoids.astype(self.dtype)) + self.label(labels)
    x = self.patch(tokens) + patches.position_embedding(
      positions, self.config.width
    )
    x = layers.scan(
      self.blocks,
      x.astype(self.dtype),
      condition,
      token_mask,
      remat=self.remat,
    )
    shift, scale = patches.parts(
      self.final_modulation(jax.nn.silu(condition)), 2
    )
    x = self.proj_out(patches.modulate(self.norm_out(x), shift, scale))
    return x.astype(jnp.float32)

  def __call__(
    self,
    xt: Float[Array, "B H W C"],
    t: Num[Array, "B"],
    labels: Int[Array, "B"],
  ) -> Float[Array, "B H W O"]:
    """What the network was trained to predict, in float32.

    Args:
      xt: noised latents, scaled to unit variance.
      t: timesteps, in [0, 1000) for the published checkpoints.
      labels: classes; `config.classes` is none, for guidance.

    Raises:
      ValueError: height or width does not divide into patches.
    """
    patch, (H, W) = self.config.patch, xt.shape[1:3]
    tokens = patches.patchify(xt, patch)
    base = self.config.sample_size // patch
    positions = patches.grid(H // patch, W // patch, base=base)[None]
    return patches.unpatchify(
      self.on_tokens(tokens, positions, t, labels), H, W, patch
    )


# facebook/DiT-XL-2-256, as diffusers computes it.
DIT_XL_2 = Config(out_channels=8)

NAMES: spelling.Names = (
  *patches.NAMES,
  ("time", "transformer_blocks.{*}.norm1.emb.timestep_embedder"),
  ("label", "transformer_blocks.{*}.norm1.emb.class_embedder.embedding_table"),
  ("modulation", "norm1.linear"),
  ("final_modulation", "proj_out_1"),
  ("proj_out", "proj_out_2"),
)

CONFIG = config_json.ConfigTable(
  renamed={**patches.RENAMED, "classes": "num_embeds_ada_norm"},
  fixed={
    **patches.FIXED,
    "_class_name": "DiTTransformer2DModel",
    "norm_type": "ada_norm_zero",
  },
  legacy={
    **patches.LEGACY,
    "attention_type": ("default",),
    "caption_channels": (None,),
    "cross_attention_dim": (None,),
    "interpolation_scale": (None,),
    "use_additional_conditions": (None, False),
  },
  ignored=patches.IGNORED,
  own=("frequency_shift",),
)


def original_config(tensors: spelling.Tensors) -> Config:
  """The config of a file of the authors, by the shapes of its tensors."""
  classes = tensors["y_embedder.embedding_table.weight"].shape[0] - 1
  return Config(**patches.sizes(tensors), classes=classes, frequency_shift=0)


# DiT-XL-2-256x256.pt and its like; training wrote the averaged weights as one
# of several things in a file.
_ORIGINAL = spelling.Format(
  names=(
    *patches.ORIGINAL,
    ("label", "y_embedder.embedding_table"),
    ("final_modulation", "final_layer.adaLN_modulation.1"),
    ("modulation", "adaLN_modulation.1"),
  ),
  marker="y_embedder.embedding_table.weight",
  config=original_config,
  unused=("pos_embed",),
)
FORMATS = (_ORIGINAL, _ORIGINAL._replace(keys=("ema",)))
