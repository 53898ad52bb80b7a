# SPDX-License-Identifier: Apache-2.0
import time

from cc_jax.core import timing


def test_functions_are_called_in_turn_and_the_first_call_does_not_count():
  called = []

  def run(name, seconds):
    # The first call takes longest, as one that compiles.
    time.sleep(seconds if called.count(name) else 10 * seconds)
    called.append(name)

  runs = {
    "a": lambda: run("a", 0.002),
    "b": lambda: run("b", 0.0),
  }
  found = timing.in_turn(runs, 3)
  assert called == ["a", "b"] * 4
  assert set(found) == {"a", "b"}
  assert found["a"] >= 0.002
  assert found["b"] < found["a"]
