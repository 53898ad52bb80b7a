# SPDX-License-Identifier: Apache-2.0
"""Passes that fill two folders at once, each as if it were the only one."""

import os

import pytest
import toy_pass

from cc_jax.data import passes

SHARED = dict(
  name="toy",
  stage="square",
  pieces=toy_pass.pieces(),
  batch_size=2,
  inputs=["list.jsonl"],
  code=toy_pass.CODE,
)
KEYS = {"key": "text", "licence": "text"}


def outputs(folder):
  """One that refuses what three divides, one that refuses what two does."""
  return [
    passes.Output(folder / "a", toy_pass.SPECS, {"by": 3}, {"vector": "ab"}),
    passes.Output(folder / "b", KEYS, {"by": 2}),
  ]


def odd(batch):
  return [
    {name: x[name] for name in KEYS}
    if x["number"] % 2
    else passes.Reject("even")
    for x in batch
  ]


def both(batch):
  return list(zip(toy_pass.vectors(batch), odd(batch), strict=True))


def fill(folder, **changes):
  return passes.fill(outputs(folder), **(SHARED | {"fn": both} | changes))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The contents of both, each by a pass of its own."""
  folder = tmp_path_factory.mktemp("alone")
  for output, fn in zip(outputs(folder), (toy_pass.vectors, odd), strict=True):
    place, features, config, weights = output
    passes.run(
      place, features=features, config=config, weights=weights, fn=fn, **SHARED
    )
  return toy_pass.contents(folder)


def test_each_folder_is_as_its_own_pass_makes_it(tmp_path, alone):
  counts = fill(tmp_path)
  assert toy_pass.contents(tmp_path) == alone
  assert [one.rejected for one in counts] == [
    {"divisible": 6, "unreadable": 2},
    {"even": 7, "unreadable": 2},
  ]
  for one in counts:
    assert one.kept + sum(one.rejected.values()) == one.read == 16
    assert one.complete


def test_a_pass_that_stops_at_any_rename_goes_on(tmp_path, alone, monkeypatch):
  replace, number, stopped = os.replace, 0, True
  while stopped:
    number += 1
    folder, calls = tmp_path / str(number), []

    def stopping(source, target, calls=calls, number=number):
      calls.append(target)
      if len(calls) == number:
        raise KeyboardInterrupt
      replace(source, target)

    with monkeypatch.context() as patch:
      patch.setattr(os, "replace", stopping)
      try:
        fill(folder)
        stopped = False
      except KeyboardInterrupt:
        fill(folder)
    assert toy_pass.contents(folder) == alone
  # Of each: pass.json, a shard and its notes four times, and four at the end.
  assert number == 1 + 2 * (1 + 2 * 4 + 4)


def test_what_one_has_is_not_written_again(tmp_path, alone, monkeypatch):
  output = outputs(tmp_path)[1]
  passes.run(
    output.folder,
    features=output.features,
    config=output.config,
    fn=odd,
    process_index=1,
    process_count=2,
    **SHARED,
  )
  progress = []
  counts = fill(tmp_path, progress=progress.append)
  assert [(one.shards, one.skipped) for one in counts] == [(4, 0), (2, 2)]
  assert sum(progress) == 16
  assert toy_pass.contents(tmp_path) == alone


def test_other_settings_of_one_stop_both(tmp_path):
  fill(tmp_path)
  before = toy_pass.contents(tmp_path)
  changed = outputs(tmp_path)
  changed[1] = changed[1]._replace(config={"by": 5})
  with pytest.raises(ValueError, match=r"b was begun with config\.by=2; got 5"):
    passes.fill(changed, fn=both, **SHARED)
  assert toy_pass.contents(tmp_path) == before
