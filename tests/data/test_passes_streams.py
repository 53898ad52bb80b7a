# SPDX-License-Identifier: Apache-2.0
"""Passes whose function takes a stream and answers late."""

import pytest
import toy_pass

from cc_jax.data import passes


def late(examples):
  """The results of `toy_pass.vectors`, three examples behind."""
  held = []
  for example in examples:
    held += toy_pass.vectors([example])
    if len(held) > 3:
      yield held.pop(0)
  yield from held


def stream(folder, fn=late, **changes):
  return toy_pass.run(folder, fn=fn, streams=True, **changes)


def test_a_stream_writes_what_batches_write(tmp_path):
  expected = toy_pass.run(tmp_path / "batches")
  assert stream(tmp_path / "stream") == expected
  assert toy_pass.contents(tmp_path / "stream") == toy_pass.contents(
    tmp_path / "batches"
  )


def test_progress_counts_every_record_once(tmp_path):
  seen = []
  counts = stream(tmp_path, progress=seen.append)
  assert sum(seen) == counts.read


@pytest.mark.parametrize(
  "fn",
  [
    lambda examples: list(late(examples))[:-1],
    lambda examples: [*late(examples), passes.Reject("one too many")],
  ],
)
def test_another_number_of_results_is_an_error(tmp_path, fn):
  with pytest.raises(ValueError, match="another number of results"):
    stream(tmp_path, lambda examples: iter(fn(examples)))


def test_a_side_folder_keeps_every_record(tmp_path):
  with pytest.raises(ValueError, match="must keep every record"):
    stream(tmp_path, keep_all=True)
