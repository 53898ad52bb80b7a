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

# A line of a compiled program: name, type, operation, and the rest of it.
LINE = re.compile(r"(ROOT )?%?([\w.\-]+) = (\S+?)(?:\{\S*)? ([\w\-]+)\((.*)")
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$|%?([\w.\-]+) \{$")


def scopes(text: str) -> dict[str, str]:
  """Operation -> "scopes of the model, its type".

  What the compiler made itself, as the gradient of a convolution's kernel, has
  no scope; it is told by what it computes.

  Args:
    text: of a compiled program, `compiled.as_text()`.

  >>> scopes('  %fusion.1 = f32[2,4]{1,0} fusion(%x), '
  ...        'metadata={op_name="jit(f)/up_1/resnet/conv" id=2}')
  {'fusion.1': 'up_1/resnet/conv f32[2,4]'}
  """
  found, roots, inside = {}, {}, ""
  lines = [line.strip() for line in text.splitlines()]
  for line in lines:
    if match := COMPUTATION.match(line):
      inside = match[1] or match[2]
    elif (match := LINE.match(line)) and match[1]:
      window = re.search(r"window=\{[^}]*\}", match[5])
      roots[inside] = f"{match[4]} {window[0] if window else ''}".rstrip()
  for line in lines:
    if match := LINE.match(line):
      _, name, kind, operation, rest = match.groups()
      scope = re.search(r'op_name="([^"]*)"', rest)
      called = re.search(r"calls=%?([\w.\-]+)", rest)
      if scope:
        what = scope[1].partition("/")[2] or scope[1]
      else:
        what = roots.get(called[1] if called else "", operation)
      found[name] = f"{what} {kind}"
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
