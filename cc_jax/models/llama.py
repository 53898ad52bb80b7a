# SPDX-License-Identifier: Apache-2.0
"""LLaMA, the language model of LLaVA's captions: its shape and its files.

"LLaMA: Open and Efficient Foundation Language Models", arXiv 2302.13971, §2.2:
rotary positions, root-mean-square norms, a gated MLP and no biases. Vicuna is
LLaMA 2 trained on conversations. The network is models/lm.py; files are those
of transformers' LlamaForCausalLM.
"""

import dataclasses
from typing import ClassVar

from cc_jax.core import config_json


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a LLaMA; what all have in common is in the constants.

  The defaults are those of transformers' LlamaConfig. Each head has keys and
  values of its own: larger models, where several share them, are not supported.

  Attributes:
    vocabulary: number of token ids V.
    width: D.
    mlp: width F within the MLP.
    depth: number of blocks L.
    heads: N.
    positions: longest text in tokens that it was trained on; it sets no limit.
    rope: base of the wavelengths of rotary positions.
    eps: of the norms.
    bos: id of the token before a text.
    eos: id of the token after a text.
    pad: id of padding.
  """

  vocabulary: int = 32000
  width: int = 4096
  mlp: int = 11008
  depth: int = 32
  heads: int = 32
  positions: int = 2048
  rope: float = 10_000.0
  eps: float = 1e-6
  bos: int | None = 1
  eos: int | None = 2
  pad: int | None = None

  offset: ClassVar[int] = 0
  act: ClassVar[str] = "silu"
  gated: ClassVar[bool] = True
  rms: ClassVar[bool] = True
  bias: ClassVar[bool] = False
  head_bias: ClassVar[bool] = False
  tied: ClassVar[bool] = False

  def __post_init__(self):
    if self.width % (2 * self.heads):
      raise ValueError(
        f"width={self.width} does not divide over {self.heads} heads of pairs"
      )


# lmsys/vicuna-7b-v1.5
VICUNA_7B = Config(positions=4096, eps=1e-5, pad=0)

NAMES = (
  ("token", "model.embed_tokens"),
  ("norm", "model.norm"),
  ("blocks", "model.layers.{l}"),
  ("head", "lm_head"),
  ("attn", "self_attn"),
  ("q", "q_proj"),
  ("k", "k_proj"),
  ("v", "v_proj"),
  ("out", "o_proj"),
  ("norm1", "input_layernorm"),
  ("norm2", "post_attention_layernorm"),
  ("up", "up_proj"),
  ("gate", "gate_proj"),
  ("down", "down_proj"),
)


def _derived(config: Config) -> dict:
  return {
    "num_key_value_heads": config.heads,
    "head_dim": config.width // config.heads,
    # As transformers 5 writes "rope_theta".
    "rope_parameters": {"rope_theta": config.rope, "rope_type": "default"},
  }


CONFIG = config_json.ConfigTable(
  renamed={
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "mlp": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
    "rope": "rope_theta",
    "eps": "rms_norm_eps",
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "pad_token_id",
  },
  fixed={
    "model_type": "llama",
    "hidden_act": Config.act,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
  },
  derived=_derived,
  # pretraining_tp is how a sum was split when the model was trained.
  ignored=(
    *config_json.GENERIC,
    "attention_dropout",
    "pretraining_tp",
    "use_cache",
  ),
  written={"architectures": ["LlamaForCausalLM"]},
)
