# SPDX-License-Identifier: Apache-2.0
"""DiT -> PixArt-alpha: weights for the second stage of its training.

"PixArt-alpha", arXiv 2310.00426, §2.3, of which no code was published. DiT has
a layer in each block, S_i = f_i(t + c), that makes six vectors of timestep and
class. PixArt makes them once, S = f(t), and adds a table of each block's own:

  E_i = S_i(500) - S(500)                                                  (1)

with f = f_0 and DiT's class of none for c, so that PixArt begins as DiT does
without a class: exactly at t = 500, nearly at others, and in block 0 at all.
The final layer's two vectors are a table plus the timestep's itself,

  E = S_final(500) - t(500).                                               (2)

Attention to the caption begins with no effect, its last layer being zero.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.models import dit, layers, patches, pixart

# Found best in the paper.
TIMESTEP = 500
# Which of DiT's classes stands for none: its own row for that, or no class.
CLASSES = ("null", "zero")
# What must be alike.
SAME = ("patch", "in_channels", "heads", "head_width", "depth")


def check(theirs: dit.Config, ours: pixart.Config) -> None:
  """Refuses networks of other shapes.

  Raises:
    ValueError: a DiT of which no such PixArt can be made.
  """
  channels = lambda config: config.out_channels or config.in_channels
  for name, given, wanted in (
    *((name, getattr(theirs, name), getattr(ours, name)) for name in SAME),
    ("out_channels", channels(theirs), channels(ours)),
  ):
    if given != wanted:
      raise ValueError(
        f"a DiT of {name}={given} cannot become a PixArt of {name}={wanted}; "
        "train the first stage with the shape of the second"
      )


def time_vector(
  params: Mapping[str, Any], t: float | int, shift: int
) -> Float[Array, "D"]:
  """The vector of a timestep, of either network's weights."""
  x = layers.timestep_embedding(
    jnp.array([t], jnp.float32), patches.SINUSOIDS, shift=shift
  )
  x = jax.nn.silu(_linear(params["up"], x))
  return _linear(params["down"], x)[0]


def from_dit(
  source: Mapping[str, Any],
  theirs: dit.Config,
  fresh: Mapping[str, Any],
  *,
  t: float | int = TIMESTEP,
  none: str = "null",
) -> dict[str, Any]:
  """The weights of a PixArt that continues a DiT.

  Args:
    source: weights of the DiT.
    theirs: its config.
    fresh: initial weights of the PixArt, of which those remain that DiT does
      not have: how captions are read.
    t: at which both are equal.
    none: one of `CLASSES`.

  Raises:
    ValueError: another `none`.
  """
  if none not in CLASSES:
    raise ValueError(f"{none!r} is no class of none; {' or '.join(CLASSES)}")
  label = source["label"]["embedding"][theirs.classes]
  label = label if none == "null" else jnp.zeros_like(label)
  blocks, kept = source["blocks"], fresh["blocks"]
  modulation = blocks["modulation"]
  # t + c of DiT, at any t, is PixArt's t with c in the bias of its last layer.
  down = source["time"]["down"]
  time = {
    "up": source["time"]["up"],
    "down": {**down, "bias": down["bias"] + label},
  }
  condition = time_vector(time, t, theirs.frequency_shift)
  # PixArt's own frequencies, where DiT has diffusers'.
  ours = time_vector(time, t, 0)
  six = lambda x: x.reshape(*x.shape[:-1], 6, -1)  # [... 6 D]
  every = six(_linear(modulation, jax.nn.silu(condition)))  # [L 6 D]
  first = jax.tree.map(lambda x: x[0], modulation)
  shared = six(_linear(first, jax.nn.silu(ours)))
  final = _linear(source["final_modulation"], jax.nn.silu(condition))
  quiet = {
    name: {**fresh[name], "down": _zeros(fresh[name]["down"])}
    for name in ("size", "ratio")
    if name in fresh
  }
  return {
    **fresh,
    **quiet,
    "patch": source["patch"],
    "time": time,
    "modulation": first,
    "proj_out": source["proj_out"],
    "final_table": final.reshape(2, -1) - ours,
    "blocks": {
      **kept,
      "table": every - shared,
      "attn1": blocks["attn1"],
      "attn2": {**kept["attn2"], "out": _zeros(kept["attn2"]["out"])},
      "mlp": blocks["mlp"],
    },
  }


def _zeros(tree):
  return jax.tree.map(jnp.zeros_like, tree)


def _linear(params, x):
  """Of one layer, or of all stacked ones for the same x."""
  return x @ params["kernel"] + params["bias"]
