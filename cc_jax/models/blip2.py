# SPDX-License-Identifier: Apache-2.0
"""BLIP-2, which captions photographs that came without one.

"BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders
and Large Language Models", arXiv 2301.12597, §3: a frozen ViT-g sees the
image, the Q-Former asks it 32 learned questions, and the answers stand before
the prompt of a frozen OPT. CommonCanvas had its captions from it. Files are
those of transformers' Blip2ForConditionalGeneration.

Images come to it resized to a square by a bicubic filter, whatever their shape,
and normalised (`clip_vision.normalise`). A prompt is at least its first token,
</s>, and a caption ends at the end of its line.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cc_jax.core import config_json, spelling
from cc_jax.models import clip, layers, lm, opt


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The shape of the vision tower; the defaults are ViT-g without its last.

  "EVA: Exploring the Limits of Masked Visual Representation Learning at
  Scale", arXiv 2211.07636, has 40 blocks; BLIP-2 takes the states before the
  last.

  Attributes:
    width: D.
    mlp: width F between the two layers of the MLP.
    depth: number of blocks L.
    heads: N.
    image_size: height and width of images in pixels.
    patch: height and width of a patch in pixels.
    act: activation of the MLP, one of `layers.ACTIVATIONS`.
    eps: of the layer norms.
  """

  width: int = 1408
  mlp: int = 6144
  depth: int = 39
  heads: int = 16
  image_size: int = 224
  patch: int = 14
  act: str = "gelu"
  eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
  """The shape of the Q-Former; the defaults are of all published ones.

  Attributes:
    width: D.
    mlp: width F between the two layers of the MLP.
    depth: number of blocks L.
    heads: N.
    source_width: of the image states E.
    cross_every: every so many blocks, the first among them, look at the image.
    act: activation of the MLP, one of `layers.ACTIVATIONS`.
    eps: of the layer norms.
  """

  width: int = 768
  mlp: int = 3072
  depth: int = 12
  heads: int = 12
  source_width: int = 1408
  cross_every: int = 2
  act: str = "gelu"
  eps: float = 1e-12


@dataclasses.dataclass(frozen=True)
class Config:
  """The three networks of BLIP-2.

  Attributes:
    vision: what sees.
    qformer: what asks.
    text: what tells.
    queries: number of questions Q, and of tokens that stand for an image.
    image_token: id that marks the places of these tokens in prompts made for
      transformers; the network here puts them first, where all prompts of
      BLIP-2 have them.
  """

  vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)
  qformer: QFormerConfig = dataclasses.field(default_factory=QFormerConfig)
  text: opt.Config = dataclasses.field(default_factory=opt.Config)
  queries: int = 32
  image_token: int | None = None

  def __post_init__(self):
    for part in (self.vision, self.qformer):
      if part.width % part.heads:
        raise ValueError(
          f"width={part.width} does not divide over {part.heads} heads"
        )
      if part.act not in layers.ACTIVATIONS:
        choices = ", ".join(layers.ACTIVATIONS)
        raise ValueError(f"unknown act {part.act!r}; expected one of {choices}")
    if self.vision.image_size % self.vision.patch:
      raise ValueError(
        f"image_size={self.vision.image_size} does not divide into patches of "
        f"{self.vision.patch}"
      )
    if self.qformer.source_width != self.vision.width:
      raise ValueError(
        f"the Q-Former reads states of width {self.qformer.source_width}, and "
        f"the vision tower's are {self.vision.width} wide"
      )


class Vision(nnx.Module):
  """Images -> states of a class token and of each patch."""

  def __init__(
    self, config: VisionConfig, *, dtype: layers.Dtype, rngs: nnx.Rngs
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    size, patch = config.image_size, config.patch
    tokens = 1 + (size // patch) ** 2
    normal = nnx.initializers.normal(0.02)
    self.size = size
    self.patch = layers.conv(
      3, config.width, patch, stride=patch, padding="VALID", **kinds
    )
    self.cls = nnx.Param(normal(rngs.params(), (1, 1, config.width)))
    self.position = nnx.Param(normal(rngs.params(), (1, tokens, config.width)))
    self.blocks = layers.stack(
      lambda rngs: clip.Block(config, causal=False, dtype=dtype, rngs=rngs),
      config.depth,
      rngs,
    )
    self.norm = layers.layer_norm(config.width, config.eps, **kinds)

  def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B S D"]:
    """Encodes images of `clip_vision.normalise`; S is 1 + patches.

    Raises:
      ValueError: the images are not of the tower's size.
    """
    if images.shape[1:3] != (self.size, self.size):
      raise ValueError(
        f"images of {images.shape[1]}x{images.shape[2]} pixels; this vision "
        f"tower sees {self.size}x{self.size}: resize them"
      )
    x = self.patch(images)
    x = x.reshape(x.shape[0], -1, x.shape[-1])  # [B S-1 D]
    cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    x = x + self.position[...].astype(x.dtype)
    with jax.named_scope("vit_g"):
      return self.norm(layers.scan(self.blocks, x))


class QBlock(nnx.Module):
  """Attention to each other, to the image, and an MLP, a norm after each.

  x = norm(x + attn1(x)), norm(x + attn2(x, image)), norm(x + mlp(x)), the
  second only where the block looks at the image: BLIP-2 §3.1, figure 2.
  """

  def __init__(
    self,
    config: QFormerConfig,
    *,
    cross: bool,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    width, heads, eps = config.width, config.heads, config.eps
    self.attn1 = layers.Attention(width, heads, **kinds)
    self.attn1_norm = layers.layer_norm(width, eps, **kinds)
    source = config.source_width
    self.attn2 = (
      layers.Attention(width, heads, source_width=source, **kinds)
      if cross
      else None
    )
    self.attn2_norm = layers.layer_norm(width, eps, **kinds) if cross else None
    self.mlp = layers.MLP(width, config.mlp, act=config.act, **kinds)
    self.mlp_norm = layers.layer_norm(width, eps, **kinds)

  def __call__(
    self, x: Float[Array, "B T D"], image: Float[Array, "B S E"]
  ) -> Float[Array, "B T D"]:
    x = self.attn1_norm(x + self.attn1(x))
    if self.attn2 is not None:
      x = self.attn2_norm(x + self.attn2(x, image))
    return self.mlp_norm(x + self.mlp(x))


class QFormer(nnx.Module):
  """Learned queries [Q D] and the states of an image -> what it answers."""

  def __init__(
    self, config: QFormerConfig, *, dtype: layers.Dtype, rngs: nnx.Rngs
  ):
    self.norm = layers.layer_norm(
      config.width, config.eps, dtype=dtype, rngs=rngs
    )
    # Not stacked: blocks of two kinds alternate, and there are few.
    self.blocks = nnx.List(
      QBlock(config, cross=i % config.cross_every == 0, dtype=dtype, rngs=rngs)
      for i in range(config.depth)
    )

  def __call__(
    self, queries: Float[Array, "1 Q D"], image: Float[Array, "B S E"]
  ) -> Float[Array, "B Q D"]:
    x = self.norm(queries)
    x = jnp.broadcast_to(x, (image.shape[0], *x.shape[1:]))
    with jax.named_scope("q_former"):
      for block in self.blocks:
        x = block(x, image)
    return x


class BLIP2(nnx.Module):
  """Images and prompts -> logits of what comes next."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds = dict(dtype=dtype, rngs=rngs)
    normal = nnx.initializers.normal(0.02)
    self.dtype = dtype
    self.vision = Vision(config.vision, **kinds)
    self.queries = nnx.Param(
      normal(rngs.params(), (1, config.queries, config.qformer.width))
    )
    # In float32 whatever the rest is in, as in transformers: a fortieth of the
    # weights, whose answers are all that the language model knows.
    self.qformer = QFormer(config.qformer, dtype=jnp.float32, rngs=rngs)
    self.projection = layers.linear(
      config.qformer.width, config.text.width, **kinds
    )
    self.text = lm.LM(config.text, **kinds)

  def image_tokens(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B Q D"]:
    """What stands for images before a prompt, in the width of the text."""
    states = self.vision(images).astype(jnp.float32)
    answers = self.qformer(self.queries[...], states)
    return self.projection(answers.astype(self.dtype))

  def embed(
    self,
    images: Float[Array, "B H W 3"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """Images and prompts as the language model reads them; S is Q + T.

    Args:
      images: of `clip_vision.normalise`.
      tokens: prompts, which begin with the start-of-text token and have no
        places for images: those come first.
      mask: true where a token is one of its prompt; padding is to be on the
        left, or else the next token is not after the last place.
    """
    image = self.image_tokens(images)
    x = jnp.concatenate([image, self.text.embed(tokens)], axis=1)
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    return x, jnp.pad(mask, ((0, 0), (image.shape[1], 0)), constant_values=True)

  def __call__(
    self,
    images: Float[Array, "B H W 3"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
  ) -> Float[Array, "B S V"]:
    """Logits of the token after each image token and each of the prompt."""
    return self.text(*self.embed(images, tokens, mask))


# Salesforce/blip2-opt-2.7b: OPT's vocabulary, with one id more for images, is
# padded to a multiple of 64 there, and a caption ends with its line.
OPT_2_7B = Config(
  text=dataclasses.replace(opt.OPT_2_7B, vocabulary=50304, eos=50118),
  image_token=50265,
)

VISION_NAMES = (
  ("patch", "embeddings.patch_embedding"),
  ("cls", "embeddings.class_embedding"),
  ("position", "embeddings.position_embedding"),
  ("blocks", "encoder.layers.{l}"),
  ("norm", "post_layernorm"),
  ("attn.q", "self_attn.qkv[0/3]"),
  ("attn.k", "self_attn.qkv[1/3]"),
  ("attn.v", "self_attn.qkv[2/3]"),
  ("attn.out", "self_attn.projection"),
  ("norm1", "layer_norm1"),
  ("norm2", "layer_norm2"),
  ("up", "fc1"),
  ("down", "fc2"),
)

QFORMER_NAMES = (
  ("norm", "layernorm"),
  ("blocks", "encoder.layer"),
  ("attn1.out", "attention.output.dense"),
  ("attn1_norm", "attention.output.LayerNorm"),
  ("attn1", "attention.attention"),
  ("attn2.out", "crossattention.output.dense"),
  ("attn2_norm", "crossattention.output.LayerNorm"),
  ("attn2", "crossattention.attention"),
  ("q", "query"),
  ("k", "key"),
  ("v", "value"),
  ("mlp.up", "intermediate_query.dense"),
  ("mlp.down", "output_query.dense"),
  ("mlp_norm", "output_query.LayerNorm"),
)

NAMES = (
  ("vision", "vision_model", VISION_NAMES),
  ("qformer", "qformer", QFORMER_NAMES),
  ("text", "language_model", opt.NAMES),
  ("queries", "query_tokens"),
  ("projection", "language_projection"),
)

# Files that have the table of tokens a second time, as the head.
HEAD = "language_model.lm_head."
WITH_HEAD = spelling.Format(NAMES, marker=f"{HEAD}weight", unused=(HEAD,))

# Keys of text, which old files have in each of their groups.
GENERIC = (
  *config_json.GENERIC,
  "architectures",
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
  "tie_word_embeddings",
)

RENAMED = {
  "width": "hidden_size",
  "mlp": "intermediate_size",
  "depth": "num_hidden_layers",
  "heads": "num_attention_heads",
  "act": "hidden_act",
  "eps": "layer_norm_eps",
}

VISION_CONFIG = config_json.ConfigTable(
  renamed={**RENAMED, "patch": "patch_size"},
  fixed={
    "model_type": "blip_2_vision_model",
    "attention_dropout": 0.0,
    "qkv_bias": True,
  },
  # Left from CLIP's config, and read by nothing.
  ignored=(*GENERIC, "dropout", "num_channels", "projection_dim"),
)

QFORMER_CONFIG = config_json.ConfigTable(
  renamed={
    **RENAMED,
    "source_width": "encoder_hidden_size",
    "cross_every": "cross_attention_frequency",
  },
  fixed={
    "model_type": "blip_2_qformer",
    "position_embedding_type": "absolute",
    "use_qformer_text_input": False,
  },
  # Of text, which the Q-Former reads in other models only, and of training.
  ignored=(
    *GENERIC,
    *"attention_probs_dropout_prob classifier_dropout".split(),
    *"hidden_dropout_prob max_position_embeddings vocab_size".split(),
  ),
)

CONFIG = config_json.ConfigTable(
  renamed={"queries": "num_query_tokens", "image_token": "image_token_index"},
  fixed={"model_type": "blip-2", "use_decoder_only_language_model": True},
  # The width is that of a head which captioners do not have.
  ignored=(*GENERIC, "image_text_hidden_size"),
  written={"architectures": ("Blip2ForConditionalGeneration",)},
  parts={
    "vision": ("vision_config", VisionConfig, VISION_CONFIG),
    "qformer": ("qformer_config", QFormerConfig, QFORMER_CONFIG),
    "text": ("text_config", opt.Config, opt.CONFIG),
  },
)
