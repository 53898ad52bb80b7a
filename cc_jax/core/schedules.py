# SPDX-License-Identifier: Apache-2.0
"""How long a custom kernel is: the schedules that libtpu writes.

XLA:TPU estimates no custom call, but schedules its instructions like all, and
writes the last schedule of each if its options ask for that. A core issues one
bundle of instructions a cycle, so that bundles are cycles but for what waits
for memory.
"""

import atexit
import functools
import os
import pathlib
import re
import shutil
import tempfile

# The label of the last of some seventy texts of a kernel, and of the one beside
# it that counts.
LABEL = "final_bundles"
TOTAL = re.compile(r"total scheduled bundles:\s*(\d+)")
# Of an operation, with its own name alone.
NAME = re.compile(rf"^\d+-(.+)-\d+-schedule-analysis_{LABEL}\.txt$")


@functools.cache
def folder() -> pathlib.Path:
  """Where libtpu writes schedules to, which it does if it is not loaded yet.

  Those of all operations: a program of many is much longer to compile.
  """
  made = pathlib.Path(tempfile.mkdtemp(prefix="cc_jax_schedules_"))
  atexit.register(shutil.rmtree, made, ignore_errors=True)
  options = [
    os.environ.get("LIBTPU_INIT_ARGS", ""),
    f"--xla_jf_dump_to={made}",
    f"--xla_jf_dump_llo_pass_label_regex={LABEL}",
  ]
  os.environ["LIBTPU_INIT_ARGS"] = " ".join(options).strip()
  return made


def take() -> dict[str, int]:
  """Bundles of each operation that was compiled since the last call, by name.

  All of a kernel, what is before and behind its loop too; a loop within the
  kernel counts once. Empty where libtpu was loaded before `folder` was called,
  and where it never was.
  """
  found: dict[str, int] = {}
  if not folder.cache_info().currsize:
    return found
  for file in sorted(folder().iterdir()):
    name = NAME.match(file.name)
    total = TOTAL.search(file.read_text()) if name else None
    if total:
      found[name[1]] = int(total[1])
    file.unlink()
  return found
