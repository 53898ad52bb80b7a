# SPDX-License-Identifier: Apache-2.0
"""CLIP-GEN's prior: from CLIP's embedding of an image to the codes of one.

"CLIP-GEN: Language-Free Training of a Text-to-Image Generator with CLIP",
arXiv 2203.00386: a GPT reads an embedding and writes the codes that a VQGAN has
for the image, row by row. It is trained on images alone: afterwards a caption's
embedding takes the place of the image's. Sizes are those of HFAiLab's
implementation. The trunk is models/lm.py, and opens as transformers' GPT2Model;
the first embedding and the head have no place there, so the files are this
project's own.
"""

import dataclasses
from typing import ClassVar, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from cc_jax.core import config_json, spelling
from cc_jax.models import decoding, layers, lm


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a prior; what all have in common is in the constants.

  Attributes:
    vocabulary: number of codes V of the VQGAN.
    width: D.
    depth: number of blocks L.
    heads: N.
    positions: codes of an image T.
    condition: width E of CLIP's embedding.
  """

  vocabulary: int = 16384
  width: int = 1024
  depth: int = 24
  heads: int = 16
  positions: int = 256
  condition: int = 512

  offset: ClassVar[int] = 0
  rope: ClassVar[float | None] = None
  act: ClassVar[str] = "gelu"
  gated: ClassVar[bool] = False
  rms: ClassVar[bool] = False
  eps: ClassVar[float] = 1e-5
  bias: ClassVar[bool] = True
  head_bias: ClassVar[bool] = True
  tied: ClassVar[bool] = False

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(
        f"width={self.width} does not divide over {self.heads} heads"
      )

  @property
  def mlp(self) -> int:
    """Width F between the two layers of the MLP."""
    return 4 * self.width


def scattered(
  key: Key[Array, ""], shape: tuple[int, ...]
) -> UInt32[Array, "..."]:
  """A number of 32 bits for each place, of which the highest are random.

  Random words for each row and column, hashed together by multiplication,
  whose high bits depend on all below ("A Reliable Randomized Algorithm for the
  Closest-Pair Problem", J. Algorithms 25 (1997), §3). Dropout asks for one
  number an activation: with this one the MLP's first layer takes 1.26 times the
  cycles that it takes without on a TPU v4, with a hash of each place 1.59.
  """
  rows, columns = jax.random.split(key)
  rows = jax.random.bits(rows, shape[:-1])[..., None]
  columns = jax.random.bits(columns, shape[-1:])
  return (rows ^ columns) * jnp.uint32(0x7FEB352D)


def drop(
  x: Float[Array, "..."], share: Float[Array, ""], key: Key[Array, ""]
) -> Float[Array, "..."]:
  """A share of the numbers becomes 0, and the rest larger by as much."""
  kept = scattered(key, x.shape) >= (share * 2.0**32).astype(jnp.uint32)
  return jnp.where(kept, x / (1 - share).astype(x.dtype), 0)


class Dropping(NamedTuple):
  """A block in training, with dropout; or stacked ones.

  "Dropout", JMLR 15 (2014), where torch's transformer layers have it.
  """

  block: lm.Block
  key: Key[Array, "*L"]
  share: Float[Array, "*L"]

  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "B T"] | None,
    angles: Float[Array, "B T P"] | None,
  ) -> Float[Array, "B T D"]:
    block, keys = self.block, jax.random.split(self.key, 3)
    h = block.attn(block.norm1(x), mask, angles)
    x = x + drop(h, self.share, keys[0])
    h = layers.ACTIVATIONS[block.mlp.act](block.mlp.up(block.norm2(x)))
    h = drop(h, self.share, keys[1])
    # Or a TPU would hash each place anew for every tile of the product.
    h = block.mlp.down(jax.lax.optimization_barrier(h))
    return x + drop(h, self.share, keys[2])


class Prior(nnx.Module):
  """An embedding of CLIP, then codes -> logits of the code after each."""

  def __init__(
    self,
    config: Config,
    *,
    dtype: layers.Dtype = jnp.float32,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    kinds = dict(dtype=dtype, rngs=rngs)
    self.config = config
    self.condition = layers.linear(
      config.condition, config.width, init=lm.INIT, **kinds
    )
    self.lm = lm.LM(config, remat=remat, **kinds)

  def start(self, condition: Float[Array, "B E"]) -> Float[Array, "B 1 D"]:
    """The state in front of the codes, which all of them see."""
    return self.condition(condition)[:, None]

  def __call__(
    self,
    condition: Float[Array, "B E"],
    codes: Int[Array, "B S"],
    *,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
  ) -> Float[Array, "B T V"]:
    """The logits of all codes, each by those before it.

    Args:
      condition: CLIP's embeddings, of norm 1.
      codes: the codes of images but the last, S = T - 1, row by row.
      dropout: of what attention and MLP add and of the MLP's inside, in
        training; the published code drops attention's weights too.
      key: for dropout.

    Raises:
      ValueError: more codes than an image has.
    """
    start = self.start(condition)
    x = jnp.concatenate([start, self.lm.embed(codes)], axis=1)
    if not dropout:
      return self.lm(x)
    keys = jax.random.split(key, self.config.depth)
    share = jnp.full(self.config.depth, dropout)
    return self.lm(x, blocks=Dropping(self.lm.blocks, keys, share))


def sample(
  model: Prior,
  condition: Float[Array, "B E"],
  pick: decoding.Pick,
  key: Key[Array, ""] | None = None,
  *,
  guidance: float = 1.0,
  dtype: layers.Dtype = jnp.float32,
) -> Int[Array, "B T"]:
  """Writes the codes of images, one after another, with a cache.

  Args:
    model: the prior.
    condition: CLIP's embeddings, of norm 1.
    pick: `decoding.greedy`, or what `decoding.sampler` gives; HFAiLab drew with
      top_k=500 and top_p=0.95.
    key: for a `pick` that draws.
    guidance: logits are those for an embedding of zeros and this times what the
      condition adds ("Classifier-Free Diffusion Guidance", arXiv 2207.12598,
      eq. 6); 1 is without. For priors that were trained with such embeddings.
    dtype: of the cache.
  """
  guided = guidance != 1
  rows = jnp.concatenate([condition, 0 * condition]) if guided else condition
  T = model.config.positions
  cache = lm.empty_cache(model.config, len(rows), T, dtype)

  def mix(logits, cache):
    if not guided:
      return logits, cache
    given, none = jnp.split(logits.astype(jnp.float32), 2)
    return none + guidance * (given - none), cache

  def step(codes, cache):
    rows = jnp.concatenate([codes, codes]) if guided else codes
    return mix(*model.lm.step(rows, cache))

  logits, cache = model.lm.extend(model.start(rows), cache)
  logits, cache = mix(logits[:, 0], cache)
  with jax.named_scope("prior_sample"):
    return decoding.generate(step, logits, cache, pick, length=T, key=key)


# The sizes of GPT-2 that HFAiLab's implementation has.
MEDIUM = Config()
LARGE = Config(width=1280, depth=36, heads=20)

# GPT-2's names for the trunk, and two that it lacks.
NAMES = (
  ("condition", "cond_proj"),
  ("lm.token", "wte"),
  ("lm.position", "wpe"),
  ("lm.blocks", "h.{l}"),
  ("lm.norm", "ln_f"),
  ("lm.head", "head"),
  ("norm1", "ln_1"),
  ("norm2", "ln_2"),
  ("attn.q", "attn.c_attn[0/3]^T"),
  ("attn.k", "attn.c_attn[1/3]^T"),
  ("attn.v", "attn.c_attn[2/3]^T"),
  ("attn.out", "attn.c_proj^T"),
  ("mlp.up", "mlp.c_fc^T"),
  ("mlp.down", "mlp.c_proj^T"),
)

# gpt_coco.pt of HFAiLab/clip-gen.
HFAILAB = spelling.Format(
  names=(
    ("condition", "cond_proj"),
    ("lm.token", "tok_emb"),
    ("lm.position.weight", "pos_emb"),
    ("lm.blocks", "blocks.{l}.encoder"),
    ("lm.norm", "norm"),
    ("lm.head", "head"),
    ("attn.q.weight", "self_attn.in_proj_weight[0/3]"),
    ("attn.k.weight", "self_attn.in_proj_weight[1/3]"),
    ("attn.v.weight", "self_attn.in_proj_weight[2/3]"),
    ("attn.q.bias", "self_attn.in_proj_bias[0/3]"),
    ("attn.k.bias", "self_attn.in_proj_bias[1/3]"),
    ("attn.v.bias", "self_attn.in_proj_bias[2/3]"),
    ("attn.out", "self_attn.out_proj"),
    ("mlp.up", "linear1"),
    ("mlp.down", "linear2"),
  ),
  marker="blocks.0.encoder.self_attn.in_proj_weight",
  config=MEDIUM,
  # The causal mask of each block, up to the depth of LARGE.
  unused=tuple(f"blocks.{layer}.mask" for layer in range(LARGE.depth)),
  keys=("model",),
)

CONFIG = config_json.ConfigTable(
  renamed={
    "vocabulary": "vocab_size",
    "width": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "positions": "n_positions",
    "condition": "condition_dim",
  },
  fixed={
    "model_type": "gpt2",
    "activation_function": Config.act,
    "layer_norm_epsilon": Config.eps,
    "bos_token_id": None,
    "eos_token_id": None,
  },
  derived=lambda config: {"n_inner": config.mlp},
  ignored=config_json.GENERIC,
  written={"architectures": ["CLIPGenPrior"]},
)
