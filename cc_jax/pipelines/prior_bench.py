# SPDX-License-Identifier: Apache-2.0
"""CLIP-GEN's prior here, and as its re-implementation samples from it.

HFAiLab's code runs the whole prefix through torch's transformer layers for each
code. Both have the same random weights and write the likeliest code each time:
`prior_same_codes` is the share of equal ones.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cc_jax.core import convert, tree
from cc_jax.models import decoding, kinds, layers, prior
from cc_jax.pipelines import reference


def measure(options: ml_collections.ConfigDict) -> dict[str, Any]:
  """Images a second of `config.bench.prior`, and of torch if asked for.

  Compilation is not counted. Figures are medians of calls in turn; those by
  seconds of CPU time say more on a machine that others use too.

  Raises:
    ValueError: torch is to be compared with, and is not installed.
  """
  shape = options.prior
  config = prior.Config(
    vocabulary=shape.vocabulary,
    width=shape.width,
    depth=shape.depth,
    heads=shape.heads,
    positions=shape.positions,
  )
  structure, _ = kinds.structure("prior", config)
  params = jax.jit(
    lambda: tree.split(kinds.make("prior", config, rngs=layers.keys(0)))[1]
  )()
  # Initial logits are all but equal, and which is the largest is chance.
  params["lm"]["head"]["kernel"] *= 30
  rng = np.random.default_rng(0)
  condition = rng.standard_normal((shape.batch_size, config.condition))
  condition /= np.linalg.norm(condition, axis=1, keepdims=True)
  condition = condition.astype(np.float32)

  @jax.jit
  def run(params, condition):
    return prior.sample(
      tree.merge(structure, params), condition, decoding.greedy
    )

  functions = {"cc_jax": lambda: np.asarray(run(params, condition))}
  if options.compare == "torch":
    functions["torch"] = full_prefix(config, params, condition)
  functions["cc_jax"]()  # Compiles.
  codes: dict[str, np.ndarray] = {}
  wall: dict[str, list[float]] = {name: [] for name in functions}
  cpu: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(options.repeats):
    for name, function in functions.items():
      started, used = time.perf_counter(), time.process_time()
      codes[name] = function()
      wall[name].append(time.perf_counter() - started)
      cpu[name].append(time.process_time() - used)
  found: dict[str, Any] = {}
  for name in functions:
    found |= {
      f"prior_images_per_second_{name}": shape.batch_size
      / statistics.median(wall[name]),
      f"prior_images_per_cpu_second_{name}": shape.batch_size
      / statistics.median(cpu[name]),
    }
  if "torch" in codes:
    found["prior_same_codes"] = float(
      np.mean(codes["torch"] == codes["cc_jax"])
    )
    for what in ("second", "cpu_second"):
      ours, theirs = (
        found[f"prior_images_per_{what}_{name}"] for name in functions
      )
      found[f"prior_times_as_fast_by_{what}"] = ours / theirs
  return found


def full_prefix(
  config: prior.Config, params: Any, condition: jnp.ndarray | np.ndarray
) -> Any:
  """A function that writes codes with torch, all of the prefix each time."""
  torch = reference.library("torch")
  names, depth = prior.HFAILAB.names, config.depth
  weights = {
    name: torch.from_numpy(np.array(array))
    for name, array in convert.export_weights(params, names).items()
  }
  blocks = []
  for layer in range(depth):
    block = torch.nn.TransformerEncoderLayer(
      config.width,
      config.heads,
      config.mlp,
      activation="gelu",
      batch_first=True,
      norm_first=True,
    ).eval()
    inside = f"blocks.{layer}.encoder."
    block.load_state_dict(
      {
        name.removeprefix(inside): weight
        for name, weight in weights.items()
        if name.startswith(inside)
      }
    )
    blocks.append(block)
  linear, norm = torch.nn.functional.linear, torch.nn.functional.layer_norm
  T, given = config.positions, torch.from_numpy(np.array(condition))
  position = weights["pos_emb"].reshape(T, -1)
  first = weights["cond_proj.weight"], weights["cond_proj.bias"]
  mask = torch.full((T, T), float("-inf")).triu(1)

  def write() -> np.ndarray:
    start = linear(given, *first)
    codes = torch.zeros((len(given), 0), dtype=torch.long)
    with torch.no_grad():
      for t in range(1, T + 1):
        x = torch.cat([start[:, None], weights["tok_emb.weight"][codes]], dim=1)
        x = x + position[:t]
        for block in blocks:
          x = block(x, src_mask=mask[:t, :t])
        x = norm(
          x, (config.width,), weights["norm.weight"], weights["norm.bias"]
        )
        logits = linear(x, weights["head.weight"], weights["head.bias"])
        codes = torch.cat([codes, logits[:, -1].argmax(1)[:, None]], dim=1)
    return codes.numpy()

  return write
