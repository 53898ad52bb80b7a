# SPDX-License-Identifier: Apache-2.0
"""CLIP: captions and images in one space, where cosines tell how they agree.

"Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020, figure 3. CLIP-GEN draws from embeddings of images, and in
use from those of captions; CLIP score is the cosine of both, CMMD a distance
of two sets of images. Files are those of transformers' CLIPModel, or OpenAI's
own state dict (`OPENAI`).
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cc_jax.core import config_json, spelling
from cc_jax.models import clip, clip_vision, layers


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a CLIP, by default that of ViT-B/32.

  Attributes:
    text: of the tower that reads captions.
    vision: of the one that sees images.
    projection: width P of both embeddings. Files state one for each tower
      besides, which means nothing in a CLIP; nor do their `architectures`.
    logit_scale: initial logarithm of the inverse temperature, here 1 / 0.07.
  """

  text: clip.TextConfig = dataclasses.field(default_factory=clip.TextConfig)
  vision: clip_vision.VisionConfig = dataclasses.field(
    default_factory=clip_vision.VisionConfig
  )
  projection: int = 512
  logit_scale: float = 2.6592


def unit(x: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
  """x / |x|, in float32: the embedding whose products are cosines."""
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class CLIP(nnx.Module):
  """Captions and images -> embeddings, and logits of each with each."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds = dict(dtype=dtype, rngs=rngs)
    width = dict(projection=config.projection)
    self.text = clip.Text(
      dataclasses.replace(config.text, architectures=clip.PROJECTED, **width),
      **kinds,
    )
    self.vision = clip_vision.Vision(
      dataclasses.replace(
        config.vision, architectures=clip_vision.PROJECTED, **width
      ),
      **kinds,
    )
    self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale, jnp.float32))

  def text_embedding(self, tokens: Int[Array, "B T"]) -> Float[Array, "B P"]:
    """Of captions of `data.tokenize`; `unit` makes it one of length 1."""
    return self.text(tokens).pooled

  def image_embedding(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B P"]:
    """Of images of `clip_vision.normalise`; `unit` gives it length 1."""
    return self.vision(images).pooled

  def __call__(
    self,
    images: Float[Array, "B H W 3"],
    tokens: Int[Array, "S T"],
  ) -> Float[Array, "B S"]:
    """The `logits` of images of `clip_vision.normalise` and captions."""
    return self.logits(
      unit(self.image_embedding(images)), unit(self.text_embedding(tokens))
    )

  def logits(
    self, image: Float[Array, "B P"], text: Float[Array, "S P"]
  ) -> Float[Array, "B S"]:
    """exp(logit_scale) times the cosine of each image with each caption.

    Of embeddings of length 1. As `logits_per_image` of transformers; float32
    whatever the dtype.
    """
    # Some devices multiply float32 in fewer bits, and cosines differ little.
    cosines = jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.exp(self.logit_scale[...]) * cosines


def _clip(vision: clip_vision.VisionConfig, **text: Any) -> Config:
  """What is common to the presets."""
  width = vision.projection
  tower = clip.TextConfig(bos=0, eos=2, projection=width, **text)
  return Config(tower, vision, width)


# OpenAI's, trained on 400 million images of the web: openai/clip-vit-base-
# patch32 (CLIP-GEN's), -patch16 (CommonCanvas's CLIP score), openai/clip-vit-
# large-patch14 and -336 (CMMD's).
VIT_B32 = _clip(clip_vision.VIT_B32)
VIT_B16 = _clip(clip_vision.VIT_B16)
VIT_L14 = _clip(clip_vision.VIT_L14, width=768, mlp=3072, heads=12)
VIT_L14_336 = _clip(clip_vision.VIT_L14_336, width=768, mlp=3072, heads=12)

# laion/CLIP-ViT-H-14-laion2B-s32B-b79K, whose text tower SD2 has.
VIT_H14 = _clip(
  clip_vision.VIT_H14, width=1024, mlp=4096, depth=24, heads=16, act="gelu"
)

NAMES = (
  ("text.token", "text_model.embeddings.token_embedding"),
  ("text.position", "text_model.embeddings.position_embedding"),
  ("text.blocks", "text_model.encoder.layers.{l}"),
  ("text.norm", "text_model.final_layer_norm"),
  ("text.projection", "text_projection"),
  ("vision.cls", "vision_model.embeddings.class_embedding"),
  ("vision.patch", "vision_model.embeddings.patch_embedding"),
  ("vision.position", "vision_model.embeddings.position_embedding"),
  ("vision.norm_in", "vision_model.pre_layrnorm"),
  ("vision.blocks", "vision_model.encoder.layers.{l}"),
  ("vision.norm", "vision_model.post_layernorm"),
  ("vision.projection", "visual_projection"),
  *clip.BLOCK_NAMES,
)


def openai_config(tensors: Mapping[str, Any]) -> Config:
  """The config of a file of `OPENAI`, which its shapes tell.

  All heads of OpenAI's vision transformers are 64 wide.

  Args:
    tensors: what has a shape, by OpenAI's names.
  """

  def tower(prefix: str) -> dict[str, int]:
    blocks = f"{prefix}transformer.resblocks."
    numbers = [
      name.removeprefix(blocks).partition(".")[0]
      for name in tensors
      if name.startswith(blocks)
    ]
    mlp, width = tensors[f"{blocks}0.mlp.c_fc.weight"].shape
    depth = len(set(numbers))
    return dict(width=width, mlp=mlp, depth=depth, heads=width // 64)

  positions, _ = tensors["visual.positional_embedding"].shape
  patch = tensors["visual.conv1.weight"].shape[-1]
  width = tensors["text_projection"].shape[1]
  vision = clip_vision.VisionConfig(
    image_size=patch * math.isqrt(positions - 1),
    patch=patch,
    projection=width,
    **tower("visual."),
  )
  return _clip(
    vision,
    vocabulary=tensors["token_embedding.weight"].shape[0],
    positions=tensors["positional_embedding"].shape[0],
    **tower(""),
  )


# OpenAI's own spelling, as in the clip_vit_b32.pt of CLIP-GEN's authors; such
# files also hold three numbers that the shapes tell.
OPENAI = spelling.Format(
  names=(
    ("text.token", "token_embedding"),
    ("text.position.weight", "positional_embedding"),
    ("text.blocks", "transformer.resblocks.{l}"),
    ("text.norm", "ln_final"),
    ("text.projection.weight", "text_projection^T"),
    ("vision.cls", "visual.class_embedding"),
    ("vision.patch", "visual.conv1"),
    ("vision.position.weight", "visual.positional_embedding"),
    ("vision.norm_in", "visual.ln_pre"),
    ("vision.blocks", "visual.transformer.resblocks.{l}"),
    ("vision.norm", "visual.ln_post"),
    ("vision.projection.weight", "visual.proj^T"),
    ("q.weight", "in_proj_weight[0/3]"),
    ("k.weight", "in_proj_weight[1/3]"),
    ("v.weight", "in_proj_weight[2/3]"),
    ("q.bias", "in_proj_bias[0/3]"),
    ("k.bias", "in_proj_bias[1/3]"),
    ("v.bias", "in_proj_bias[2/3]"),
    ("out", "out_proj"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("up", "c_fc"),
    ("down", "c_proj"),
  ),
  marker="visual.class_embedding",
  config=openai_config,
  unused=("input_resolution", "context_length", "vocab_size"),
)

CONFIG = config_json.ConfigTable(
  renamed={
    "projection": "projection_dim",
    "logit_scale": "logit_scale_init_value",
  },
  fixed={"model_type": "clip", "architectures": ("CLIPModel",)},
  # Early files say the towers' shapes twice.
  ignored=(*clip.IGNORED, "text_config_dict", "vision_config_dict"),
  parts={
    "text": ("text_config", clip.TextConfig, clip.PART),
    "vision": (
      "vision_config",
      clip_vision.VisionConfig,
      clip_vision.PART,
    ),
  },
)
