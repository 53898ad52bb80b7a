# SPDX-License-Identifier: Apache-2.0
"""Streams in batches of one group: order, batches, overlap, times."""

import collections
import json
import threading
import time

import pytest

from cc_jax.data import passes
from cc_jax.pipelines import overlap

BATCH = 4


def run(examples, group=lambda x: 0, batch_size=BATCH, **parts):
  """Returns (results, batches): each result is ten times its example."""
  batches, seconds = [], collections.Counter()

  def prepare(example):
    if example % 7 == 6:
      return [passes.Reject("seven", detail=str(example))]
    return [overlap.Prepared(group(example), example)]

  def start(group, values):
    batches.append((group, values))
    return lambda: [10 * value for value in values]

  parts = {"prepare": prepare, "start": start} | parts
  found = overlap.run(
    iter(examples), batch_size=batch_size, seconds=seconds, **parts
  )
  return [result for (result,) in found], batches, seconds


def test_results_come_in_the_order_of_examples():
  for count in (0, 1, 4, 5, 50):
    found, _, seconds = run(range(count), group=lambda x: x * x % 5)
    for example, result in zip(range(count), found, strict=True):
      if example % 7 == 6:
        assert result.detail == str(example)
      else:
        assert result == 10 * example
    assert seconds["images"] == count


def test_a_batch_is_of_one_group_and_full_while_there_are_enough():
  _, batches, _ = run(range(200), group=lambda x: x % 3)
  assert all({x % 3 for x in values} == {group} for group, values in batches)
  assert sum(len(values) < BATCH for _, values in batches) <= 3


def test_batches_do_not_depend_on_time():
  def slow(example):
    time.sleep(0.002 * (example * 7919 % 5))
    return [overlap.Prepared(example % 3, example)]

  runs = [run(range(60), prepare=slow)[1] for _ in range(3)]
  fast = lambda example: [overlap.Prepared(example % 3, example)]
  runs.append(run(range(60), prepare=fast)[1])
  assert all(batches == runs[0] for batches in runs)


def test_each_part_has_the_batches_that_it_has_alone():
  groups = [lambda x: x * x % 5, lambda x: x == 3]
  count = 3 * overlap.PATIENCE * BATCH

  def of(part):
    def one(x):
      if x % (5 + part) == 2:
        return passes.Reject(f"part {part}")
      return overlap.Prepared((part, groups[part](x)), (part, x))

    return one

  def together(*parts):
    batches = []

    def start(group, values):
      batches.append((group, values))
      return lambda: values

    found = overlap.run(
      iter(range(count)),
      lambda x: [of(part)(x) for part in parts],
      start,
      batch_size=BATCH,
      seconds={},
      parts=len(parts),
    )
    results = list(zip(*found, strict=True))
    return results, [[b for b in batches if b[0][0] == p] for p in parts]

  both, batches = together(0, 1)
  for part in (0, 1):
    (alone,), (own,) = together(part)
    assert both[part] == alone
    assert batches[part] == own


def test_a_rare_group_does_not_hold_all_results_back():
  count = 3 * overlap.PATIENCE * BATCH
  _, batches, _ = run(range(count), group=lambda x: x == 3)
  assert batches.index((True, [3])) <= overlap.PATIENCE + 1
  # Asked for one by one, results come before all examples are read.
  read = []
  made = overlap.run(
    iter(read.append(x) or x for x in range(count)),
    lambda x: [overlap.Prepared(x == 3, x)],
    lambda group, values: lambda: values,
    batch_size=BATCH,
    seconds={},
  )
  assert [next(made) for _ in range(10)] == [(x,) for x in range(10)]
  assert len(read) < (overlap.PATIENCE + 2 * overlap.AHEAD) * BATCH
  made.close()


def test_examples_are_prepared_while_the_device_computes():
  began, go_on = [], threading.Event()

  def prepare(example):
    began.append(example)
    if example >= BATCH:
      go_on.set()
    return [overlap.Prepared(0, example)]

  def start(group, values):
    def finish():
      # The batch is not ready before later examples are begun.
      assert go_on.wait(10)
      return values

    return finish

  found, _, _ = run(range(3 * BATCH), prepare=prepare, start=start)
  assert found == list(range(3 * BATCH))


def test_no_more_is_read_than_two_batches_ahead():
  read = []
  made = overlap.run(
    iter(read.append(x) or x for x in range(1000)),
    lambda x: [passes.Reject("all")],
    lambda group, values: lambda: values,
    batch_size=BATCH,
    seconds={},
  )
  next(made)
  assert len(read) <= 1 + overlap.AHEAD * BATCH
  made.close()


def test_what_a_thread_raises_ends_the_stream():
  def prepare(example):
    raise RuntimeError("a bug")

  with pytest.raises(RuntimeError, match="a bug"):
    run(range(9), prepare=prepare)


def test_times_say_which_step_limits():
  def decode(example):
    time.sleep(0.02)
    return [overlap.Prepared(0, example)]

  _, _, seconds = run(range(24), prepare=decode)
  assert overlap.limits(seconds).startswith("decode limits")

  def start(group, values):
    def finish():
      time.sleep(0.05)
      return values

    return finish

  _, _, seconds = run(range(24), start=start)
  assert overlap.limits(seconds).startswith("device limits")
  assert seconds["device"] >= 0.25


def test_a_pass_over_a_stream_notes_keys_and_licences(tmp_path):
  rows = [{"key": str(i), "licence": f"CC{i % 2}", "n": i} for i in range(9)]
  source = passes.Piece("train", 0, 1, lambda: iter(rows), len(rows))

  def late(examples):
    for example in list(examples):
      if example["n"] % 3:
        yield ({"key": example["key"]},)
      else:
        yield (passes.Reject("divisible"),)

  progress = []
  (counts,) = passes.fill(
    [passes.Output(tmp_path, {"key": "text"}, {})],
    name="toy",
    stage="late",
    pieces=[overlap.piece(source, late)],
    fn=overlap.results,
    batch_size=2,
    inputs=[],
    progress=progress.append,
  )
  assert (counts.read, counts.kept) == (9, 6)
  assert counts.rejected == {"divisible": 3}
  assert counts.licences == {"CC0": 3, "CC1": 3}
  assert sum(progress) == 9
  lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
  assert [json.loads(line)["where"] for line in lines] == ["0", "3", "6"]
