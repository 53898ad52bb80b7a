# SPDX-License-Identifier: Apache-2.0
"""How long a custom kernel is: the schedules that libtpu writes.

XLA:TPU estimates no custom call, but schedules its instructions like all, and
writes the last schedule of each if its options ask for that. A core issues one
bundle of instructions a cycle, so that bundles are cycles but for what waits
for memory.

libtpu reads its options when it is loaded, and would write schedules of all
operations of a program, which takes longer than compiling it. So each kernel is
compiled by itself in a process that has those options:

  python -m cc_jax.core.schedules FOLDER v4-8

writes FOLDER/N.json for each kernel FOLDER/N.bin, of `jax.export`.
"""

from collections.abc import Mapping
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import jax
from jax import export

from cc_jax.core import files, flops, hardware, launching, log

# The label of the last of some seventy texts of a kernel, and of the one beside
# it that counts.
LABEL = "final_bundles"
TOTAL = re.compile(r"total scheduled bundles:\s*(\d+)")
# Of an operation, with its own name alone.
NAME = re.compile(rf"^\d+-(\w+)(?:\.\d+)?-\d+-schedule-analysis_{LABEL}\.txt$")


def of(jaxpr: Any, target: hardware.Slice) -> dict[flops.Kernel, flops.Work]:
  """The work of each Pallas kernel, with the bundles of one step of its grid.

  All of a kernel, what is before and behind its loop too; a loop within the
  kernel counts once. A kernel that libtpu does not compile by itself has none,
  which is said.

  Args:
    jaxpr: of a program.
    target: with the chip that it is compiled for.
  """
  found = flops.kernels(jaxpr)
  if not found:
    return found
  with tempfile.TemporaryDirectory(prefix="cc_jax_schedules_") as folder:
    calls = dict(flops.calls(jaxpr))
    for number, (kernel, equation) in enumerate(calls.items()):
      made = export.export(_alone(kernel, equation), platforms=["tpu"])
      shapes = [
        jax.ShapeDtypeStruct(one.aval.shape, one.aval.dtype)
        for one in equation.invars
      ]
      file = pathlib.Path(folder, f"{number}.bin")
      file.write_bytes(made(*shapes).serialize())
    command = [sys.executable, "-m", __spec__.name, folder, target.name]
    done = subprocess.run(
      command, env=_environment(folder), capture_output=True, text=True
    )
    bundles = {
      kernel: files.read_json(file)["bundles"]
      for number, kernel in enumerate(calls)
      if (file := pathlib.Path(folder, f"{number}.json")).exists()
    }
  if missing := {one.name for one in calls if not bundles.get(one)}:
    names = ", ".join(sorted(missing))
    log.announce("plan", f"no schedule of {names}: {done.stderr[-500:]}")
  return {
    kernel: work._replace(bundles=bundles.get(kernel, 0))
    for kernel, work in found.items()
  }


def _alone(kernel: flops.Kernel, equation: Any) -> Any:
  """A function that is nothing but the kernel."""

  def run(*arrays):
    return equation.primitive.bind(*arrays, **equation.params)

  run.__name__ = kernel.name
  return jax.jit(run)


def _environment(folder: str) -> Mapping[str, str]:
  options = [
    os.environ.get("LIBTPU_INIT_ARGS", ""),
    f"--xla_jf_dump_to={folder}",
    f"--xla_jf_dump_llo_pass_label_regex={LABEL}",
  ]
  return os.environ | {
    "LIBTPU_INIT_ARGS": " ".join(options).strip(),
    "JAX_PLATFORMS": "cpu",
  }


def take(folder: str, kernel: str) -> int:
  """Bundles of a kernel that was compiled; what libtpu wrote is deleted."""
  found = 0
  for file in pathlib.Path(folder).glob("*.txt"):
    name = NAME.match(file.name)
    total = TOTAL.search(file.read_text()) if name else None
    if total and name[1] == kernel:
      found = int(total[1])
    file.unlink()
  return found


def main(folder: str, name: str) -> None:
  """Compiles each exported kernel of a folder for a chip of a slice."""
  target = hardware.slice_of(name)
  device = hardware.aot_devices(target)[0]
  layout = jax.sharding.SingleDeviceSharding(device)
  for file in sorted(pathlib.Path(folder).glob("*.bin")):
    kernel = export.deserialize(bytearray(file.read_bytes()))
    shapes = [
      jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=layout)
      for one in kernel.in_avals
    ]
    jax.jit(kernel.call, out_shardings=layout).lower(*shapes).compile(
      compiler_options=launching.options(target.hardware.name)
    )
    found = {"bundles": take(folder, kernel.fun_name)}
    files.write_json(str(file.with_suffix(".json")), found)


if __name__ == "__main__":
  main(*sys.argv[1:])
