# SPDX-License-Identifier: Apache-2.0
"""From a compiled program to seconds, bytes, dollars and kilowatt-hours.

What is assumed is in `ASSUMPTIONS`, which a plan prints and keeps.
"""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

import jax

from cc_jax.core import hardware, hlo_cost, launching

# Bytes per second of a chip's share of its host's network: 25 GB/s a host of
# four.
NETWORK = 6.25e9

ASSUMPTIONS = (
  "cycles are the compiler's own estimates, loops counted; nothing was run",
  "custom kernels: a cycle a bundle of the compiler's schedule, "
  f"{hlo_cost.KERNEL_SHARE:.0%} of peak where there is none; or bytes at full "
  "bandwidth, whichever takes longer",
  "collectives: rings at the full bandwidth of the links that the slice's "
  "shape uses; those that run beside computation cost nothing",
  f"between slices: {NETWORK / 1e9:g} GB/s a chip",
  "copies between memories, the host and the loader cost nothing",
)


class OutOfMemory(NamedTuple):
  """A program that the compiler refused.

  Attributes:
    needed: bytes on a device.
    usable: bytes that there are.
  """

  needed: float
  usable: float


def compile(lowered: Any, chip: str) -> Any:
  """The compiled program, or `OutOfMemory`: that is an answer, no failure.

  Args:
    lowered: the program.
    chip: for which: a plan is compiled with the flags of the hosts.
  """
  try:
    return lowered.compile(compiler_options=launching.options(chip))
  except jax.errors.JaxRuntimeError as error:
    found = refusal(str(error))
    if found is None:
      raise
    return found


def refusal(text: str) -> OutOfMemory | None:
  """What an error of the compiler says of memory; None for another error.

  >>> refusal("RESOURCE_EXHAUSTED: Used 41.20G of 30.75G hbm.").usable / 2**30
  30.75
  """
  if "RESOURCE_EXHAUSTED" not in text:
    return None
  number = r"([\d.]+)([KMGT]?)"
  for pattern in (
    rf"Used {number} of {number} hbm",
    rf"\({number}\) exceeds available HBM \({number}\)",
  ):
    if found := re.search(pattern, text):
      scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
      needed, first, usable, second = found.groups()
      return OutOfMemory(
        float(needed) * scale[first], float(usable) * scale[second]
      )
  return None


def on_device(shapes: Any) -> int:
  """Bytes of a tree of shapes with layouts, on each device, without padding."""
  total = 0
  for leaf in jax.tree.leaves(shapes):
    shape = leaf.shape
    if getattr(leaf, "sharding", None) is not None:
      shape = leaf.sharding.shard_shape(shape)
    size = leaf.dtype.itemsize
    for side in shape:
      size *= side
    total += size
  return total


def memory(compiled: Any, parts: Mapping[str, Any]) -> dict[str, float]:
  """Bytes of a device's memory that a program takes, by what they hold.

  Args:
    compiled: the program.
    parts: trees of shapes, with layouts, of its arguments by name.

  Returns:
    Those parts, and "padding" of them, "temporary" (activations, gradients),
    "results" (what is not written over an argument) and "code".
  """
  found = compiled.memory_analysis()
  made = {name: float(on_device(tree)) for name, tree in parts.items()}
  made["padding"] = found.argument_size_in_bytes - sum(made.values())
  made["temporary"] = float(found.temp_size_in_bytes)
  made["results"] = float(
    found.output_size_in_bytes - found.alias_size_in_bytes
  )
  made["code"] = float(found.generated_code_size_in_bytes)
  return made


def seconds(cost: hlo_cost.Cost, target: hardware.Target) -> dict[str, float]:
  """How long a run takes, by what it waits for.

  Raises:
    ValueError: a chip of which too little is known.
  """
  chip = target.slice.hardware
  needed = ("flops", "bandwidth", "interconnect", "clock")
  if missing := [name for name in needed if not getattr(chip, name)]:
    raise ValueError(
      f"core/hardware.py does not know {', '.join(missing)} of {chip.name}"
    )
  wires = chip.interconnect / 2 / chip.links * hardware.links(target.slice)
  made = dict.fromkeys(("compute", "kernels", "collectives", "network"), 0.0)
  made["compute"] = sum(cost.cycles.values()) / chip.clock
  made["kernels"] = sum(one.seconds(chip) for one in cost.kernels)
  for one in cost.collectives:
    if one.kind == "send":
      made["network"] += one.times * one.traffic() / NETWORK
    elif not one.hidden and wires:
      made["collectives"] += one.times * one.traffic() / wires
  return made


def energy(
  hours: float | int,
  watts: float | int | None,
  pue: float | int,
  kg_per_kwh: float | int,
) -> dict[str, float]:
  """Kilowatt-hours and kilograms of CO2 of so many chip-hours.

  Args:
    hours: of chips.
    watts: of a chip; None for unknown, and then there is nothing to say.
    pue: what the data centre draws for each watt of its chips.
    kg_per_kwh: of CO2, of the grid.
  """
  if not watts:
    return {}
  kwh = hours * watts * pue / 1000
  return {"kwh": kwh, "kg_co2": kwh * kg_per_kwh}


def largest(
  fits: Any,
  first: int,
  usable: float | int,
  fixed: float | int,
  slack: int = 16,
) -> tuple[int, list[tuple[int, float | int]]]:
  """The largest n that fits, found by few tries.

  What an n takes is `fixed` and about as much again for each: each try is where
  that line, drawn through the last, meets `usable`.

  Args:
    fits: `fits(n)` -> the bytes that n takes, more than `usable` if it does
      not fit.
    first: the n to begin with.
    usable: bytes.
    fixed: bytes of n = 0.
    slack: the answer is right to within one in so many.

  Returns:
    n, 0 if not even 1 fits, and all tries.
  """
  low, high, n, tries = 0, None, max(first, 1), []
  while True:
    bytes_ = fits(n)
    tries.append((n, bytes_))
    if bytes_ <= usable:
      low = n
    else:
      high = n
    if high is not None and high - low <= max(1, low // slack):
      return low, tries
    each = max(bytes_ - fixed, 1.0) / n
    guess = int((usable - fixed) / each)
    n = max(low + 1, min(guess, 4 * n))
    if high is not None:
      n = min(n, high - 1)
