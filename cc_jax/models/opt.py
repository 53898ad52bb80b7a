# SPDX-License-Identifier: Apache-2.0
"""OPT, the language model of BLIP-2's captions: its shape and its files.

"OPT: Open Pre-trained Transformer Language Models", arXiv 2205.01068, §2.1:
GPT-3 with ReLU, learned positions and a head that is the table of tokens. The
network is models/lm.py; files are those of transformers' OPTForCausalLM.
"""

import dataclasses
from typing import ClassVar

from cc_jax.core import config_json, spelling


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of an OPT; what all have in common is in the constants.

  The defaults are those of transformers' OPTConfig. The smallest but one (350m)
  is another network, with its norms behind the branches and narrower tokens.

  Attributes:
    vocabulary: number of token ids V.
    width: D.
    mlp: width F between the two layers of the MLP.
    depth: number of blocks L.
    heads: N.
    positions: longest text in tokens.
    bos: id of the token before a text.
    eos: id of the token after a text.
    pad: id of padding.
  """

  vocabulary: int = 50272
  width: int = 768
  mlp: int = 3072
  depth: int = 12
  heads: int = 12
  positions: int = 2048
  bos: int | None = 2
  eos: int | None = 2
  pad: int | None = 1

  # The table of positions began as one of fairseq, which numbers from its
  # padding token on.
  offset: ClassVar[int] = 2
  rope: ClassVar[float | None] = None
  act: ClassVar[str] = "relu"
  gated: ClassVar[bool] = False
  rms: ClassVar[bool] = False
  eps: ClassVar[float] = 1e-5
  bias: ClassVar[bool] = True
  head_bias: ClassVar[bool] = False
  tied: ClassVar[bool] = True

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(
        f"width={self.width} does not divide over {self.heads} heads"
      )


# facebook/opt-2.7b
OPT_2_7B = Config(width=2560, mlp=10240, depth=32, heads=32)

NAMES = (
  ("token", "model.decoder.embed_tokens"),
  ("position", "model.decoder.embed_positions"),
  ("norm", "model.decoder.final_layer_norm"),
  ("blocks", "model.decoder.layers.{l}"),
  ("attn", "self_attn"),
  ("q", "q_proj"),
  ("k", "k_proj"),
  ("v", "v_proj"),
  ("out", "out_proj"),
  ("norm1", "self_attn_layer_norm"),
  ("norm2", "final_layer_norm"),
  ("mlp.up", "fc1"),
  ("mlp.down", "fc2"),
)

# Files that have the table of tokens a second time, as the head.
WITH_HEAD = spelling.Format(
  NAMES, marker="lm_head.weight", unused=("lm_head.",)
)

CONFIG = config_json.ConfigTable(
  renamed={
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "mlp": "ffn_dim",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "pad_token_id",
  },
  fixed={
    "model_type": "opt",
    "activation_function": Config.act,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
  },
  derived=lambda config: {"word_embed_proj_dim": config.width},
  # Dropout is for training, which these models do not get here.
  ignored=(
    *config_json.GENERIC,
    "activation_dropout",
    "attention_dropout",
    "dropout",
    "init_std",
    "layerdrop",
    "use_cache",
  ),
  written={"architectures": ["OPTForCausalLM"]},
)
