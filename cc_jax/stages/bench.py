# SPDX-License-Identifier: Apache-2.0
"""cc-jax bench: speed of the loader, the train step and networks here."""

from collections.abc import Callable, Iterator
import itertools
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cc_jax.core import (
  checkpoint,
  files,
  flops,
  hardware,
  log,
  sharding,
  timing,
  versions,
)
from cc_jax.data import loader, loader_speed
from cc_jax.models import unread
from cc_jax.pipelines import (
  ablation,
  batch_shapes,
  caption_speed,
  network_speed,
  prior_bench,
  reference_training,
)
from cc_jax.tasks import denoiser
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks


def main(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes `config.bench.result` and returns what is in it.

  Raises:
    ValueError: the train step is to be measured, and its data, task or batch
      does not fit; or a comparison, and what to compare with is not there.
  """
  options = config.bench
  if options.compare not in ("", "torch"):
    raise ValueError(f"bench.compare={options.compare!r}; expected '' or torch")
  if config.ablate and not options.steps:
    raise ValueError("ablate measures train steps; set bench.steps, not 0")
  found: dict[str, Any] = {"device": jax.devices()[0].device_kind}
  found["devices"] = jax.device_count()
  if options.loader_seconds:
    found |= measure_loader(options.loader_seconds, options.loader_rate)
  if options.steps:
    found |= ablate(config, found) if config.ablate else measure_step(config)
  if options.networks:
    found |= network_speed.measure(config)
  if options.caption.captioner:
    found |= caption_speed.measure(config)
  if options.prior.batch_size:
    found |= prior_bench.measure(options)
  versions.record(workdir, "bench", config)
  if log.is_first():
    files.write_json(options.result, found)
  for name, value in found.items():
    if isinstance(value, float):
      value = f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    if name == "ablation":
      lines = ablation.lines(value)
    else:
      values = value if isinstance(value, list) else [value]
      lines = [f"{name} = {one}" for one in values]
    for line in lines:
      log.announce("bench", line)
  log.announce("bench", f"{len(found)} figures -> {options.result}")
  return found


def measure_loader(seconds: float, rate: float) -> dict[str, float]:
  """The loader on made-up SD2-256 records: see `loader_speed.measure`."""
  log.announce("bench", f"loader: SD2-256 records for {seconds:g} s")
  speed = loader_speed.measure(seconds=seconds, rate=rate)
  found = {
    "loader_records_per_cpu_second": speed.per_cpu_second,
    "loader_records_per_wall_second": speed.per_wall_second,
  }
  if rate:
    found["loader_stall"] = speed.stall
  return found


class Trained(NamedTuple):
  """A train step that is to be measured.

  Attributes:
    what: it is, for people.
    task: of it.
    batches: of the host, again and again.
    close: of what they are read from.
  """

  what: str
  task: tasks.Task
  batches: Iterator[dict[str, Any]]
  close: Callable[[], None]


def trained(config: ml_collections.ConfigDict) -> Trained:
  """The config's task on its data; its U-Net alone where that is not.

  And where torch is to do the same.

  Raises:
    ValueError: data, task or U-Net cannot be.
  """
  options = config.train
  folders = [f"{folder}/features.json" for folder in options.folders]
  there = any(files.path(one).exists() for one in folders)
  if there and not config.bench.compare:
    task = tasks.make(config)
    batches = loader.batches(
      tasks.source(task, options.folders, options.split),
      batch_size=options.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      transform=task.transform,
    )
    return Trained(options.task, task, batches, batches.close)
  rows = options.batch_size // jax.process_count()
  return Trained(
    "the U-Net alone, on made-up latents and text states",
    denoiser.make(config),
    itertools.repeat(denoiser.batch(config, rows)),
    lambda: None,
  )


def measure_step(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The train step by itself, then in a loop with its data, then with a save.

  One batch again and again gives the step's seconds, the median of
  `bench.steps`, in turn with torch's if asked. In the loop batches come from
  the loader: `input_stall` is the share of its time that it waited for them.
  `saving_stall` is that of a checkpoint every `train.checkpoint_every` steps,
  at most: as if nothing of its writing were beside the steps.
  """
  options, count = config.train, config.bench.steps
  mesh = sharding.make_mesh(**options.mesh)
  steps.check(options, mesh)
  with jax.set_mesh(mesh):
    given = trained(config)
    rows = next(given.batches)
    made = compile_step(config, mesh, given.task, given.task.loss, rows)
    compiled, state, loss, batch = made[:4]
    log.announce("bench", f"train step: {given.what}")
    theirs = {}
    if config.bench.compare:
      step = torch_step(config, given.task, state.params, rows)
      theirs["torch_step_seconds"] = step

    def ours():
      nonlocal state
      state, _ = compiled(state, loss, batch)
      jax.block_until_ready(state)

    seconds = timing.in_turn({"step_seconds": ours, **theirs}, count)
    waited, started = 0.0, time.perf_counter()
    for _ in range(count):
      state, _ = compiled(state, loss, batch)
      asked = time.perf_counter()
      rows = next(given.batches)
      waited += time.perf_counter() - asked
      batch = sharding.put_batch(rows, mesh)
    jax.block_until_ready(state)
    looping = time.perf_counter() - started
    saving = saving_seconds(ours, lambda: state, config.bench.repeats)
    given.close()
  return figures(
    config,
    made.operations,
    seconds,
    memory_gib(compiled),
    {
      "compile_seconds": made.seconds,
      "input_stall": waited / looping,
      "saving_seconds": saving,
      "saving_stall": saving
      / (saving + options.checkpoint_every * seconds["step_seconds"]),
    },
  )


class Compiled(NamedTuple):
  """A train step, ready to be run, and what compiling it has told."""

  program: Any
  state: steps.State
  loss: Any
  batch: Any
  operations: int
  seconds: float


def compile_step(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  task: tasks.Task,
  loss: Any,
  rows: dict[str, Any],
) -> Compiled:
  """The step of a task with all that it needs on the devices of the mesh.

  Args:
    config: of the run.
    mesh: which is set.
    task: that is trained.
    loss: its loss, with frozen weights.
    rows: of a batch, those of this host.
  """
  init, update = steps.make(config, task)
  key = jax.random.key(config.seed)
  shapes = sharding.with_layouts(
    jax.eval_shape(init, key), mesh, config.train.spread
  )
  layouts = jax.tree.map(lambda leaf: leaf.sharding, shapes)
  state = jax.jit(init, out_shardings=layouts)(key)
  loss = jax.device_put(loss, sharding.layouts(loss, mesh))
  batch = sharding.put_batch(rows, mesh)
  with log.timed() as compiling:
    program = steps.compile_update(update, state, loss, batch)
  operations = flops.count(update, state, loss, batch)
  return Compiled(program, state, loss, batch, operations, compiling())


def ablate(
  config: ml_collections.ConfigDict, about: dict[str, Any]
) -> dict[str, Any]:
  """The train step with each change of `config.ablation`, one on the other.

  The whole step of the task, with its frozen networks, on made-up arrays and
  random weights; see `ablation.run`.
  """
  if config.bench.compare:
    raise ValueError("ablate measures ours alone; set bench.compare=''")
  names = ("device", "devices")
  about = {name: about[name] for name in names}
  rows = ablation.run(config, measure_whole, config.bench.result, about)
  return {"ablation": rows}


def measure_whole(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """A task's step by itself; without times where memory is too small for it."""
  options, count = config.train, config.bench.steps
  mesh = sharding.make_mesh(**options.mesh)
  steps.check(options, mesh)
  with jax.set_mesh(mesh):
    with unread.weights():
      task = tasks.make(config)
      shapes = batch_shapes.of(config, task.features, task.transform)
    rng = np.random.default_rng(config.seed)
    fill = lambda leaf: made_up(leaf, rng)
    here = options.batch_size // jax.process_count()
    rows = {
      name: fill(leaf.update(shape=(here, *leaf.shape[1:])))
      for name, leaf in shapes.items()
    }
    try:
      made = compile_step(
        config, mesh, task, jax.tree.map(fill, task.loss), rows
      )
      state = made.state

      def step():
        nonlocal state
        state, _ = made.program(state, made.loss, made.batch)
        jax.block_until_ready(state)

      made = made._replace(state=None)
      seconds = timing.in_turn({"step_seconds": step}, count)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      return {"fits": False}
  found = figures(
    config,
    made.operations,
    seconds,
    memory_gib(made.program),
    {"compile_seconds": made.seconds},
  )
  rate = found["images_per_second"] / jax.device_count()
  return {**found, "images_per_s_per_chip": rate}


def made_up(leaf: Any, rng: np.random.Generator) -> np.ndarray:
  """An array where only a shape is; of whole numbers and masks, ones."""
  if not isinstance(leaf, jax.ShapeDtypeStruct):
    return np.asarray(leaf)
  if leaf.dtype == np.uint8:
    return rng.integers(0, 256, leaf.shape, np.uint8)
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return np.ones(leaf.shape, leaf.dtype)
  values = rng.standard_normal(leaf.shape, np.float32) / 50
  return values.astype(leaf.dtype)


def torch_step(
  config: ml_collections.ConfigDict, task: tasks.Task, params: Any, rows: Any
) -> Callable[[], float]:
  """The same step in torch, from the same weights."""
  _, network = task.parts["unet"]
  return reference_training.unet_step(
    network,
    jax.device_get(params["unet"]),
    rows,
    config.train,
    channels_last=config.bench.channels_last,
    compiled=config.bench.torch_compile,
  )


def saving_seconds(
  step: Callable[[], None], state: Callable[[], Any], repeats: int
) -> float:
  """What a checkpoint adds to steps that go on while it is written."""
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = checkpoint.manager(f"{folder}/checkpoints", keep=1)
    added = []
    for repeat in range(repeats + 1):
      started = time.perf_counter()
      step()
      alone = time.perf_counter()
      checkpoint.save(checkpoints, repeat, state(), {}, {})
      step()
      checkpoint.wait(checkpoints)
      both = time.perf_counter() - alone
      # The first one makes folders and threads.
      if repeat:
        added.append(max(both - (alone - started), 0.0))
    checkpoint.close(checkpoints)
  return statistics.median(added)


def memory_gib(compiled: Any) -> float:
  """What a program and its arguments take of each device."""
  memory = compiled.memory_analysis()
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return (
    memory.argument_size_in_bytes + memory.temp_size_in_bytes + new
  ) / hardware.GIB


def figures(
  config: ml_collections.ConfigDict,
  operations: int,
  seconds: dict[str, float],
  gib: float,
  more: dict[str, float],
) -> dict[str, Any]:
  """What the measured times come to."""
  ours, batch_size = seconds["step_seconds"], config.train.batch_size
  found = log.throughput(ours, 1, batch_size, operations)
  found |= {"tflop_per_step": operations / 1e12, "gib_per_device": gib, **more}
  if "mfu" not in found:
    # No peak is known, so that a product of matrices is what can be had.
    found |= network_speed.measure_matmul(config.bench)
    rate = found["matmul_gflop_per_second"] * 1e9
    found["share_of_matmul"] = operations / ours / rate
  if theirs := seconds.get("torch_step_seconds"):
    found["torch_step_seconds"] = theirs
    found["torch_images_per_second"] = batch_size / theirs
    found["speedup"] = theirs / ours
  dollars = hardware.cost(ours)
  if dollars is not None:
    found["dollars_per_million_images"] = dollars / batch_size * 1e6
  return found
