# SPDX-License-Identifier: Apache-2.0
"""What a plan says of any program, whatever it computes."""

import dataclasses
from typing import Any

import jax

from cc_jax.core import estimate, hardware, hlo_cost

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
    jaxpr: what was lowered.
    seconds: that compiling took.
  """

  program: Any
  lowered: Any
  mesh: jax.sharding.Mesh
  parts: dict[str, Any]
  operations: int
  jaxpr: Any
  seconds: float


def memory(target: hardware.Target, made: Compiled) -> dict[str, Any]:
  """What a program takes of a chip's memory, and whether that is there."""
  if isinstance(made.program, estimate.OutOfMemory):
    needed, usable = made.program
    parts = {k: float(estimate.on_device(v)) for k, v in made.parts.items()}
    parts["temporary"] = needed - sum(parts.values())
  else:
    usable = target.slice.hardware.usable or target.slice.hardware.hbm
    parts = estimate.memory(made.program, made.parts)
  return {
    "fits": not isinstance(made.program, estimate.OutOfMemory),
    "hbm_gib": sum(parts.values()) / GIB,
    "hbm_gib_usable": usable / GIB,
    "hbm_gib_parts": {name: size / GIB for name, size in parts.items()},
  }


def power(
  options: Any, target: hardware.Target, hours: float
) -> dict[str, float]:
  """Energy and CO2 of a slice for so long, where its chips' power is known.

  Args:
    options: `config.plan`.
    target: the slice.
    hours: of all of it.
  """
  return estimate.energy(
    hours * target.chips,
    options.watts or target.slice.hardware.watts,
    options.pue,
    options.kg_co2_per_kwh,
  )


def published(
  options: Any, target: hardware.Target, hours: float
) -> dict[str, Any]:
  """What others say it took them, and this in days of their chip.

  Args:
    options: `config.plan`.
    target: the slice.
    hours: of all of it, by this plan.

  Raises:
    ValueError: a chip of theirs that is not known.
  """
  theirs = options.published
  if not theirs.days:
    return {}
  chip, own = hardware.lookup(theirs.chip), target.slice.hardware
  days = hours * target.chips / 24
  return {
    "what": theirs.what,
    "chip": chip.name,
    "chip_days": theirs.days,
    "dollars": theirs.dollars,
    "energy": estimate.energy(
      24 * theirs.days, theirs.watts, options.pue, options.kg_co2_per_kwh
    ),
    # At the same share of both peaks.
    "planned_chip_days": days * own.flops / chip.flops if chip.flops else None,
  }


def assumptions(options: Any, target: hardware.Target) -> list[str]:
  """What the figures of a plan rest on."""
  chip, theirs = target.slice.hardware, options.published
  made = [
    *estimate.ASSUMPTIONS,
    f"{options.price or chip.price} dollars an hour and chip",
    f"{options.watts or chip.watts} W a chip, {options.pue} W drawn for each, "
    f"{options.kg_co2_per_kwh} kg CO2 a kWh; hosts and networks not "
    "counted",
  ]
  if theirs.days:
    made.append(
      f"{theirs.what}: {theirs.watts:g} W a chip, else as here; days of theirs "
      "at the same share of peak"
    )
  return made


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
