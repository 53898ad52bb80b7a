# SPDX-License-Identifier: Apache-2.0
"""CLIP's text towers, which read the captions of SD2 and SDXL.

"Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020, §2.4: a causal transformer whose state at the end-of-text
token stands for the caption. SD2 is conditioned on all states of OpenCLIP's
ViT-H tower, SDXL on the penultimate states of two towers and on the pooled
state of the second. Files are those of transformers' CLIPTextModel and
CLIPTextModelWithProjection.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cc_jax.core import config_json, sharding
from cc_jax.models import layers

PLAIN = ("CLIPTextModel",)
PROJECTED = ("CLIPTextModelWithProjection",)


def check(
  config: Any, tower: str, architectures: Sequence[tuple[str, ...]]
) -> None:
  """Refuses what no tower can be: of text, here, or of images.

  Raises:
    ValueError: its heads, activation or architectures cannot be.
  """
  if config.width % config.heads:
    raise ValueError(
      f"width={config.width} does not divide over {config.heads} heads"
    )
  if config.act not in layers.ACTIVATIONS:
    choices = ", ".join(layers.ACTIVATIONS)
    raise ValueError(f"unknown act {config.act!r}; expected one of {choices}")
  if config.architectures not in architectures:
    choices = " or ".join(str(list(names)) for names in architectures)
    raise ValueError(
      f"architectures={list(config.architectures)} is not {tower}; "
      f"expected {choices}"
    )


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """The shape of a text tower.

  The defaults are those of transformers' CLIPTextConfig: they hold for keys
  that a config.json leaves out.

  Attributes:
    vocabulary: number of token ids V.
    width: D.
    mlp: width F between the two layers of the MLP.
    depth: number of blocks L.
    heads: N.
    positions: longest caption in tokens.
    act: activation of the MLP, one of `layers.ACTIVATIONS`.
    eps: of the layer norms.
    projection: width P of the pooled output, when there is a projection.
    architectures: `PROJECTED` when the tower ends in a projection. Files state
      a projection width also where they have no such tensor.
    bos: id of the start-of-text token.
    eos: id of the end-of-text token; 2 is an old mistake of the files and
      stands for the largest id of a caption.
    pad: id after the end; stated by files, not used by the tower.
  """

  vocabulary: int = 49408
  width: int = 512
  mlp: int = 2048
  depth: int = 12
  heads: int = 8
  positions: int = 77
  act: str = "quick_gelu"
  eps: float = 1e-5
  projection: int = 512
  architectures: tuple[str, ...] = PLAIN
  bos: int = 49406
  eos: int = 49407
  pad: int = 1

  def __post_init__(self):
    check(self, "a text tower", (PLAIN, PROJECTED))

  @property
  def projected(self) -> bool:
    """Whether the pooled state goes through a projection."""
    return self.architectures == PROJECTED


class Block(nnx.Module):
  """x + attn(norm1(x)), then x + mlp(norm2(x)); of a tower of either kind."""

  def __init__(
    self,
    config: Any,
    *,
    causal: bool,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    # As in CLIP's code: the sum of 2 L branches keeps the variance of one.
    std = (2 * config.depth * config.width) ** -0.5
    self.norm1 = layers.layer_norm(config.width, config.eps, **kinds)
    self.attn = layers.Attention(
      config.width,
      config.heads,
      causal=causal,
      out_init=nnx.initializers.normal(std),
      **kinds,
    )
    self.norm2 = layers.layer_norm(config.width, config.eps, **kinds)
    self.mlp = layers.MLP(config.width, config.mlp, act=config.act, **kinds)

  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


def last_states(
  blocks: Block, x: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
  """Runs stacked blocks: states after the last one, and after the one before.

  Not `layers.scan`: the state before the last block is wanted too, and
  carrying it costs less than slicing the stacked weights.
  """

  def step(states, block):
    x, _ = states
    return (sharding.constrain(block(x)), x), None

  return jax.lax.scan(step, (x, x), blocks)[0]


class Encoding(NamedTuple):
  """What a text tower says of captions.

  Attributes:
    hidden: states after the last block and the final norm; SD2's condition.
    penultimate: states after the last block but one, without a norm, which
      are `hidden_states[-2]` of transformers; SDXL's condition.
    pooled: the normed state at the end-of-text token, projected if the tower
      has a projection; P is D if it has none.
  """

  hidden: Float[Array, "B T D"]
  penultimate: Float[Array, "B T D"]
  pooled: Float[Array, "B P"]


class Text(nnx.Module):
  """Token ids -> states of each token, and one of the caption."""

  def __init__(
    self, config: TextConfig, *, dtype: layers.Dtype, rngs: nnx.Rngs
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    normal = nnx.initializers.normal
    self.eos = config.eos
    # CLIP's code has 0.02 for any width. Of a narrow tower the first steps of
    # Adam are longer than that: words move as one, and some stay one.
    std = config.width**-0.5
    self.token = nnx.Embed(
      config.vocabulary, config.width, embedding_init=normal(std), **kinds
    )
    self.position = nnx.Embed(
      config.positions, config.width, embedding_init=normal(std / 2), **kinds
    )
    self.blocks = layers.stack(
      lambda rngs: Block(config, causal=True, dtype=dtype, rngs=rngs),
      config.depth,
      rngs,
    )
    self.norm = layers.layer_norm(config.width, config.eps, **kinds)
    self.projection = (
      layers.linear(
        config.width,
        config.projection,
        bias=False,
        init=normal(config.width**-0.5),
        **kinds,
      )
      if config.projected
      else None
    )

  def __call__(self, tokens: Int[Array, "B T"]) -> Encoding:
    """Encodes captions of `data.tokenize`.

    Args:
      tokens: ids, with the end-of-text token once or, where it is also the
        padding, from its first place on. Padding needs no mask: attention is
        causal, and published models were trained with it visible.

    Raises:
      ValueError: T is more than the tower has positions for.
    """
    T, positions = tokens.shape[1], self.position.num_embeddings
    if T > positions:
      raise ValueError(
        f"captions of {T} tokens are too long for a text tower with "
        f"{positions} positions; encode them with length={positions}"
      )
    x = self.token(tokens) + self.position(jnp.arange(T))  # [B T D]
    with jax.named_scope("clip_text"):
      x, penultimate = last_states(self.blocks, x)
    hidden = self.norm(x)
    # Where transformers takes the pooled state. argmax is the first maximum.
    ends = tokens if self.eos == 2 else tokens == self.eos
    end = jnp.argmax(ends, axis=1)  # [B]
    pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
    if self.projection is not None:
      pooled = self.projection(pooled)
    return Encoding(hidden, penultimate, pooled)


# OpenCLIP ViT-H/14 without its last block, as stable-diffusion-2 has it.
SD2 = TextConfig(
  width=1024,
  mlp=4096,
  depth=23,
  heads=16,
  act="gelu",
  bos=0,
  eos=2,
)

# OpenAI's ViT-L/14, the first tower of SDXL.
SDXL_L = TextConfig(
  width=768,
  mlp=3072,
  depth=12,
  heads=12,
  act="quick_gelu",
  projection=768,
  bos=0,
  eos=2,
)

# OpenCLIP ViT-bigG/14, the second tower of SDXL.
SDXL_G = TextConfig(
  width=1280,
  mlp=5120,
  depth=32,
  heads=20,
  act="gelu",
  projection=1280,
  architectures=PROJECTED,
  bos=0,
  eos=2,
)

BLOCK_NAMES = (
  ("attn", "self_attn"),
  ("q", "q_proj"),
  ("k", "k_proj"),
  ("v", "v_proj"),
  ("out", "out_proj"),
  ("norm1", "layer_norm1"),
  ("norm2", "layer_norm2"),
  ("up", "fc1"),
  ("down", "fc2"),
)
# transformers 4 writes these names, 5 leaves "text_model." out for towers
# without a projection; both read these.
NAMES = (
  ("token", "text_model.embeddings.token_embedding"),
  ("position", "text_model.embeddings.position_embedding"),
  ("blocks", "text_model.encoder.layers.{l}"),
  ("norm", "text_model.final_layer_norm"),
  ("projection", "text_projection"),
  *BLOCK_NAMES,
)

# A dropout that nothing reads, and a matrix that is not there to be tied.
IGNORED = (*config_json.GENERIC, "dropout", "tie_word_embeddings")
CONFIG = config_json.ConfigTable(
  renamed={
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "mlp": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
    "act": "hidden_act",
    "eps": "layer_norm_eps",
    "projection": "projection_dim",
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "pad_token_id",
  },
  fixed={"model_type": "clip_text_model", "attention_dropout": 0.0},
  ignored=IGNORED,
)
# As a group of keys in the config.json of a model that has such a tower.
PART = dataclasses.replace(CONFIG, given={"architectures": PLAIN})
