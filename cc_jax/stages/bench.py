# SPDX-License-Identifier: Apache-2.0
"""cc-jax bench: speed of the loader, the train step and networks here."""

from collections.abc import Callable
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cc_jax.core import (
  files,
  flops,
  hardware,
  log,
  profile,
  sharding,
  tree,
  versions,
)
from cc_jax.data import loader
from cc_jax.models import clip_vision, hub, kinds
from cc_jax.pipelines import caption_recipe, image_captioner, reference
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks


def main(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes `config.bench.result` and returns what is in it.

  Raises:
    ValueError: the train step is to be measured, and its data, task or batch
      does not fit; or a comparison, and what to compare with is not there.
  """
  options = config.bench
  found: dict[str, Any] = {"device": jax.devices()[0].device_kind}
  found["devices"] = jax.device_count()
  if options.loader_seconds:
    found |= measure_loader(options.loader_seconds)
  if options.steps:
    found |= measure_step(config)
  if options.networks:
    found |= measure_networks(config)
  if options.caption.captioner:
    found |= measure_captions(config)
  versions.record(workdir, "bench", config)
  if log.is_first():
    files.write_json(options.result, found)
  for name, value in found.items():
    if isinstance(value, float):
      value = f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    lines = value if isinstance(value, list) else [value]
    for line in lines:
      log.announce("bench", f"{name} = {line}")
  log.announce("bench", f"{len(found)} figures -> {options.result}")
  return found


def measure_loader(seconds: float) -> dict[str, float]:
  """The loader on made-up SD2-256 records: see `loader.measure`."""
  log.announce("bench", f"loader: SD2-256 records for {seconds:g} s")
  speed = loader.measure(seconds=seconds)
  return {
    "loader_records_per_cpu_second": speed.per_cpu_second,
    "loader_records_per_wall_second": speed.per_wall_second,
  }


def measure_step(config: ml_collections.ConfigDict) -> dict[str, float]:
  """The config's train step on one batch of its data, again and again.

  Only the device is measured: the batch is there before, and metrics are read
  after the last step.
  """
  options = config.train
  mesh = sharding.make_mesh(**options.mesh)
  steps.check(options, mesh)
  task = tasks.make(config)
  source = tasks.source(task, options.folders, options.split)
  step = steps.make(config, task)
  batches = loader.batches(
    source,
    batch_size=options.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    transform=task.transform,
  )
  with jax.set_mesh(mesh):
    key = jax.random.key(config.seed)
    shapes = sharding.with_layouts(jax.eval_shape(step.init, key), mesh)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    state = jax.jit(step.init, out_shardings=layouts)(key)
    loss = jax.device_put(task.loss, sharding.layouts(task.loss, mesh))
    batch = sharding.put_batch(next(batches), mesh)
    batches.close()
    log.announce("bench", f"train step: {options.task}, {config.bench.steps}")
    with log.timed() as compiling:
      compiled = steps.compile_update(step.update, state, loss, batch)
    state, _ = jax.block_until_ready(compiled(state, loss, batch))
    with log.timed() as running:
      for _ in range(config.bench.steps):
        state, _ = compiled(state, loss, batch)
      jax.block_until_ready(state)
  # The compiler counts one device's share.
  operations = (compiled.cost_analysis() or {}).get("flops", 0.0) * mesh.size
  seconds = running()
  found = {"compile_seconds": compiling()}
  found |= log.throughput(
    seconds, config.bench.steps, options.batch_size, operations
  )
  found["tflop_per_step"] = operations / 1e12
  images = options.batch_size * config.bench.steps
  dollars = hardware.cost(seconds)
  if dollars is not None:
    found["dollars_per_million_images"] = dollars / images * 1e6
  return found


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


def measure_networks(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Forward and backward of networks, beside torch's on the same weights.

  Weights and inputs are random, in float32. Ours and theirs run in turn, in
  this process, on the same cores; figures are medians. Where ours is slower,
  the operations that take longest are named.

  Raises:
    ValueError: a network that cannot be measured, or torch is not installed.
  """
  options, available = config.bench, works(config)
  if options.compare not in ("", "torch"):
    raise ValueError(f"bench.compare={options.compare!r}; expected '' or torch")
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
  found: dict[str, Any] = in_turn(runs, repeats)
  found["gflop"] = flops.count(ours, *args) / 1e9
  found["gflop_per_second"] = found["gflop"] / found["seconds"]
  if theirs:
    found["speedup"] = found["torch_seconds"] / found["seconds"]
    if found["speedup"] < 1:
      slowest = profile.slowest(run, compiled.as_text())
      found["slowest"] = [f"{s:.3f} s {what}" for what, s in slowest]
  return found


class Writing(NamedTuple):
  """A captioner of a measurement, and what it is given.

  Attributes:
    recipe: of the captions.
    config: of the network.
    prompt: int32 [1 T], with places for an image.
    pixels: uint8 [B H W 3].
  """

  recipe: caption_recipe.Recipe
  config: Any
  prompt: np.ndarray
  pixels: np.ndarray


def writing(config: ml_collections.ConfigDict) -> Writing:
  """The captioner of `bench.caption`, with random images.

  No token ends a caption, so that all have as many.
  """
  options = config.bench.caption
  recipe = caption_recipe.Recipe(
    options.captioner,
    decoding=options.decoding,
    beams=options.beams,
    length=options.tokens,
    dtype=options.dtype,
  )
  network, prompt = caption_recipe.small(
    recipe.kind,
    width=options.width,
    vision_depth=options.vision_depth,
    text_depth=options.text_depth,
    size=options.size,
  )
  shape = (options.batch_size, options.size, options.size, 3)
  rng = np.random.default_rng(config.seed)
  return Writing(recipe, network, prompt, rng.integers(0, 256, shape, np.uint8))


def measure_captions(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Captions a second of a network, beside transformers' `generate`.

  From bytes of images to token ids on the host. Weights are random and the
  same, and both run in turn, as in `measure_networks`.
  """
  recipe, network, prompt, pixels = writing(config)
  structure, shapes = kinds.structure(recipe.kind, network, dtype=recipe.dtype)
  rng = np.random.default_rng(config.seed)
  params = jax.tree.map(
    lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes
  )
  log.announce(
    "bench",
    f"{recipe.kind}, {recipe.decoding}: {tree.count(shapes):,} weights",
  )
  runs = {}
  if config.bench.compare:
    runs["torch_seconds"] = caption_reference(
      recipe, network, params, prompt, pixels
    )
  params = jax.device_put(
    jax.tree.map(lambda leaf: leaf.astype(recipe.dtype), params)
  )
  write = image_captioner.writer(structure, network, prompt, recipe)
  args = (params, pixels, jax.random.key(0))
  with log.timed() as compiling:
    compiled = jax.jit(write).lower(*args).compile()
  run = lambda: np.asarray(compiled(*args))
  found = in_turn({"seconds": run, **runs}, config.bench.repeats)
  seconds, images = found["seconds"], len(pixels)
  found["compile_seconds"] = compiling()
  found["images_per_second"] = images / seconds
  found["tokens_per_second"] = images * recipe.length / seconds
  if runs:
    theirs = found["torch_seconds"]
    found["torch_images_per_second"] = images / theirs
    found["torch_tokens_per_second"] = images * recipe.length / theirs
    found["speedup"] = theirs / seconds
  slowest = profile.slowest(run, compiled.as_text())
  found["slowest"] = [f"{s:.3f} s {what}" for what, s in slowest]
  return {f"caption_{name}": value for name, value in found.items()}


def caption_reference(
  recipe: caption_recipe.Recipe,
  network: Any,
  params: Any,
  prompt: np.ndarray,
  pixels: np.ndarray,
) -> Callable[[], np.ndarray]:
  """The same captions by transformers."""
  places = getattr(network, "queries", 0)
  # Where ours needs none, theirs marks the places of the image.
  marks = np.full((1, places), network.image_token, prompt.dtype)
  image = clip_vision.normalise(jnp.asarray(pixels, jnp.float32) / 127.5 - 1)
  return reference.captioner(
    recipe.kind,
    network,
    params,
    np.asarray(image),
    np.concatenate([marks, prompt], axis=1),
    dtype=recipe.dtype,
    length=recipe.length,
    num_beams=recipe.beams if recipe.decoding == "beam" else 1,
    do_sample=recipe.decoding == "nucleus",
  )


def in_turn(
  runs: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
  """Median seconds of each of several functions, called in turn."""
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      started = time.perf_counter()
      run()
      # The first call of each is to warm up.
      if repeat:
        seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(values) for name, values in seconds.items()}


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
  seconds = in_turn(runs, options.repeats)
  return {
    f"matmul_{who}gflop_per_second": 2 * side**3 / value / 1e9
    for who, value in seconds.items()
  }
