# SPDX-License-Identifier: Apache-2.0
"""Times of functions that are compared with each other."""

from collections.abc import Callable
import statistics
import time
from typing import Any


def in_turn(
  runs: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
  """Median seconds of each of several functions, called in turn.

  So that all see the machine as it is at the same time.

  Args:
    runs: functions that return when they are done.
    repeats: calls of each that count, after one that does not.
  """
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      started = time.perf_counter()
      run()
      # The first call of each is to warm up.
      if repeat:
        seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(values) for name, values in seconds.items()}
