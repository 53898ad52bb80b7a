# SPDX-License-Identifier: Apache-2.0
"""What a run tells: lines, progress bars, metrics, a profile.

A person reads the terminal, on process 0 only: what a stage will do
(`announce`), how far it is (`progress`), what it has done (`summary`).
Programs read `metrics.jsonl`, one object a step, and TensorBoard's files.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import math
import os
import sys
import time
from typing import Any, NamedTuple

import jax
from jaxtyping import Float, UInt8
import numpy as np
import tqdm

from cc_jax.core import files, hardware

# Columns for the name of the stage, which begins every line about it.
MARGIN = 12
# Seconds between plain lines where there is no terminal.
PATIENCE = 30.0
# Seconds between uploads of metrics.jsonl: objects in a bucket cannot grow.
UPLOAD = 60.0


def is_first() -> bool:
  """Whether this is process 0, which speaks and writes for all."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line, on process 0, above any progress bar."""
  if is_first():
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def announce(stage: str, text: str) -> None:
  """Prints what a stage is going to do."""
  say(f"{_label(stage, sys.stdout)}{text}")


def summary(
  stage: str,
  counts: Mapping[str, int],
  seconds: float | int | None = None,
  output: str | os.PathLike[str] | None = None,
) -> None:
  """Prints the last line of a stage: counts, time, and where the result is.

  `summary("encode", {"done": 1797, "skipped": 0}, 83, "runs/x")` gives
  `encode      1,797 done, 0 skipped in 1:23 -> runs/x`.
  """
  text = ", ".join(f"{number:,} {what}" for what, number in counts.items())
  if seconds is not None:
    text += f" in {_duration(seconds)}"
  if output is not None:
    text += f" -> {os.fspath(output)}"
  announce(stage, text)


@contextlib.contextmanager
def progress(
  total: int, stage: str, unit: str, *, start: int = 0
) -> Iterator[Callable[..., None]]:
  """A progress bar with rate and time left; yields `advance(n=1, **values)`.

  The values are shown behind it. Without a terminal it is a plain line every
  `PATIENCE` seconds; on other processes than 0 it is nothing.

  Args:
    total: units in all.
    stage: the name in front.
    unit: what is counted, in the plural: "images".
    start: units done by an earlier run, which the rate leaves out.
  """
  if jax.process_index() != 0:
    yield lambda n=1, **values: None
    return

  if not sys.stderr.isatty():
    yield _plain_lines(total, stage, unit, start)
    return

  # tqdm fills in the braces.
  layout = (
    "{desc}{bar:10} {n:,}/{total:,}" + f" {unit}" + "  {rate_fmt}"
    "  {remaining} left"
  )
  with tqdm.tqdm(
    total=total,
    initial=start,
    desc=_label(stage, sys.stderr),
    unit=f" {unit}",
    bar_format=layout,
    dynamic_ncols=True,
    smoothing=0.1,
    leave=False,
  ) as bar:

    def advance(n: int = 1, **values: float | int) -> None:
      if values:
        bar.bar_format = f"{layout}  {_numbers(values)}"
      bar.update(n)

    yield advance


class Writers(NamedTuple):
  """Where metrics go; all None except on process 0."""

  path: str | None
  tensorboard: Any
  # Lines that are to be uploaded, and when that was done last.
  lines: list[str]
  uploaded: list[float]


def open_writers(
  workdir: str | os.PathLike[str], *, step: int = 0, tensorboard: bool = True
) -> Writers:
  """Opens `metrics.jsonl` and TensorBoard's files in `workdir`.

  Lines of steps after `step`, which a run that was killed may have written
  after its last checkpoint, are dropped: they will be written again.

  Args:
    workdir: local or gs:// folder.
    step: the step restored; 0 for a new run.
    tensorboard: whether to write its files, to `workdir/tensorboard`.

  Raises:
    ValueError: a line of `metrics.jsonl` is not JSON with a step.
  """
  if jax.process_index() != 0:
    return Writers(None, None, [], [])
  # It brings protobuf, which takes a while to import.
  import tensorboardX

  path = os.path.join(os.fspath(workdir), "metrics.jsonl")
  lines = _until(path, step)
  files.write_atomic(path, "".join(lines))
  board = None
  if tensorboard:
    board = tensorboardX.SummaryWriter(
      os.path.join(os.fspath(workdir), "tensorboard"), purge_step=step + 1
    )
  return Writers(path, board, lines, [time.monotonic()])


def write(
  writers: Writers, step: int, values: Mapping[str, float | int]
) -> None:
  """Writes the metrics of a step; what is not finite becomes null in JSON."""
  if writers.path is None:
    return
  finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
  row = {"step": step, "time": round(time.time(), 3), **finite}
  line = json.dumps(row) + "\n"
  if files.is_remote(writers.path):
    writers.lines.append(line)
    if time.monotonic() - writers.uploaded[0] > UPLOAD:
      _upload(writers)
  else:
    with open(writers.path, "a") as file:
      file.write(line)
  if writers.tensorboard is not None:
    for name, value in values.items():
      writers.tensorboard.add_scalar(name, value, step)


def write_images(
  writers: Writers,
  step: int,
  name: str,
  images: Float[np.ndarray, "B H W C"] | UInt8[np.ndarray, "B H W C"],
) -> None:
  """Shows images in TensorBoard: floats in [0, 1], or bytes."""
  if writers.tensorboard is not None:
    writers.tensorboard.add_images(name, images, step, dataformats="NHWC")


def close_writers(writers: Writers) -> None:
  """Writes what is still in memory."""
  if writers.path is not None and files.is_remote(writers.path):
    _upload(writers)
  if writers.tensorboard is not None:
    writers.tensorboard.close()


def defer(
  queue: collections.deque, step: int, metrics: Mapping[str, Any], lag: int
) -> Iterator[tuple[int, dict[str, float]]]:
  """Keeps the metrics of this step on the device, yields those of earlier ones.

  Reading a metric waits for its step. One that is `lag` steps old is done, so
  reading it holds nothing up, and the device always has work waiting.

  Args:
    queue: `collections.deque()`, the same one each time.
    step: of these metrics.
    metrics: scalars, on the device.
    lag: steps of metrics to keep; 0 waits for this very step, and gives all.

  Yields:
    `(step, metrics)` as floats, oldest first.
  """
  for value in jax.tree.leaves(dict(metrics)):
    if isinstance(value, jax.Array):
      value.copy_to_host_async()
  queue.append((step, metrics))
  while len(queue) > lag:
    yield _read(*queue.popleft())


def drain(
  queue: collections.deque,
) -> Iterator[tuple[int, dict[str, float]]]:
  """Yields what `defer` still keeps, waiting for it."""
  while queue:
    yield _read(*queue.popleft())


def check_finite(step: int, values: Mapping[str, float | int]) -> None:
  """Stops a run that has gone wrong.

  Raises:
    FloatingPointError: a value is infinite or not a number.
  """
  wrong = [
    f"{name} is {value}"
    for name, value in values.items()
    if not math.isfinite(value)
  ]
  if wrong:
    raise FloatingPointError(
      f"{', '.join(wrong)} at step {step}; the last checkpoint is from"
      " before: go on from it with a lower learning rate, or stronger"
      " clipping"
    )


@contextlib.contextmanager
def timed() -> Iterator[Callable[[], float]]:
  """Times a block; yields a function that gives its seconds."""
  started, ended = time.perf_counter(), []
  yield lambda: (ended[0] if ended else time.perf_counter()) - started
  ended.append(time.perf_counter())


def throughput(
  seconds: float | int,
  steps: int,
  batch_size: int,
  flops: float | int | None = None,
) -> dict[str, float]:
  """Speed as metrics: seconds a step, images a second, and MFU if known.

  Args:
    seconds: that all `steps` took.
    steps: how many.
    batch_size: images of a step over all devices.
    flops: of one step over all devices.
  """
  out = {
    "step_seconds": seconds / steps,
    "images_per_second": batch_size * steps / seconds,
  }
  if flops:
    used = hardware.mfu(flops, seconds / steps)
    if used is not None:
      out["mfu"] = used
  return out


@contextlib.contextmanager
def profiler(
  folder: str | os.PathLike[str], first: int | None, steps: int = 3
) -> Iterator[Callable[[int, Any], None]]:
  """Profiles a few steps; yields `at(step, arrays)`, to call before each step.

  Args:
    folder: where the profile goes, for xprof or TensorBoard.
    first: the first step to profile; None for none at all.
    steps: how many.

  The arrays are what the step before returned: the profile begins when they
  are there and ends when those of its last step are.
  """
  end = None if first is None else first + steps
  running = False

  def at(step: int, arrays: Any) -> None:
    nonlocal running
    if step not in (first, end):
      return
    jax.block_until_ready(arrays)
    if step == first:
      jax.profiler.start_trace(os.fspath(folder))
      running = True
    elif running:
      jax.profiler.stop_trace()
      running = False
      announce("profile", f"steps {first} to {end - 1} -> {os.fspath(folder)}")

  try:
    yield at
  finally:
    if running:
      jax.profiler.stop_trace()


def _label(stage, stream):
  """The margin with the stage's name, bold where that can be shown."""
  margin = f"{stage:<{MARGIN}}"
  if stream.isatty() and "NO_COLOR" not in os.environ:
    return f"\033[1m{margin}\033[0m"
  return margin


def _duration(seconds):
  """83 -> "1:23"; 4000 -> "1:06:40"; 0.25 -> "0.2 s"."""
  if seconds < 10:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{rest:02}"
  return f"{minutes}:{rest:02}"


def _numbers(values):
  return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _plain_lines(total, stage, unit, start):
  """What `progress` yields where there is no terminal."""
  began = told = time.monotonic()
  count = start
  shown = {}

  def advance(n: int = 1, **values: float | int) -> None:
    nonlocal count, told
    count += n
    shown.update(values)
    now = time.monotonic()
    if now - told < PATIENCE:
      return
    told = now
    rate = (count - start) / (now - began)
    left = _duration((total - count) / rate) if rate else "unknown time"
    parts = [
      f"{count:,}/{total:,} {unit}",
      f"{rate:.4g} {unit}/s",
      f"{left} left",
    ]
    if shown:
      parts.append(_numbers(shown))
    margin = _label(stage, sys.stderr)
    print(margin + "  ".join(parts), file=sys.stderr, flush=True)

  return advance


def _until(path, step):
  """The lines of a metrics file up to a step."""
  if not files.path(path).exists():
    return []
  text = files.path(path).read_text()
  # A last line without an end was being written when the run was killed.
  whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)
  kept = []
  for number, line in enumerate(whole, start=1):
    try:
      at = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{path} line {number} is not a JSON object with a step: {line[:60]!r};"
        " remove the line"
      ) from error
    if at <= step:
      kept.append(line)
  return kept


def _upload(writers):
  files.write_atomic(writers.path, "".join(writers.lines))
  writers.uploaded[0] = time.monotonic()


def _read(step, metrics):
  return step, {name: float(value) for name, value in metrics.items()}
