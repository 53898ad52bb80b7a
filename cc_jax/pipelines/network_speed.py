# SPDX-License-Identifier: Apache-2.0
"""Networks one by one: forward and backward, beside torch's if asked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cc_jax.core import flops, log, profile, timing, tree
from cc_jax.models import hub, kinds
from cc_jax.pipelines import reference


class Work(NamedTuple):
  """A network and what it is given in a measurement.

  Attributes:
    kind: a key of `kinds.KINDS`.
    inputs: by name, in the order that `run` takes them.
    run: `run(model, *inputs)`, what is measured.
    parts: first names of the paths of weights that `run` uses; none is all.
  """

  kind: str
  inputs: dict[str, np.ndarray]
  run: Callable[..., jax.Array]
  parts: tuple[str, ...] = ()


def works(config: ml_collections.ConfigDict) -> dict[str, Work]:
  """The networks that can be measured, with random inputs."""
  options, rng = config.bench, np.random.default_rng(config.seed)
  normal = lambda *shape: rng.standard_normal(
    (options.batch_size, *shape), "f4"
  )
  unet = hub.config(config.model.unet, "unet")
  vae = hub.config(config.model.vae, "autoencoder")
  text = hub.config(config.model.text, "clip_text")
  side, channels = options.size // vae.factor, unet.in_channels
  tokens = (options.batch_size, text.positions)
  return {
    "unet": Work(
      "unet",
      {
        "xt": normal(side, side, channels),
        "t": rng.integers(0, 1000, options.batch_size, np.int32),
        "context": normal(text.positions, unet.source_width),
      },
      lambda model, *inputs: model(*inputs),
    ),
    "vae": Work(
      "autoencoder",
      {"x": normal(options.size, options.size, 3)},
      lambda model, x: model.encode(x)[0],
      ("encoder", "quant_conv"),
    ),
    "text": Work(
      "clip_text",
      {"tokens": rng.integers(0, text.vocabulary, tokens, np.int32)},
      lambda model, tokens: model(tokens).hidden,
    ),
  }


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Forward and backward of networks, beside torch's on the same weights.

  Weights and inputs are random, in float32. Ours and theirs run in turn, in
  this process, on the same cores; figures are medians. Where ours is slower,
  the operations that take longest are named.

  Raises:
    ValueError: a network that cannot be measured, or torch is not installed.
  """
  options, available = config.bench, works(config)
  found: dict[str, Any] = measure_matmul(options)
  for name in options.networks:
    if name not in available:
      raise ValueError(
        f"bench.networks has {name!r}; expected {', '.join(available)}"
      )
    found |= measure_network(config, name, available[name])
  return found


def measure_network(
  config: ml_collections.ConfigDict, name: str, work: Work
) -> dict[str, Any]:
  """Seconds of the two passes of one network, ours and, if asked, torch's."""
  options = config.bench
  made = hub.config(config.model[name], work.kind)
  structure, shapes = kinds.structure(work.kind, made)
  rng = np.random.default_rng(config.seed)
  # Small weights, or values would overflow in networks as deep as these.
  params = jax.tree.map(
    lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes
  )
  theirs = None
  if options.compare:
    theirs = reference.open(work.kind, made, params, work.inputs)
  log.announce(
    "bench", f"{name}: {tree.count(shapes):,} weights, {options.compare}"
  )
  params = jax.device_put(params)
  used = {key: params[key] for key in work.parts or params}

  def forward(used, *inputs):
    return work.run(tree.merge(structure, {**params, **used}), *inputs)

  def backward(used, *inputs):
    return jax.grad(lambda used: jnp.mean(forward(used, *inputs) ** 2))(used)

  inputs = list(work.inputs.values())
  found: dict[str, Any] = {}
  for label, ours in (("forward", forward), ("backward", backward)):
    other = theirs and getattr(theirs, label)
    figures = measure_pass(ours, (used, *inputs), other, options.repeats)
    found |= {f"{name}_{label}_{key}": one for key, one in figures.items()}
  return found


def measure_pass(
  ours: Callable[..., Any],
  args: tuple[Any, ...],
  theirs: Callable[[], Any] | None,
  repeats: int,
) -> dict[str, Any]:
  """Median seconds of a function of ours on its arguments, and of theirs."""
  compiled = jax.jit(ours).lower(*args).compile()
  run = lambda: jax.block_until_ready(compiled(*args))
  runs = {"seconds": run} | ({"torch_seconds": theirs} if theirs else {})
  found: dict[str, Any] = timing.in_turn(runs, repeats)
  found["gflop"] = flops.count(ours, *args) / 1e9
  found["gflop_per_second"] = found["gflop"] / found["seconds"]
  if theirs:
    found["speedup"] = found["torch_seconds"] / found["seconds"]
    if found["speedup"] < 1:
      slowest = profile.slowest(run, compiled.as_text())
      found["slowest"] = [f"{s:.3f} s {what}" for what, s in slowest]
  return found


def measure_matmul(options: ml_collections.ConfigDict) -> dict[str, float]:
  """GFLOP/s of a float32 product of two matrices, the bound of all networks."""
  side = 2048
  a = np.random.default_rng(0).standard_normal((side, side), np.float32)
  ours = jnp.asarray(a)
  product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
  runs = {"": lambda: jax.block_until_ready(product(ours))}
  if options.compare:
    theirs = reference.library("torch").from_numpy(a)
    runs["torch_"] = lambda: theirs @ theirs
  seconds = timing.in_turn(runs, options.repeats)
  return {
    f"matmul_{who}gflop_per_second": 2 * side**3 / value / 1e9
    for who, value in seconds.items()
  }
