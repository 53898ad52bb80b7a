# SPDX-License-Identifier: Apache-2.0
"""cc-jax train: the one train loop.

Read it from `main` down: mesh, task, data, optimiser, state, then steps. All
that is random follows from the config's seed and the step's number, so a run
that was stopped anywhere goes on as if it had not been.
"""

import collections
from collections.abc import Callable, Sequence
import contextlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from cc_jax.core import checkpoint, files, log, optim, sharding, versions
from cc_jax.data import aligned, images, loader, shards
from cc_jax.models import hub
from cc_jax.pipelines import preview
from cc_jax.tasks import task as tasks

# Metrics are read this many steps late, so that the device never waits.
LAG = 2

# Of a diffusers pipeline.
FOLDERS = {"unet": "unet", "text": "text_encoder", "vae": "vae"}


class State(NamedTuple):
  """All that training changes.

  Attributes:
    step: updates made, int32.
    params: weights, float32.
    ema: their exponential moving average.
    opt: the optimiser's state.
  """

  step: Any
  params: Any
  ema: Any
  opt: Any


def main(config: ml_collections.ConfigDict, workdir: str) -> State:
  """Trains what the config names until `config.train.steps`.

  Returns:
    The last state, on the devices.

  Raises:
    ValueError: something in the config, the data or the checkpoint that is
      there does not fit; nothing is written then.
    FloatingPointError: the loss is not a finite number; the checkpoints are
      from before.
  """
  options = config.train
  mesh = sharding.make_mesh(**options.mesh)
  check_batch(options, mesh)
  task = tasks.make(config)
  datasets = [shards.open(folder) for folder in options.folders]
  check_weights(datasets, task.weights)
  source = aligned.source(datasets, options.split, task.features)
  rate = optim.schedule(
    options.schedule, options.lr, options.warmup, options.steps
  )
  optimizer = optim.optimizer(
    rate,
    b1=options.b1,
    b2=options.b2,
    eps=options.eps,
    weight_decay=options.weight_decay,
    decay=options.decay,
    clip=options.clip or None,
  )
  init, update = make_step(config, task, optimizer, rate)

  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    key = jax.random.key(config.seed)
    shapes = sharding.with_layouts(jax.eval_shape(init, key), mesh)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    # In this order: resume, else import, else initialise.
    first = checkpoint.latest_step(options.checkpoints) or 0
    place = None
    if first:
      state, place = checkpoint.restore(options.checkpoints, shapes)
      origin = f"step {first} of {options.checkpoints}"
    else:
      state = jax.jit(init, out_shardings=layouts)(key)
      origin = f"random weights, seed {config.seed}"
      if options.init:
        state = import_weights(state, options.init, task.parts, layouts)
        origin = f"the weights of {options.init}"
    loss = jax.device_put(task.loss, sharding.layouts(task.loss, mesh))
    batches = loader.batches(
      source,
      batch_size=options.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      transform=task.transform,
      place=place,
    )
    stack.callback(batches.close)
    log.announce(
      "train",
      f"{options.task} from {origin}, to step {options.steps:,}, batches of "
      f"{options.batch_size:,} of {len(source):,} records",
    )
    if first >= options.steps:
      log.summary("train", {"steps done before": first})
      return state
    versions.record(workdir, "train", config)
    checkpoints = checkpoint.manager(options.checkpoints, keep=options.keep)
    stack.callback(checkpoint.close, checkpoints)
    writers = log.open_writers(workdir, step=first)
    stack.callback(log.close_writers, writers)
    draw = preview.make(config) if options.preview_every else None

    rows = next(batches)
    compiled = ahead(update, state, loss, sharding.put_batch(rows, mesh))
    started, queue = time.perf_counter(), collections.deque()
    advance = stack.enter_context(
      log.progress(options.steps, "train", "steps", start=first)
    )
    for step in range(first + 1, options.steps + 1):
      state, metrics = compiled(state, loss, sharding.put_batch(rows, mesh))
      stop = checkpoint.preempted(checkpoints, step)
      last = stop or step == options.steps
      saves = last or step % options.checkpoint_every == 0
      # Before a checkpoint all metrics are read, so that it is of a state
      # that was fine.
      for ready, values in log.defer(queue, step, metrics, 0 if saves else LAG):
        log.check_finite(ready, values)
        advance(1, loss=values["loss"])
        if ready % options.log_every == 0:
          elapsed = time.perf_counter() - started
          speed = (ready - first) * options.batch_size / elapsed
          log.write(writers, ready, {**values, "images_per_second": speed})
      if saves:
        checkpoint.save(checkpoints, step, state, batches.place(), {})
      if draw and (last or step % options.preview_every == 0):
        grid = draw(state.ema, rows)
        show(writers, workdir, step, grid)
      if last:
        break
      rows = next(batches)
    seconds = time.perf_counter() - started
    log.summary(
      "train",
      {"steps": step - first, "done before": first},
      seconds,
      options.checkpoints,
    )
    return state


def make_step(
  config: ml_collections.ConfigDict,
  task: tasks.Task,
  optimizer: optax.GradientTransformation,
  rate: Callable[[Any], Any],
) -> tuple[Callable[..., State], Callable[..., tuple[State, Any]]]:
  """`init(key) -> state` and `update(state, loss, batch) -> state, metrics`."""
  options = config.train

  def init(key):
    params = task.init(key)
    # A copy, since a donated buffer may stand in a state only once.
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.int32(0), params, ema, optimizer.init(params))

  def update(state, loss, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    gradient = optim.value_and_grad(loss, options.accumulate)
    (value, metrics), grads = gradient(state.params, batch, key)
    with jax.named_scope("optimizer"):
      changes, opt = optimizer.update(grads, state.opt, state.params)
      params = optax.apply_updates(state.params, changes)
      ema = optim.ema_update(
        state.ema,
        params,
        state.step + 1,
        decay=options.ema_decay,
        start=options.ema_start,
        warmup=options.ema_warmup,
      )
    metrics = {
      "loss": value,
      **metrics,
      "grad_norm": optax.global_norm(grads),
      "lr": rate(state.step),
    }
    return State(state.step + 1, params, ema, opt), metrics

  return init, update


def ahead(update: Callable, state: State, loss: Any, batch: Any) -> Callable:
  """Compiles the step before the first one, and says what it will take."""
  started = time.perf_counter()
  layouts = jax.tree.map(lambda leaf: leaf.sharding, state)
  compiled = (
    jax.jit(update, donate_argnums=0, out_shardings=(layouts, None))
    .lower(state, loss, batch)
    .compile()
  )
  memory = compiled.memory_analysis()
  gib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
  flops = (compiled.cost_analysis() or {}).get("flops", 0)
  log.announce(
    "train",
    f"compiled in {time.perf_counter() - started:.1f} s: {gib:.2f} GiB and "
    f"{flops / 1e9:,.1f} GFLOP a step and device",
  )
  return compiled


def check_batch(options: Any, mesh: jax.sharding.Mesh) -> None:
  """Refuses a batch that does not divide over devices and micro-batches."""
  ways = sharding.batch_ways(mesh)
  if options.batch_size % ways:
    raise ValueError(
      f"batch_size={options.batch_size} does not divide over {ways} devices"
    )
  if options.batch_size % (ways * options.accumulate):
    raise ValueError(
      f"batch_size={options.batch_size} does not divide over {ways} devices "
      f"times accumulate={options.accumulate}"
    )


def check_weights(
  datasets: Sequence[shards.Dataset], weights: dict[str, str]
) -> None:
  """Refuses features that were made by other weights than the config names."""
  for dataset in datasets:
    names = {field.name for field in dataset.fields}
    shards.expect(
      dataset, {name: h for name, h in weights.items() if name in names}
    )


def import_weights(
  state: State, folder: str, parts: dict[str, Any], layouts: State
) -> State:
  """The state with weights from an exported folder; moments stay at zero."""
  params = {}
  for name, (kind, part_config) in parts.items():
    # A pipeline has a folder for each network; that of one network is it.
    inside = f"{folder}/{FOLDERS[name]}"
    where = inside if files.listing(inside) else folder
    params[name] = hub.load(where, kind, expect=part_config).params
  params = jax.device_put(params, layouts.params)
  return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))


def show(writers: Any, workdir: str, step: int, grid: Any) -> None:
  """A preview to TensorBoard and to workdir/previews."""
  if writers.path is not None:
    name = f"{workdir}/previews/{step:07d}.png"
    files.write_atomic(name, images.encode_png(grid))
    log.write_images(writers, step, "preview", grid[None])
