# SPDX-License-Identifier: Apache-2.0
"""T5 v1.1's encoder, which reads the captions of PixArt-alpha.

"Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", arXiv 1910.10683, §2.1: RMS norms, no biases, no 1 / sqrt(K), and
positions only as a bias on attention that all blocks share. Version 1.1 has the
gated MLP of arXiv 2002.05202. PixArt-alpha (arXiv 2310.00426, §2.3) attends to
all states of the XXL encoder. Files are those of transformers' T5EncoderModel.
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32
import numpy as np

from cc_jax.core import config_json
from cc_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of an encoder.

  The defaults are those of transformers' T5Config: they hold for keys that a
  config.json leaves out.

  Attributes:
    vocabulary: number of token ids V.
    width: D.
    mlp: width F of the MLP.
    depth: number of blocks L.
    heads: N.
    head_width: K, whatever D / N is.
    buckets: number of position biases a head, half of them for tokens before.
    max_distance: from which on all tokens share the outermost bucket.
    eps: of the RMS norms.
  """

  vocabulary: int = 32128
  width: int = 512
  mlp: int = 2048
  depth: int = 6
  heads: int = 8
  head_width: int = 64
  buckets: int = 32
  max_distance: int = 128
  eps: float = 1e-6

  def __post_init__(self):
    if self.buckets < 4 or self.max_distance <= self.buckets // 4:
      raise ValueError(
        f"buckets={self.buckets} do not suit max_distance={self.max_distance}; "
        "expected at least 4 buckets, and a distance of over a quarter of them"
      )


def buckets(
  length: int, count: int, max_distance: int
) -> Int32[np.ndarray, "T T"]:
  """The bucket of each source token (columns) as each token (rows) sees it.

  Half of the buckets are for source tokens that come later. Of a half, the
  first half is for one distance each, the others grow as the logarithm of the
  distance: arXiv 1910.10683, §2.1, in the arithmetic of its code.

  >>> buckets(4, 8, 16)[0].tolist(), buckets(4, 8, 16)[:, 0].tolist()
  ([0, 5, 6, 6], [0, 1, 2, 2])
  """
  t = np.arange(length)
  distance = t[None, :] - t[:, None]
  half, exact = count // 2, count // 4
  far = np.maximum(np.abs(distance), 1).astype(np.float32)
  # In float32 throughout: where a bucket ends, the last bit decides.
  grown = (
    np.log(far / np.float32(exact))
    / np.float32(math.log(max_distance / exact))
    * np.float32(half - exact)
  )
  coarse = np.minimum(exact + grown.astype(np.int32), half - 1)
  near = np.abs(distance) < exact
  bucket = np.where(near, np.abs(distance), coarse)
  return (bucket + half * (distance > 0)).astype(np.int32)


class Block(nnx.Module):
  """x + attn(norm1(x)), then x + mlp(norm2(x))."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    kinds = dict(dtype=dtype, rngs=rngs)
    self.norm1 = layers.rms_norm(config.width, config.eps, **kinds)
    self.attn = layers.Attention(
      config.width,
      config.heads,
      head_width=config.head_width,
      bias=False,
      out_bias=False,
      scale=1.0,
      **kinds,
    )
    self.norm2 = layers.rms_norm(config.width, config.eps, **kinds)
    self.mlp = layers.MLP(
      config.width,
      config.mlp,
      act="gelu_tanh",
      gated=True,
      bias=False,
      **kinds,
    )

  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "#B #T"] | None,
    bias: Float[Array, "1 N T T"],
  ) -> Float[Array, "B T D"]:
    x = x + self.attn(self.norm1(x), mask=mask, bias=bias)
    return x + self.mlp(self.norm2(x))


class Encoder(nnx.Module):
  """Token ids -> a state of each token."""

  def __init__(self, config: Config, *, dtype: layers.Dtype, rngs: nnx.Rngs):
    if jnp.dtype(dtype) == jnp.float16:
      raise ValueError(
        "T5 overflows in float16; compute it in bfloat16 or float32"
      )
    kinds = dict(dtype=dtype, rngs=rngs)
    self.buckets, self.max_distance = config.buckets, config.max_distance
    self.token = nnx.Embed(
      config.vocabulary,
      config.width,
      embedding_init=nnx.initializers.normal(1.0),
      **kinds,
    )
    # Added to what the softmax sees, so in its type.
    self.position = nnx.Embed(
      config.buckets,
      config.heads,
      embedding_init=nnx.initializers.normal(config.width**-0.5),
      dtype=jnp.float32,
      rngs=rngs,
    )
    self.blocks = layers.stack(
      lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.depth, rngs
    )
    self.norm = layers.rms_norm(config.width, config.eps, **kinds)

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "#B T"] | None = None,
  ) -> Float[Array, "B T D"]:
    """Encodes captions of `data.tokenize`.

    Args:
      tokens: ids, any number of them.
      mask: true where they are not padding. No token sees padding; the states
        of padding are computed all the same, and mean nothing.
    """
    T = tokens.shape[1]
    with jax.named_scope("t5"):
      places = buckets(T, self.buckets, self.max_distance)
      bias = self.position(jnp.asarray(places))  # [T S N]
      bias = jnp.einsum("tsn->nts", bias)[None]
      x = layers.scan(self.blocks, self.token(tokens), mask, bias)
      return self.norm(x)


# The encoder of google/t5-v1_1-xxl, which is PixArt-alpha's.
XXL = Config(width=4096, mlp=10240, depth=24, heads=64)

# The encoder of google/t5-v1_1-small.
SMALL = Config(mlp=1024, depth=8, heads=6)

NAMES = (
  ("token", "shared"),
  # Shared by all blocks, and stored in the first.
  ("position", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
  ("blocks", "encoder.block.{l}.layer"),
  ("norm", "encoder.final_layer_norm"),
  ("norm1", "0.layer_norm"),
  ("attn", "0.SelfAttention"),
  ("out", "o"),
  ("norm2", "1.layer_norm"),
  ("mlp", "1.DenseReluDense"),
  ("gate", "wi_0"),
  ("up", "wi_1"),
  ("down", "wo"),
)

# Torch files are of whole models, with a decoder.
PICKLES = ("pytorch_model.bin",)
UNUSED = (
  "decoder.",
  "lm_head.",
  # A copy of shared.weight, or a second name of it.
  "encoder.embed_tokens.",
)

CONFIG = config_json.ConfigTable(
  renamed={
    "vocabulary": "vocab_size",
    "width": "d_model",
    "mlp": "d_ff",
    "depth": "num_layers",
    "heads": "num_heads",
    "head_width": "d_kv",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
  },
  # A file that leaves these out means version 1.0, which has one matrix where
  # the gate is: its weights are refused by their names.
  fixed={
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
  },
  # Of the decoder, of training and of text generation.
  ignored=(
    *config_json.GENERIC,
    "classifier_dropout",
    "dropout_rate",
    "n_positions",
    "num_decoder_layers",
    "output_past",
    "scale_decoder_outputs",
    "use_cache",
  ),
  written={
    "architectures": ("T5EncoderModel",),
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
  },
)
