# SPDX-License-Identifier: Apache-2.0
"""Work on a stream in batches of one shape, host and device at the same time.

While the device computes a batch, threads prepare the next ones and the caller
writes what is finished. Examples come in any order of groups (aspect buckets,
say) and a batch is of one group; results leave in the order of the examples.
Which examples share a batch depends on their order and groups alone, never on
time, so a stream that is run again gives the same batches.
"""

import collections
from collections.abc import (
  Callable,
  Hashable,
  Iterator,
  MutableMapping,
  Sequence,
)
from concurrent import futures
import contextlib
import os
import time
from typing import Any, NamedTuple

from cc_jax.core import files, log
from cc_jax.data import passes

# Batches that are prepared ahead, in examples of the largest group.
AHEAD = 2

# An example waits for its group to fill a batch while so many batches of others
# go by; then its batch is computed as it is. Results wait behind it in memory.
PATIENCE = 16

STEPS = ("read", "decode", "compile", "device", "write")
Seconds = MutableMapping[str, Any]


class Prepared(NamedTuple):
  """An example that is ready for the device: its group, and what it is."""

  group: Hashable
  value: Any


def run(
  examples: Iterator[Any],
  prepare: Callable[[Any], Sequence[Any]],
  start: Callable[[Hashable, list[Any]], Callable[[], list[Any]]],
  *,
  batch_size: int,
  seconds: Seconds,
  parts: int = 1,
) -> Iterator[tuple[Any, ...]]:
  """Yields the results of each example, in their order: one a part.

  Each part has the batches that it would have alone.

  Args:
    examples: read in the caller's thread, a few batches ahead.
    prepare: called in threads, for what is to be computed for each part, as
      `Prepared`; anything else, such as a reject, is a result already.
    start: begins to compute up to `batch_size` values of one group, without
      waiting; what it returns is called for the results, as many. What it
      adds to seconds["compile"] itself is no time of the device.
    batch_size: of full batches.
    seconds: to which is added how long this thread waited for each of `STEPS`,
      and the number of `images`. Work that others hid does not count, so the
      largest is what limits.
    parts: how many results an example has.
  """
  waiting: list[dict[Hashable, list[tuple[int, Any]]]]
  waiting = [{} for _ in range(parts)]
  flying: collections.deque[Any] = collections.deque()
  # By the number of the example, then by part.
  done: dict[int, dict[int, Any]] = collections.defaultdict(dict)
  given = 0

  def launch(part: int, group: Hashable) -> None:
    numbers, values = zip(*waiting[part].pop(group), strict=True)
    compiled = seconds.get("compile", 0.0)
    # Some devices take a batch only when they are done with the last one.
    with clock(seconds, "device"):
      flying.append((part, numbers, start(group, list(values))))
    seconds["device"] -= seconds.get("compile", 0.0) - compiled
    # One is computed while the next is put together.
    if len(flying) > 1:
      land()

  def land() -> None:
    part, numbers, finish = flying.popleft()
    with clock(seconds, "device"):
      for number, result in zip(numbers, finish(), strict=True):
        done[number][part] = result

  def ready() -> Iterator[Any]:
    nonlocal given
    while len(done[given]) == parts:
      found = done.pop(given)
      given += 1
      seconds["images"] = seconds.get("images", 0) + 1
      with clock(seconds, "write"):
        yield tuple(found[part] for part in range(parts))

  with futures.ThreadPoolExecutor(threads()) as pool:
    for number, future in enumerate(
      _ahead(pool, prepare, examples, AHEAD * batch_size, seconds)
    ):
      with clock(seconds, "decode"):
        every = future.result()
      for part, groups, prepared in zip(
        range(parts), waiting, every, strict=True
      ):
        if isinstance(prepared, Prepared):
          rows = groups.setdefault(prepared.group, [])
          rows.append((number, prepared.value))
          if len(rows) == batch_size:
            launch(part, prepared.group)
        else:
          done[number][part] = prepared
        # The group whose first example has waited longest is the first one.
        late = next(iter(groups), None)
        if (
          late is not None
          and groups[late][0][0] <= number - PATIENCE * batch_size
        ):
          launch(part, late)
      yield from ready()
  for part, groups in enumerate(waiting):
    for group in list(groups):
      launch(part, group)
  while flying:
    land()
  yield from ready()


def _ahead(
  pool: futures.Executor,
  prepare: Callable[[Any], Any],
  examples: Iterator[Any],
  most: int,
  seconds: Seconds,
) -> Iterator[futures.Future]:
  """Futures of prepared examples in order, `most` of them begun."""
  begun: collections.deque[futures.Future] = collections.deque()
  examples, end = iter(examples), object()
  try:
    while True:
      while len(begun) < most:
        with clock(seconds, "read"):
          example = next(examples, end)
        if example is end:
          most = 0
          break
        begun.append(pool.submit(prepare, example))
      if not begun:
        return
      yield begun.popleft()
  finally:
    for future in begun:
      future.cancel()


class Done(NamedTuple):
  """Results, and what a pass notes of the example that they are of."""

  results: tuple[Any, ...]
  key: str
  licence: str


def piece(
  source: passes.Piece, stream: Callable[[Iterator[Any]], Iterator[Any]]
) -> passes.Piece:
  """A piece of a pass that yields `Done` for what a stream makes of it.

  The function of `passes.fill` is `results`: all is done when it is called.

  Args:
    source: of records, as `passes.pieces` makes them.
    stream: as `run` of everything but its examples.
  """

  def read() -> Iterator[Done]:
    held: collections.deque[tuple[str, str]] = collections.deque()

    def examples() -> Iterator[Any]:
      for example in source.read():
        held.append((example["key"], example.get("licence", "")))
        yield example

    for found in stream(examples()):
      yield Done(found, *held.popleft())

  return source._replace(read=read)


def results(batch: Sequence[Done]) -> list[tuple[Any, ...]]:
  """The results of what `piece` yields."""
  return [done.results for done in batch]


def threads() -> int:
  """How many prepare examples: one a core, and not fewer than four."""
  return max(4, len(os.sched_getaffinity(0)))


@contextlib.contextmanager
def clock(seconds: Seconds, step: str) -> Iterator[None]:
  """Adds the time that the block takes."""
  started = time.perf_counter()
  try:
    yield
  finally:
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started


def record(workdir: str, stage: str, seconds: Seconds) -> None:
  """Says where the time went, and notes it for `cc-jax report`.

  It is in the work folder, since a dataset is the same bytes however long it
  took.
  """
  log.announce(stage, limits(seconds))
  if log.is_first():
    noted = {
      "stage": stage,
      "images": seconds.get("images", 0),
      "threads": threads(),
      "seconds": {step: round(seconds.get(step, 0.0), 6) for step in STEPS},
    }
    files.write_json(os.path.join(workdir, f"{stage}.seconds.json"), noted)


def limits(seconds: Seconds) -> str:
  """Where the time of `run` went, for a person.

  >>> times = {"read": 0.1, "decode": 6.0, "device": 2.0, "compile": 3.0}
  >>> limits({**times, "images": 500})
  'decode limits; of 1,000 images: read 0.2 s, decode 12.0 s, device 4.0 s, \
write 0.0 s; compiled in 3.0 s'
  """
  images = max(1, seconds.get("images", 0))
  steps = {step: seconds.get(step, 0.0) for step in STEPS}
  compiled = steps.pop("compile")
  each = ", ".join(
    f"{step} {1000 * spent / images:.1f} s" for step, spent in steps.items()
  )
  slowest = max(steps, key=lambda step: steps[step])
  return (
    f"{slowest} limits; of 1,000 images: {each}; compiled in {compiled:.1f} s"
  )
