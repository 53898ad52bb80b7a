# SPDX-License-Identifier: Apache-2.0
"""LLaVA 1.5, which describes photographs at length.

"Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744, §3.3:
CLIP's ViT-L/14 at 336 pixels sees the image, an MLP of two layers brings the
states of its patches to the width of Vicuna, and they stand in the prompt where
its placeholder is. Files are those of transformers'
LlavaForConditionalGeneration.

Images come to it as to CLIP (models/clip_vision.py). A prompt is
"USER: <image>", a line break, the question, and " ASSISTANT:".
"""

import dataclasses

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cc_jax.core import config_json
from cc_jax.models import clip_vision, layers, llama, lm, placeholders


@dataclasses.dataclass(frozen=True)
class Config:
  """The networks of a LLaVA.

  Attributes:
    vision: what sees.
    text: what tells.
    image_token: id of the placeholder of an image, in the vocabulary.
  """

  vision: clip_vision.VisionConfig = clip_vision.VIT_L14_336
  text: llama.Config = dataclasses.field(default_factory=llama.Config)
  image_token: int = 32000

  def __post_init__(self):
    if not 0 <= self.image_token < self.text.vocabulary:
      raise ValueError(
        f"image_token={self.image_token} is none of {self.text.vocabulary} "
        "token ids"
      )

  @property
  def places(self) -> int:
    """Number of tokens S of an image, and of placeholders in its prompt."""
    return self.vision.tokens - 1


class Projector(nnx.Module):
  """down(gelu(up(x))): [... D] of images -> [... D] of text."""

  def __init__(
    self, width: int, out: int, *, dtype: layers.Dtype, rngs: nnx.Rngs
  ):
    self.up = layers.linear(width, out, dtype=dtype, rngs=rngs)
    self.down = layers.linear(out, out, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S E"]:
    return self.down(layers.gelu(self.up(x)))


class LLaVA(nnx.Module):
  """Images and prompts -> logits of what comes next."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds = dict(dtype=dtype, rngs=rngs)
    self.image_token = config.image_token
    self.vision = clip_vision.Vision(config.vision, **kinds)
    self.projector = Projector(config.vision.width, config.text.width, **kinds)
    self.text = lm.LM(config.text, **kinds)

  def image_tokens(
    self, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B S D"]:
    """What stands for images in a prompt: a token for each patch."""
    # The penultimate states, without the class token's: arXiv 2304.08485, §4.1.
    return self.projector(self.vision(images).penultimate[:, 1:])

  def embed(
    self,
    images: Float[Array, "B H W 3"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
    """Images and prompts as the language model reads them.

    Args:
      images: of `clip_vision.normalise`.
      tokens: prompts with `Config.places` placeholders each, as
        `placeholders.expand` makes them.
      mask: true where a token is one of its prompt; padding is to be on the
        left, or else the next token is not after the last place.
    """
    x = placeholders.merge(
      self.text.embed(tokens),
      tokens == self.image_token,
      self.image_tokens(images),
    )
    return x, jnp.ones(tokens.shape, bool) if mask is None else mask

  def __call__(
    self,
    images: Float[Array, "B H W 3"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
  ) -> Float[Array, "B T V"]:
    """Logits of the token after each of the prompt."""
    return self.text(*self.embed(images, tokens, mask))


# llava-hf/llava-1.5-7b-hf: Vicuna's vocabulary, with two ids more for images
# and padding, is padded to a multiple of 64 there.
LLAVA_1_5_7B = Config(
  text=dataclasses.replace(llama.VICUNA_7B, vocabulary=32064, pad=None)
)

# transformers 4 writes these names, 5 leaves "vision_model." out; both read
# these.
NAMES = (
  ("vision", "vision_tower", clip_vision.NAMES),
  ("projector.up", "multi_modal_projector.linear_1"),
  ("projector.down", "multi_modal_projector.linear_2"),
  ("text", "language_model", llama.NAMES),
)

# Images have no vocabulary, although the published tower states one.
VISION_CONFIG = dataclasses.replace(
  clip_vision.PART, ignored=(*clip_vision.PART.ignored, "vocab_size")
)

CONFIG = config_json.ConfigTable(
  renamed={"image_token": "image_token_index"},
  fixed={
    "model_type": "llava",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
  },
  derived=lambda config: {"image_seq_length": config.places},
  # Of training, of text alone, and said elsewhere: transformers writes 576 for
  # images of any size.
  ignored=(
    *config_json.GENERIC,
    "bos_token_id",
    "eos_token_id",
    "ignore_index",
    "image_seq_length",
    "pad_token_id",
    "vocab_size",
  ),
  written={"architectures": ("LlavaForConditionalGeneration",)},
  parts={
    "vision": ("vision_config", clip_vision.VisionConfig, VISION_CONFIG),
    "text": ("text_config", llama.Config, llama.CONFIG),
  },
)
