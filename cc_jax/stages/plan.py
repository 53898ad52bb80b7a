# SPDX-License-Identifier: Apache-2.0
"""cc-jax plan: what a run will take, on a TPU slice that is not there.

  cc-jax plan --config=configs/sd2.py:256 --config.slice=v4-128 --workdir=DIR

The train step itself is compiled for the slice, with the shapes of all arrays
and the values of none: no weights, no data and no TPU are needed, but libtpu,
which has the compiler. What it says of memory is exact, what it says of time is
its own estimate (core/hlo_cost.py).
"""

import time
from typing import Any

import jax
import ml_collections

from cc_jax.core import (
  estimate,
  files,
  flops,
  hardware,
  hlo_cost,
  log,
  planned,
  programs,
  schedules,
  sharding,
  tree,
  versions,
)
from cc_jax.models import unread
from cc_jax.pipelines import ablation, batch_shapes, caption_plan, plan_lines
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks


def main(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes `config.plan.result` and returns what is in it.

  Raises:
    ValueError: no such slice, no libtpu, or a config that cannot be trained.
  """
  target = hardware.target(config.slice)
  devices = hardware.aot_devices(target.slice, target.count)
  if config.plan.of not in ("train", "caption"):
    raise ValueError(f"plan.of={config.plan.of!r}; expected train or caption")
  if config.plan.of == "caption":
    found = caption_plan.plan(config, target, devices)
    return finish(config, workdir, found, plan_lines.of_captions(found))
  if config.ablate:
    found = ablate(config, target, devices)
    return finish(config, workdir, found, ablation.lines(found["ablation"]))
  mesh = sharding.make_mesh(**config.train.mesh, devices=devices)
  log.announce(
    "plan",
    f"{config.train.task} on {target.name}: {target.chips} chips, mesh "
    + ", ".join(f"{name}={size}" for name, size in mesh.shape.items()),
  )
  if config.search:
    found = search(config, target, mesh)
  else:
    found = plan(config, target, mesh)
  return finish(config, workdir, found, plan_lines.of_step(found))


def ablate(
  config: ml_collections.ConfigDict,
  target: hardware.Target,
  devices: list[Any],
) -> dict[str, Any]:
  """Plans of the steps of `config.ablation`: see `ablation.run`."""

  def measure(tried: ml_collections.ConfigDict) -> dict[str, Any]:
    mesh = sharding.make_mesh(**tried.train.mesh, devices=devices)
    return plan(tried, target, mesh)

  about = {"config": config.name, "slice": target.name}
  rows = ablation.run(config, measure, config.plan.result, about)
  return {**about, "ablation": rows}


def finish(
  config: ml_collections.ConfigDict,
  workdir: str,
  found: dict[str, Any],
  lines: list[str],
) -> dict[str, Any]:
  """Writes a plan and says what is in it."""
  versions.record(workdir, "plan", config)
  files.write_json(config.plan.result, found)
  for line in lines:
    log.announce("plan", line)
  log.announce("plan", f"-> {config.plan.result}")
  return found


def plan(
  config: ml_collections.ConfigDict,
  target: hardware.Target,
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """A plan of one config; without times where the step does not fit."""
  made = compile_step(config, mesh, target.slice.hardware.name)
  found = describe(config, target, made)
  if not found["fits"]:
    return found
  if config.plan.text:
    files.write_atomic(config.plan.text, made.program.as_text())
  if config.plan.program:
    programs.save(
      config.plan.program,
      made.lowered,
      made.program,
      mesh,
      steps.decides(config),
    )
  return found


def compile_step(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, chip: str
) -> planned.Compiled:
  """The train step of a config, compiled for devices that need not be there.

  Args:
    config: of the run.
    mesh: of devices, as `hardware.aot_devices` has them.
    chip: that they are, as `estimate.compile` takes it.

  Raises:
    ValueError: a config that cannot be trained.
  """
  steps.check(config.train, mesh)
  started = time.perf_counter()
  with jax.set_mesh(mesh):
    update, state, loss, batch = abstract(config)
    state = sharding.with_layouts(state, mesh, config.train.spread)
    loss = sharding.with_layouts(loss, mesh)
    layout = sharding.batch_layout(mesh)
    batch = jax.tree.map(lambda leaf: leaf.update(sharding=layout), batch)
    traced = steps.trace_update(update, state, loss, batch)
    lowered = traced.lower()
    log.announce("plan", "compiling, which may take some minutes")
    program = estimate.compile(lowered, chip)
  jaxpr = traced.jaxpr.jaxpr
  return planned.Compiled(
    program,
    lowered,
    mesh,
    {
      "weights": state.params,
      "moments": state.opt,
      "ema": state.ema,
      "frozen": loss,
      "batch": batch,
    },
    flops.of_jaxpr(jaxpr),
    jaxpr,
    time.perf_counter() - started,
  )


def abstract(config: ml_collections.ConfigDict) -> tuple[Any, Any, Any, Any]:
  """A config's update, and the shapes of state, loss and batch."""
  with unread.weights():
    task = tasks.make(config)
    init, update = steps.make(config, task)
    # A key would be an array, and there are no devices to hold one.
    state = jax.eval_shape(lambda: init(jax.random.key(config.seed)))
    batch = batch_shapes.of(config, task.features, task.transform)
    return update, state, task.loss, batch


def operations(config: ml_collections.ConfigDict) -> dict[str, int]:
  """What a step has to compute, by the outermost scope of the model.

  Nothing twice: without `remat`, and with attention that keeps its products,
  as it is on no device in particular. Of these utilisation is a share.
  """
  plain = with_fields(config, remat="none")
  update, state, loss, batch = abstract(plain)
  return flops.by_scope(jax.make_jaxpr(update)(state, loss, batch).jaxpr)


def with_fields(
  config: ml_collections.ConfigDict, **fields: Any
) -> ml_collections.ConfigDict:
  """A copy of a config with other fields of `config.train`."""
  made = config.copy_and_resolve_references()
  with made.unlocked():
    made.train.update(fields)
  return made


def describe(
  config: ml_collections.ConfigDict,
  target: hardware.Target,
  made: planned.Compiled,
) -> dict[str, Any]:
  """All figures of a plan."""
  options = config.train
  scopes = operations(config)
  total = sum(scopes.values())
  frozen = {name: scopes[name] for name in ("text", "vae") if name in scopes}
  found: dict[str, Any] = {
    "config": config.name,
    "slice": target.name,
    "chips": target.chips,
    "mesh": {name: int(size) for name, size in made.mesh.shape.items()},
    "batch_size": options.batch_size,
    "images_per_chip": options.batch_size / target.chips,
    "parameters": tree.count(made.parts["weights"]),
    "compile_seconds": made.seconds,
    "flops": total,
    # What is computed a second time counts for nothing in `mfu`.
    "flops_parts": {
      "text": 0,
      **frozen,
      "trained": total - sum(frozen.values()),
      "again": made.operations - total,
    },
    "tflop_per_image": total / options.batch_size / 1e12,
  }
  found |= planned.memory(target, made)
  if not found["fits"]:
    needed, usable = made.program
    return found | {"try": remedies(config, made, needed, usable)}
  cost = hlo_cost.cost(
    made.program.as_text(),
    devices=made.mesh.size,
    kernels=schedules.of(made.jaxpr, target.slice),
  )
  return (
    found | times(config, target, cost, total) | planned.traffic(made, cost)
  )


def remedies(
  config: ml_collections.ConfigDict,
  made: planned.Compiled,
  needed: float,
  usable: float,
) -> list[str]:
  """What would make a step fit."""
  options, ways = config.train, sharding.batch_ways(made.mesh)
  state = sum(estimate.on_device(tree) for tree in made.parts.values())
  advice = [
    f"train.remat={name}"
    for name in {
      "none": ("dots", "full"),
      "dots": ("full",),
      "attention": ("full",),
    }.get(options.remat, ())
  ]
  if state > usable / 2 and made.mesh.shape["fsdp"] < ways:
    advice.append(f"train.mesh.fsdp={2 * made.mesh.shape['fsdp']}")
  each = options.batch_size // ways
  fewer = int(each * (usable - state) / max(needed - state, 1))
  if 0 < fewer < each:
    advice.append(f"train.batch_size={fewer * ways}")
  if each > options.accumulate:
    advice.append(f"train.accumulate={2 * options.accumulate}")
  return advice


def times(
  config: ml_collections.ConfigDict,
  target: hardware.Target,
  cost: hlo_cost.Cost,
  total: int,
) -> dict[str, Any]:
  """Cycles, seconds, use of the peak, and what the whole recipe takes."""
  chip, options = target.slice.hardware, config.train
  parts = estimate.seconds(cost, target)
  step = sum(parts.values())
  price = config.plan.price or chip.price
  hours = options.steps * step / 3600
  kernels = parts["kernels"] * chip.clock
  return {
    "cycles": int(sum(cost.cycles.values()) + kernels),
    "cycles_parts": {**cost.cycles, "kernels": int(kernels)},
    "cycles_scopes": cost.scopes,
    "step_s": step,
    "step_s_parts": parts,
    "mfu": total / step / (chip.flops * target.chips),
    "images_per_s_per_chip": options.batch_size / step / target.chips,
    "steps": options.steps,
    "images": options.steps * options.batch_size,
    "days": hours / 24,
    "dollars": hours * target.chips * price if price else None,
    "dollars_parts": {"chip_hours": hours * target.chips, "an_hour": price},
    "energy": planned.power(config.plan, target, hours),
    "published": planned.published(config.plan, target, hours),
    "assumptions": planned.assumptions(config.plan, target),
  }


def search(
  config: ml_collections.ConfigDict,
  target: hardware.Target,
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """The plan of the largest batch that fits."""
  ways = sharding.batch_ways(mesh) * config.train.accumulate
  usable = target.slice.hardware.usable or target.slice.hardware.hbm
  found: dict[int, dict[str, Any]] = {}

  def fits(each: int) -> float:
    tried = with_fields(config, batch_size=each * ways)
    found[each] = plan(tried, target, mesh)
    needed, fit = found[each]["hbm_gib"], found[each]["fits"]
    log.announce(
      "plan",
      f"batch {each * ways}: {needed:.2f} GiB, "
      + ("fits" if fit else "does not fit"),
    )
    # The compiler's word counts, where the two differ.
    return (
      needed * planned.GIB if fit else max(needed * planned.GIB, usable + 1)
    )

  first = max(config.train.batch_size // ways, 1)
  with jax.set_mesh(mesh):
    _, state, loss, _ = abstract(config)
  fixed = estimate.on_device(
    (
      sharding.with_layouts(state, mesh, config.train.spread),
      sharding.with_layouts(loss, mesh),
    )
  )
  # Each that fits is larger than those before, so that the last one is saved.
  best, tries = estimate.largest(fits, first, usable, fixed)
  tried = [
    {"batch_size": n * ways, "hbm_gib": b / planned.GIB} for n, b in tries
  ]
  chosen = found[best] if best else found[min(found)]
  return {**chosen, "search": tried}
