# SPDX-License-Identifier: Apache-2.0
"""cc-jax train: the one train loop.

Read it from `main` down: mesh, task, data, optimiser, state, then steps. All
that is random follows from the config's seed and the step's number, so a run
that was stopped anywhere goes on as if it had not been.
"""

import collections
import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from cc_jax.core import checkpoint, files, log, sharding, versions
from cc_jax.data import bucket_index, grids, loader
from cc_jax.pipelines import preview
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks

# Metrics are read this many steps late, so that the device never waits.
LAG = 2


def main(config: ml_collections.ConfigDict, workdir: str) -> steps.State:
  """Trains what the config names until `config.train.steps`.

  Returns:
    The last state, on the devices.

  Raises:
    ValueError: something in the config, the data or the checkpoint that is
      there does not fit; nothing is written then.
    FloatingPointError: a metric is not a finite number; the checkpoints are
      from before.
    SystemExit: SIGTERM came; the step is saved, and the status is 0. What would
      follow, as an export, must wait until the same command has trained to the
      end.
  """
  options = config.train
  mesh = sharding.make_mesh(**options.mesh)
  steps.check(options, mesh)
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    # Frozen weights are read straight to their places on the mesh.
    task = tasks.make(config)
    source = tasks.source(task, options.folders, options.split)
    init, update = steps.make(config, task)
    draw = preview.make(config) if options.preview_every else None

    key = jax.random.key(config.seed)
    shapes = sharding.with_layouts(
      jax.eval_shape(init, key), mesh, config.train.spread
    )
    layouts = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    # In this order: resume, else import, else initialise.
    first, place = 0, None
    if checkpoint.steps(options.checkpoints):
      state, place = checkpoint.restore(options.checkpoints, shapes)
      first = int(state.step)
      origin = f"step {first} of {options.checkpoints}"
    else:
      state = jax.jit(init, out_shardings=layouts)(key)
      origin = f"random weights, seed {config.seed}"
      if options.init:
        loaded = tasks.load(task, options.init, state.params)
        places = {name: layouts.params[name] for name in loaded}
        params = {**state.params, **jax.device_put(loaded, places)}
        # A copy, since both are donated.
        ema = jax.tree.map(jnp.copy, params)
        state = state._replace(params=params, ema=ema)
        origin = f"the weights of {options.init}"
    loss = jax.device_put(task.loss, sharding.layouts(task.loss, mesh))
    batches = loader.batches(
      source,
      batch_size=options.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      buckets=bucket_index.load(source) if task.bucketed else None,
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
    rows = next(batches)
    started, queue = time.perf_counter(), collections.deque()
    batch = sharding.put_batch(rows, mesh)
    if options.program:
      compiled = steps.load_update(config, mesh, update, state, loss, batch)
    else:
      compiled = steps.compile_update(update, state, loss, batch)
    describe(compiled, time.perf_counter() - started)
    # One for each aspect bucket, when its first batch comes.
    programs = {shapes_of(batch): compiled}

    # Nothing is written until all that can be refused has been.
    versions.record(workdir, "train", config)
    checkpoints = checkpoint.manager(
      options.checkpoints,
      keep=options.keep,
      every=options.keep_every,
      after=first,
    )
    stack.callback(checkpoint.close, checkpoints)
    writers = log.open_writers(workdir, step=first)
    stack.callback(log.close_writers, writers)
    started = time.perf_counter()
    advance = stack.enter_context(
      log.progress(options.steps, "train", "steps", start=first)
    )
    for step in range(first + 1, options.steps + 1):
      batch = sharding.put_batch(rows, mesh)
      shape = shapes_of(batch)
      if shape not in programs:
        programs[shape] = steps.compile_update(update, state, loss, batch)
      state, metrics = programs[shape](state, loss, batch)
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
  if step < options.steps:
    log.announce(
      "train", f"SIGTERM: step {step:,} is saved; the same command goes on"
    )
    raise SystemExit(0)
  return state


def shapes_of(batch: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
  """What a program is compiled for."""
  return tuple(batch[name].shape for name in sorted(batch))


def describe(compiled: Any, seconds: float) -> None:
  """Says what a compiled step will take, before the first one is run."""
  memory = compiled.memory_analysis()
  gib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
  flops = (compiled.cost_analysis() or {}).get("flops", 0)
  log.announce(
    "train",
    f"compiled in {seconds:.1f} s: {gib:.2f} GiB and "
    f"{flops / 1e9:,.1f} GFLOP a step and device",
  )


def show(writers: Any, workdir: str, step: int, grid: Any) -> None:
  """A preview to TensorBoard and to workdir/previews."""
  if writers.path is not None:
    name = f"{workdir}/previews/{step:07d}.png"
    files.write_atomic(name, grids.encode_png(grid))
    log.write_images(writers, step, "preview", grid[None])
