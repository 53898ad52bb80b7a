# SPDX-License-Identifier: Apache-2.0
"""cc-jax bench: speed of the loader and of the train step on this machine."""

from typing import Any

import jax
import ml_collections

from cc_jax.core import files, hardware, log, sharding, versions
from cc_jax.data import loader
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks


def main(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes `config.bench.result` and returns what is in it.

  Raises:
    ValueError: the train step is to be measured, and its data, task or batch
      does not fit.
  """
  options = config.bench
  found: dict[str, Any] = {"device": jax.devices()[0].device_kind}
  found["devices"] = jax.device_count()
  if options.loader_seconds:
    found |= measure_loader(options.loader_seconds)
  if options.steps:
    found |= measure_step(config)
  versions.record(workdir, "bench", config)
  if log.is_first():
    files.write_json(options.result, found)
  for name, value in found.items():
    if isinstance(value, float):
      value = f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    log.announce("bench", f"{name} = {value}")
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
  flops = (compiled.cost_analysis() or {}).get("flops", 0.0) * mesh.size
  seconds = running()
  found = {"compile_seconds": compiling()}
  found |= log.throughput(
    seconds, config.bench.steps, options.batch_size, flops
  )
  found["tflop_per_step"] = flops / 1e12
  images = options.batch_size * config.bench.steps
  dollars = hardware.cost(seconds)
  if dollars is not None:
    found["dollars_per_million_images"] = dollars / images * 1e6
  return found
