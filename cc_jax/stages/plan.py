# SPDX-License-Identifier: Apache-2.0
"""cc-jax plan: what a run will take, on a TPU slice that is not there.

  cc-jax plan --config=configs/sd2.py:256 --config.slice=v4-128 --workdir=DIR

The train step itself is compiled for the slice, with the shapes of all arrays
and the values of none: no weights, no data and no TPU are needed, but libtpu,
which has the compiler. What it says of memory is exact, what it says of time is
its own estimate (core/hlo_cost.py).
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from cc_jax.core import (
  estimate,
  files,
  flops,
  hardware,
  hlo_cost,
  log,
  programs,
  sharding,
  tree,
  versions,
)
from cc_jax.data import frames, records, shards
from cc_jax.models import hub, unread
from cc_jax.pipelines import encoder
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks

GIB = 2**30
SLOWEST = 10  # Operations that are named.


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program and what it was made of.

  Attributes:
    program: compiled, or how much memory it would need.
    lowered: what was compiled.
    mesh: it was compiled for.
    parts: shapes with layouts of its arguments, by what they hold.
    operations: of a run over all devices, as it is compiled: with what is
      computed a second time.
    kernels: see `flops.kernels`.
    seconds: that compiling took.
  """

  program: Any
  lowered: Any
  mesh: jax.sharding.Mesh
  parts: dict[str, Any]
  operations: int
  kernels: dict[flops.Kernel, int]
  seconds: float


def main(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes `config.plan.result` and returns what is in it.

  Raises:
    ValueError: no such slice, no libtpu, or a config that cannot be trained.
  """
  target = hardware.target(config.slice)
  devices = hardware.aot_devices(target.slice, target.count)
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
  versions.record(workdir, "plan", config)
  files.write_json(config.plan.result, found)
  for line in lines(found):
    log.announce("plan", line)
  log.announce("plan", f"{config.plan.result}")
  return found


def plan(
  config: ml_collections.ConfigDict,
  target: hardware.Target,
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """A plan of one config; without times where the step does not fit."""
  made = compile_step(config, mesh)
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
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> Compiled:
  """The train step of a config, compiled for devices that need not be there.

  Raises:
    ValueError: a config that cannot be trained.
  """
  steps.check(config.train, mesh)
  started = time.perf_counter()
  with jax.set_mesh(mesh):
    update, state, loss, batch = abstract(config)
    state, loss = (sharding.with_layouts(x, mesh) for x in (state, loss))
    layout = sharding.batch_layout(mesh)
    batch = jax.tree.map(lambda leaf: leaf.update(sharding=layout), batch)
    traced = steps.trace_update(update, state, loss, batch)
    lowered = traced.lower()
    log.announce("plan", "compiling, which may take some minutes")
    program = estimate.compile(lowered)
  jaxpr = traced.jaxpr.jaxpr
  return Compiled(
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
    flops.kernels(jaxpr),
    time.perf_counter() - started,
  )


def abstract(config: ml_collections.ConfigDict) -> tuple[Any, Any, Any, Any]:
  """A config's update, and the shapes of state, loss and batch."""
  with unread.weights():
    task = tasks.make(config)
    init, update = steps.make(config, task)
    # A key would be an array, and there are no devices to hold one.
    state = jax.eval_shape(lambda: init(jax.random.key(config.seed)))
    return update, state, task.loss, batch_shapes(config, task)


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


def batch_shapes(
  config: ml_collections.ConfigDict, task: tasks.Task
) -> dict[str, jax.ShapeDtypeStruct]:
  """What a step is given: of the data where it is here, or else of the config.

  In aspect buckets it is the square one.
  """
  options = config.train
  if all(
    files.path(f"{folder}/features.json").exists() for folder in options.folders
  ):
    fields = [f for one in options.folders for f in shards.open(one).fields]
  else:
    fields = list(records.fields(encoded(config)))
  known = {field.name: field for field in fields}
  made = {}
  for name in task.features:
    if name == "image":
      shape = (config.autoencoder.size, config.autoencoder.size, 3)
      made[name] = (shape, jnp.uint8)
      continue
    if name not in known:
      raise ValueError(
        f"a step of {options.task} reads {name!r}, which encode would not make "
        "with this config"
      )
    shape = known[name].shape
    if shape[:1] == (None,):
      side = (
        config.encode.size // hub.config(config.model.vae, "autoencoder").factor
      )
      shape = (side, side, *shape[1:])
    made[name] = (shape, known[name].dtype)
  return {
    name: jax.ShapeDtypeStruct((options.batch_size, *shape), dtype)
    for name, (shape, dtype) in made.items()
  }


def encoded(config: ml_collections.ConfigDict) -> dict[str, records.Spec]:
  """What `cc-jax encode` would make with this config."""
  options, model = config.encode, config.model
  name = lambda one, kind: hub.Loaded(hub.config(one, kind)) if one else None
  networks = encoder.Networks(
    vae=name(model.vae if options.latents else "", "autoencoder"),
    vqgan=name(options.vqgan, "vqgan"),
    clip=name(options.clip, "clip"),
    # Which one does not matter.
    tokenizer="any" if options.captions else None,
    t5=name(model.text if options.text_states else "", "t5"),
  )
  made = frames.make(
    options.size, bucketed=options.buckets, step=options.bucket_step
  )
  return encoder.features(
    networks,
    encoder.Options(
      made, options.batch_size, std=options.std, tokens=options.tokens
    ),
  )


def describe(
  config: ml_collections.ConfigDict, target: hardware.Target, made: Compiled
) -> dict[str, Any]:
  """All figures of a plan."""
  chip, options = target.slice.hardware, config.train
  scopes = operations(config)
  total, text = sum(scopes.values()), scopes.get("text", 0)
  usable = chip.usable or chip.hbm
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
      "text": text,
      "trained": total - text,
      "again": made.operations - total,
    },
    "tflop_per_image": total / options.batch_size / 1e12,
    "hbm_gib_usable": usable / GIB,
  }
  if isinstance(made.program, estimate.OutOfMemory):
    needed, usable = made.program
    state = {k: float(estimate.on_device(v)) for k, v in made.parts.items()}
    found |= {
      "fits": False,
      "hbm_gib": needed / GIB,
      "hbm_gib_usable": usable / GIB,
      "hbm_gib_parts": {
        **{name: size / GIB for name, size in state.items()},
        "temporary": (needed - sum(state.values())) / GIB,
      },
      "try": remedies(config, made, needed, usable),
    }
    return found
  memory = estimate.memory(made.program, made.parts)
  found |= {
    "fits": True,
    "hbm_gib": sum(memory.values()) / GIB,
    "hbm_gib_parts": {name: size / GIB for name, size in memory.items()},
  }
  text_of = made.program.as_text()
  cost = hlo_cost.cost(text_of, devices=made.mesh.size, kernels=made.kernels)
  return found | times(config, target, cost, total) | traffic(made, cost)


def remedies(
  config: ml_collections.ConfigDict,
  made: Compiled,
  needed: float,
  usable: float,
) -> list[str]:
  """What would make a step fit."""
  options, ways = config.train, sharding.batch_ways(made.mesh)
  state = sum(estimate.on_device(tree) for tree in made.parts.values())
  advice = [
    f"train.remat={name}"
    for name in {"none": ("dots", "full"), "dots": ("full",)}.get(
      options.remat, ()
    )
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
  power = estimate.energy(
    hours * target.chips,
    config.plan.watts or chip.watts,
    config.plan.pue,
    config.plan.kg_co2_per_kwh,
  )
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
    "energy": power,
    "assumptions": [
      *estimate.ASSUMPTIONS,
      f"{price} dollars an hour and chip; a chip of "
      f"{config.plan.watts or chip.watts} W, {config.plan.pue} drawn for each, "
      f"{config.plan.kg_co2_per_kwh} kg CO2 a kWh",
    ],
  }


def traffic(made: Compiled, cost: hlo_cost.Cost) -> dict[str, Any]:
  """Bytes, collectives, kernels and the slowest operations."""
  total = max(sum(cost.cycles.values()), 1)
  return {
    "bytes": (made.program.cost_analysis() or {}).get("bytes accessed"),
    "collectives": hlo_cost.summary(cost),
    "kernels": [one._asdict() for one in cost.kernels],
    "slowest": [
      {**one._asdict(), "share": one.cycles / total}
      for one in cost.slowest[:SLOWEST]
    ],
    "loops_of_unknown_length": cost.unknown,
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
    return needed * GIB if fit else max(needed * GIB, usable + 1)

  first = max(config.train.batch_size // ways, 1)
  fixed = 0.0
  best, tries = estimate.largest(fits, first, usable, fixed)
  tried = [{"batch_size": n * ways, "hbm_gib": b / GIB} for n, b in tries]
  chosen = found[best] if best else found[min(found)]
  return {**chosen, "search": tried}


def lines(found: dict[str, Any]) -> list[str]:
  """A plan as a person reads it."""
  share = lambda parts, unit=1: ", ".join(
    f"{name} {value / unit:.2f}" for name, value in parts.items() if value
  )
  made = [
    f"{found['parameters']:,} weights, batch {found['batch_size']:,} "
    f"({found['images_per_chip']:g} a chip), "
    f"{found['tflop_per_image']:.3f} TFLOP an image",
    f"HBM {found['hbm_gib']:.2f} GiB of {found['hbm_gib_usable']:g}: "
    + share(found["hbm_gib_parts"]),
  ]
  if not found["fits"]:
    advice = ", ".join(found["try"]) or "a larger slice"
    return [
      *made,
      f"needs {found['hbm_gib']:.1f} GiB of {found['hbm_gib_usable']:.1f}: try "
      + advice,
    ]
  total = max(found["cycles"], 1)
  parts = found["cycles_parts"].items()
  made += [
    f"{total / 1e6:,.1f} M cycles: "
    + ", ".join(f"{name} {100 * n / total:.1f} %" for name, n in parts if n),
    f"step {1e3 * found['step_s']:.1f} ms ("
    + share(found["step_s_parts"], 1e-3)
    + f"), {100 * found['mfu']:.1f} % of peak, "
    f"{found['images_per_s_per_chip']:.1f} images/s a chip",
  ]
  made += [
    f"{one['kind']} over {one['devices']}: {one['count']} times, "
    f"{one['bytes'] / 1e6:,.1f} MB" + (", hidden" if one["hidden"] else "")
    for one in found["collectives"]
  ]
  if found["kernels"]:
    seconds = found["step_s_parts"]["kernels"]
    made.append(
      f"{sum(one['times'] for one in found['kernels'])} custom kernels, "
      f"reckoned from FLOPs and bytes: {1e3 * seconds:.1f} ms"
    )
  made += [
    f"{100 * one['share']:.1f} % {one['kind']}: {one['what'][:120]}"
    for one in found["slowest"][:5]
  ]
  power = found["energy"]
  dollars = found["dollars"]
  made.append(
    f"{found['steps']:,} steps of {found['batch_size']:,}: "
    f"{found['days']:.1f} days, "
    + (f"{dollars:,.0f} dollars" if dollars else "price unknown")
    + (
      f", {power['kwh']:,.0f} kWh, {power['kg_co2']:,.0f} kg CO2"
      if power
      else ""
    )
  )
  return made
