# SPDX-License-Identifier: Apache-2.0
"""What a program compiled for a TPU will cost, by the compiler's own estimate.

XLA:TPU writes the cycles that it expects of each fusion. Summed with loops
counted they are the nearest thing to a step's time without a TPU. Two things it
does not estimate, and they are reckoned here from their sizes: collectives, as
rings at the full bandwidth of the links, and custom kernels, by their schedules
(core/schedules.py), at half of peak where those are not known, or at the full
bandwidth of memory, whichever takes longer.
"""

import collections
from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple

from cc_jax.core import flops, hardware, hlo

KINDS = ("attention", "matmul", "conv", "norm", "optimizer", "rest")
COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  # Between slices, by hosts: XLA:TPU makes it of all of the above.
  "send",
)
# What XLA:TPU calls a collective that other fusions carry on.
ASYNC = "async-collective"
# The part of peak at which kernels without a schedule are reckoned.
KERNEL_SHARE = 0.5

ATTENTION = re.compile(r"attention_op|dot_product_attention|softmax")
NORM = re.compile(
  r"(?i)(group|layer|rms)_?norm|_compute_stats$|^_normalize$|(^|/)norm\d?(/|$)"
)
# The gradient's norm is the optimiser's, wherever it is taken.
OPTIMIZER = re.compile(r"(^|/)optimizer(/|$)|tree_norm|global_norm")


class Part(NamedTuple):
  """Operations of a program that are of one scope and shape.

  Attributes:
    what: "scopes of the model, result", as in core/profile.py.
    kind: one of `KINDS`.
    cycles: of all runs.
    times: how often it runs.
  """

  what: str
  kind: str
  cycles: int
  times: int


class Collective(NamedTuple):
  """What devices send each other.

  Attributes:
    kind: one of `COLLECTIVES`.
    size: bytes on each device, of the larger side, in one run.
    devices: that take part.
    times: how often it runs.
    hidden: whether it runs beside computation.
  """

  kind: str
  size: int
  devices: int
  times: int
  hidden: bool

  def traffic(self) -> float:
    """Bytes that a device sends in one run: rings, arXiv 1810.11787 §2."""
    if self.kind in ("collective-permute", "send"):
      return float(self.size)
    rounds = 2 if self.kind == "all-reduce" else 1
    return rounds * self.size * (self.devices - 1) / max(self.devices, 1)


class Kernel(NamedTuple):
  """A custom call that the compiler does not estimate.

  Attributes:
    name: of the kernel.
    flops: of one run; 0 where nobody knows them.
    size: bytes that one run reads and writes.
    times: how often it runs.
    bundles: of instructions in one run, on all cores; 0 where they are unknown.
  """

  name: str
  flops: int
  size: int
  times: int
  bundles: int = 0

  def seconds(self, chip: hardware.Hardware) -> float:
    """Of all runs, on a device that is such a chip."""
    busy = self.flops / (KERNEL_SHARE * chip.flops)
    if self.bundles:
      busy = self.bundles / chip.cores / chip.clock
    return self.times * max(busy, self.size / chip.bandwidth)


class Cost(NamedTuple):
  """What a run of a program costs one device.

  Attributes:
    cycles: the compiler's, by `KINDS`.
    scopes: the same, by the outermost scope of the model.
    slowest: parts, the dearest first.
    collectives: in the program's order.
    kernels: in the program's order.
    unknown: loops whose length the text does not say.
  """

  cycles: dict[str, int]
  scopes: dict[str, int]
  slowest: list[Part]
  collectives: list[Collective]
  kernels: list[Kernel]
  unknown: int


def cost(
  text: str,
  *,
  devices: int = 1,
  kernels: Mapping[flops.Kernel, flops.Work] | None = None,
  trips: int = 1,
) -> Cost:
  """Reads `compiled.as_text()` of a program for a TPU.

  Args:
    text: of the program.
    devices: that run it.
    kernels: the work of each Pallas kernel, `flops.kernels`.
    trips: how often a loop runs whose length the text does not say.
  """
  program = hlo.parse(text)
  cycles = dict.fromkeys(KINDS, 0)
  scopes: collections.Counter = collections.Counter()
  parts: dict[tuple[str, str], list[int]] = {}
  collectives, custom, unknown = [], [], 0
  for operation, times, inside in hlo.runs(program, trips):
    if operation.code == "while":
      unknown += hlo.trips(program, operation, inside) is None
    if found := _collective(program, operation, devices):
      collectives.append(found._replace(times=times))
    elif "tpu_custom_call" in operation.rest:
      made = _kernel(program, operation, kernels or {}, inside)
      custom.append(made._replace(times=times))
    elif operation.cycles:
      what = kind(program, operation)
      cycles[what] += operation.cycles * times
      scopes[outermost(operation.scope)] += operation.cycles * times
      shape = re.sub(r"\{[^{}]*\}", "", operation.result)
      label = (f"{_path(operation)} {shape}", what)
      row = parts.setdefault(label, [0, 0])
      row[0] += operation.cycles * times
      row[1] += times
  slowest = [Part(*label, *row) for label, row in parts.items()]
  slowest.sort(key=lambda part: -part.cycles)
  return Cost(cycles, dict(scopes), slowest, collectives, custom, unknown)


def kind(program: hlo.Program, operation: hlo.Operation) -> str:
  """Which of `KINDS` an operation is.

  A fusion with a product in it is that product, whatever was fused with it;
  else it is told by where in the model it, or anything in it, comes from.
  """
  inner = _fused(program, operation)
  for product in inner:
    if product.code in ("convolution", "dot"):
      scope = product.scope or " ".join(one.scope for one in inner)
      if ATTENTION.search(scope):
        return "attention"
      return "conv" if "conv_general" in scope else "matmul"
  places = [_place(program, operation)]
  if not ATTENTION.search(places[0]) and not OPTIMIZER.search(places[0]):
    places += [_place(program, one) for one in inner]
  for name, pattern in (
    ("attention", ATTENTION),
    ("optimizer", OPTIMIZER),
    ("norm", NORM),
  ):
    if any(pattern.search(part) for place in places for part in place.split()):
      return name
  return "rest"


def outermost(scope: str) -> str:
  """The first scope within the program: "text" of "jit(f)/jvp(text)/mul".

  Forward and backward of a scope are one; the operation itself is none.
  """
  for part in scope.split("/")[1:-1]:
    name = re.sub(r"^(\w+\()*|\)*$", "", part)
    if name:
      return name
  return ""


def _fused(
  program: hlo.Program, operation: hlo.Operation
) -> list[hlo.Operation]:
  """An operation, or all that is fused in it but constants.

  One zero serves all sums of a program, and names the place of one of them.
  """
  if operation.code == "constant":
    return []
  if operation.code != "fusion":
    return [operation]
  found: list[hlo.Operation] = []
  for name in operation.calls():
    for one in program.computations.get(name, ()):
      found += _fused(program, one)
  return found


def _place(program: hlo.Program, operation: hlo.Operation) -> str:
  """Scopes and Python functions."""
  functions = program.frames.get(operation.frame, ())
  return " ".join([operation.scope, *functions])


def _path(operation: hlo.Operation) -> str:
  """The scope without the program's name, or the operation's own."""
  return operation.scope.partition("/")[2] or operation.scope or operation.name


def _collective(
  program: hlo.Program, operation: hlo.Operation, devices: int
) -> Collective | None:
  """A collective, also one that is started or fused; not its end.

  A sum of which each device keeps a part is fused to "all-reduce-scatter". One
  that goes on within products is started and ended by fusions, and only the
  start is counted; the products are products.
  """
  called, name = " ".join(operation.calls()), operation.name
  ended = operation.code.endswith("-done") or name.startswith(f"{ASYNC}-done")
  if ended or called.startswith("async_collective_fusion"):
    return None
  hidden = operation.code.endswith("-start") or name.startswith(
    f"{ASYNC}-start"
  )
  for one in _fused(program, operation):
    code = one.code.removesuffix("-start")
    if code == "send" and "is_host_transfer=true" not in one.rest:
      continue
    if code in COLLECTIVES:
      whole = hlo.size(one.result)
      if one.code.endswith("-start") or code == "send":
        # Its type has operands and marks too.
        whole = max(
          (hlo.size(f"{k}{list(s)}") for k, s in hlo.arrays(one.result)),
          default=0,
        )
      group = _group(one.rest, devices)
      if code == "reduce-scatter":
        whole *= group
      if called.startswith("all-reduce-scatter"):
        code = "reduce-scatter"
      return Collective(code, whole, group, 1, hidden)
  return None


def _group(rest: str, devices: int) -> int:
  """How many devices a collective joins."""
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return found[1].count(",") + 1
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
    return int(found[1])
  if found := re.search(
    r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest
  ):
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", found[1]))
    names = re.findall(r"'([^']*)'", found[2])
    return math.prod(int(sizes.get(name, 1)) for name in names)
  return devices


def _kernel(
  program: hlo.Program,
  operation: hlo.Operation,
  known: Mapping[flops.Kernel, flops.Work],
  inside: str,
) -> Kernel:
  results = {one.name: one.result for one in program.computations[inside]}
  arrays = [results.get(name, "") for name in operation.operands]
  arrays.append(operation.result)
  shapes = tuple(shape for one in arrays for _, shape in hlo.arrays(one))
  scopes = operation.scope.split("/")
  name = scopes[-2] if scopes[-1] == "pallas_call" else scopes[-1]
  work = known.get(flops.Kernel(name, shapes), flops.Work(0, 0))
  size = sum(hlo.size(one) for one in arrays)
  bundles = work.steps * work.bundles
  return Kernel(name, work.operations, size, times=1, bundles=bundles)


def summary(found: Cost) -> list[dict[str, Any]]:
  """Collectives that are alike as one row each, the largest first."""
  rows: dict[tuple[str, int, bool], list[int]] = {}
  for one in found.collectives:
    row = rows.setdefault((one.kind, one.devices, one.hidden), [0, 0])
    row[0] += one.times
    row[1] += one.times * one.size
  made = [
    {
      "kind": kind,
      "devices": devices,
      "hidden": hidden,
      "count": count,
      "bytes": size,
    }
    for (kind, devices, hidden), (count, size) in rows.items()
  ]
  return sorted(made, key=lambda row: -row["bytes"])
