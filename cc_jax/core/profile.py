# SPDX-License-Identifier: Apache-2.0
"""Where the time of a compiled program goes, operation by operation.

JAX's profiler writes an event for each operation that ran, under the name that
it has in the compiled program; the program's text says which part of a model an
operation belongs to.
"""

from collections.abc import Callable
import glob
import gzip
import json
import re
import tempfile
from typing import Any

import jax

# A line of a compiled program: its name, and the scopes that it was made in.
LINE = re.compile(r'%([\w.\-]+) = .*op_name="([^"]*)"')
SHAPE = re.compile(r"%[\w.\-]+ = (\S+?)[ {]")


def scopes(text: str) -> dict[str, str]:
  """Operation -> "scopes of the model, its shape".

  Args:
    text: of a compiled program, `compiled.as_text()`.

  >>> scopes('  %fusion.1 = f32[2,4]{1,0} fusion(%x), '
  ...        'metadata={op_name="jit(f)/up_1/resnet/conv" id=2}')
  {'fusion.1': 'up_1/resnet/conv f32[2,4]'}
  """
  found = {}
  for line in text.splitlines():
    if match := LINE.search(line):
      inside = match[2].partition("/")[2] or match[2]
      shape = SHAPE.search(line)
      found[match[1]] = f"{inside} {shape[1] if shape else ''}".rstrip()
  return found


def slowest(
  run: Callable[[], Any], text: str, count: int = 5
) -> list[tuple[str, float]]:
  """The operations of one run that took longest: (what, seconds).

  Args:
    run: calls the compiled program, once.
    text: of that program; operations that are not in it are left out, as what
      waits for another thread.
    count: how many of them.
  """
  names = scopes(text)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(run())
    files = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
    events = []
    for file in files:
      with gzip.open(file) as source:
        events += json.load(source)["traceEvents"]
  seconds: dict[str, float] = {}
  for event in events:
    if event.get("ph") == "X" and event["name"] in names:
      what = names[event["name"]]
      seconds[what] = seconds.get(what, 0.0) + event["dur"] / 1e6
  ordered = sorted(seconds.items(), key=lambda item: -item[1])
  return ordered[:count]
