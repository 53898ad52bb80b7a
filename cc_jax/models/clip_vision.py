# SPDX-License-Identifier: Apache-2.0
"""CLIP's image towers: vision transformers.

"Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020, §2.4; "An Image is Worth 16x16 Words", arXiv 2010.11929, with
a further norm before the first block. A class token stands for the image:
CLIP-GEN is conditioned on it, CLIP score and CMMD measure with it
(models/clip_dual.py); LLaVA reads the penultimate states of the patches. Files
are those of transformers' CLIPVisionModel and CLIPVisionModelWithProjection.

Images come to a tower as CLIP's preprocessing leaves them: RGB; the shorter
side resized to `image_size` and the longer one to int(image_size * longer /
shorter) by Pillow's bicubic filter, which smooths what it makes smaller, and
rounds to bytes; the middle image_size x image_size pixels; `normalise`.
"""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import config_json
from cc_jax.models import clip, layers

# Of the RGB values in [0, 1] that CLIP was trained on; OpenCLIP has the same.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

PLAIN = ("CLIPVisionModel",)
PROJECTED = ("CLIPVisionModelWithProjection",)


def normalise(images: Float[Array, "*B 3"]) -> Float[Array, "*B 3"]:
  """RGB in [-1, 1] as CLIP's towers expect it, in float32."""
  x = (images.astype(jnp.float32) + 1) / 2
  return (x - jnp.array(MEAN)) / jnp.array(STD)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The shape of an image tower.

  The defaults are those of transformers' CLIPVisionConfig: they hold for keys
  that a config.json leaves out.

  Attributes:
    width: D.
    mlp: width F between the two layers of the MLP.
    depth: number of blocks L.
    heads: N.
    image_size: height and width of images in pixels.
    patch: height and width of a patch in pixels; a rest at the right and the
      bottom is not seen.
    act: activation of the MLP, one of `layers.ACTIVATIONS`.
    eps: of the layer norms.
    projection: width P of the pooled output, when there is a projection.
    architectures: `PROJECTED` when the tower ends in a projection. Files state
      a projection width also where they have no such tensor.
  """

  width: int = 768
  mlp: int = 3072
  depth: int = 12
  heads: int = 12
  image_size: int = 224
  patch: int = 32
  act: str = "quick_gelu"
  eps: float = 1e-5
  projection: int = 512
  architectures: tuple[str, ...] = PLAIN

  def __post_init__(self):
    clip.check(self, "an image tower", (PLAIN, PROJECTED))
    if self.patch > self.image_size:
      raise ValueError(
        f"image_size={self.image_size} has no patch of {self.patch} pixels"
      )

  @property
  def projected(self) -> bool:
    """Whether the pooled state goes through a projection."""
    return self.architectures == PROJECTED

  @property
  def tokens(self) -> int:
    """Number of states T: one of the class token, then one of each patch."""
    return 1 + (self.image_size // self.patch) ** 2


class Encoding(NamedTuple):
  """What an image tower says of images; patches follow row by row.

  Attributes:
    hidden: states after the last block, without a norm, which are the
      `last_hidden_state` of transformers.
    penultimate: states after the last block but one, `hidden_states[-2]`
      there; LLaVA 1.5 reads those of the patches, `penultimate[:, 1:]`.
    pooled: the normed state of the class token, projected if the tower has a
      projection; P is D if it has none.
  """

  hidden: Float[Array, "B T D"]
  penultimate: Float[Array, "B T D"]
  pooled: Float[Array, "B P"]


class Vision(nnx.Module):
  """Images -> states of each patch, and one of the image."""

  def __init__(
    self, config: VisionConfig, *, dtype: layers.Dtype, rngs: nnx.Rngs
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    # As in CLIP's code, where width^-1/2 is the scale of all three.
    normal = nnx.initializers.normal(config.width**-0.5)
    self.size, self.dtype = config.image_size, dtype
    self.patch = layers.conv(
      3,
      config.width,
      config.patch,
      stride=config.patch,
      padding="VALID",
      bias=False,
      **kinds,
    )
    self.cls = nnx.Param(normal(rngs.params(), (config.width,)))
    self.position = nnx.Embed(
      config.tokens, config.width, embedding_init=normal, **kinds
    )
    self.norm_in = layers.layer_norm(config.width, config.eps, **kinds)
    self.blocks = layers.stack(
      lambda rngs: clip.Block(config, causal=False, dtype=dtype, rngs=rngs),
      config.depth,
      rngs,
    )
    self.norm = layers.layer_norm(config.width, config.eps, **kinds)
    self.projection = (
      layers.linear(
        config.width, config.projection, bias=False, init=normal, **kinds
      )
      if config.projected
      else None
    )

  def __call__(self, images: Float[Array, "B H W 3"]) -> Encoding:
    """Encodes images of `normalise`.

    Raises:
      ValueError: they are of another size than the tower's.
    """
    if images.shape[1:3] != (self.size, self.size):
      height, width = images.shape[1:3]
      raise ValueError(
        f"images of {height} x {width} pixels for an image tower of "
        f"{self.size} x {self.size}; resize and crop them to that size"
      )
    x = self.patch(images.astype(self.dtype))
    x = x.reshape(len(x), -1, x.shape[-1])  # [B T-1 D]
    cls = jnp.broadcast_to(self.cls.astype(x.dtype), (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([cls, x], axis=1)  # [B T D]
    x = self.norm_in(x + self.position(jnp.arange(x.shape[1])))
    with jax.named_scope("clip_vision"):
      hidden, penultimate = clip.last_states(self.blocks, x)
    pooled = self.norm(hidden[:, 0])
    if self.projection is not None:
      pooled = self.projection(pooled)
    return Encoding(hidden, penultimate, pooled)


# The image towers of openai/clip-vit-base-patch32 and -patch16; all presets
# are without the projection, which models/clip_dual.py adds.
VIT_B32 = VisionConfig()
VIT_B16 = dataclasses.replace(VIT_B32, patch=16)

# Of openai/clip-vit-large-patch14, and of its -336, which CMMD measures with
# and LLaVA 1.5 sees by.
VIT_L14 = VisionConfig(
  width=1024,
  mlp=4096,
  depth=24,
  heads=16,
  patch=14,
  projection=768,
)
VIT_L14_336 = dataclasses.replace(VIT_L14, image_size=336)

# Of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
VIT_H14 = VisionConfig(
  width=1280,
  mlp=5120,
  depth=32,
  heads=16,
  patch=14,
  act="gelu",
  projection=1024,
)

# "pre_layrnorm" is their spelling. transformers 4 writes these names, 5 leaves
# "vision_model." out for towers without a projection; both read these.
NAMES = (
  ("cls", "vision_model.embeddings.class_embedding"),
  ("patch", "vision_model.embeddings.patch_embedding"),
  ("position", "vision_model.embeddings.position_embedding"),
  ("norm_in", "vision_model.pre_layrnorm"),
  ("blocks", "vision_model.encoder.layers.{l}"),
  ("norm", "vision_model.post_layernorm"),
  ("projection", "visual_projection"),
  *clip.BLOCK_NAMES,
)

CONFIG = config_json.ConfigTable(
  renamed={
    "width": "hidden_size",
    "mlp": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "patch": "patch_size",
    "act": "hidden_act",
    "eps": "layer_norm_eps",
    "projection": "projection_dim",
  },
  fixed={
    "model_type": "clip_vision_model",
    "attention_dropout": 0.0,
    "num_channels": 3,
  },
  # Images have no tokens.
  ignored=(*clip.IGNORED, "bos_token_id", "eos_token_id", "pad_token_id"),
)
# As a group of keys in the config.json of a model that has such a tower.
PART = dataclasses.replace(CONFIG, given={"architectures": PLAIN})
