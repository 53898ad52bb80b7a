# SPDX-License-Identifier: Apache-2.0
"""Passes that are killed, run side by side, continued and refused."""

import json
import pathlib
import subprocess
import sys

import buckets
import pytest
import toy_pass

from cc_jax.core import files
from cc_jax.data import aligned, passes, shards


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The contents of a folder from a pass that nothing interrupted."""
  folder = tmp_path_factory.mktemp("straight") / "out"
  toy_pass.run(folder)
  return toy_pass.contents(folder)


def test_kept_and_rejected_are_all_that_was_read(tmp_path):
  counts = toy_pass.run(tmp_path / "out")
  assert counts.read == sum(
    sum(lengths) for lengths in toy_pass.LENGTHS.values()
  )
  assert counts.kept + sum(counts.rejected.values()) == counts.read
  assert counts.rejected == {"divisible": 6, "unreadable": 2}
  assert sum(counts.licences.values()) == counts.kept == 8
  assert (counts.shards, counts.skipped, counts.complete) == (4, 0, True)
  assert str(counts) == (
    "read 16, kept 8, rejected 8 (6 divisible, 2 unreadable); wrote 4 shards, "
    "skipped 0 as done"
  )
  dataset = shards.open(tmp_path / "out")
  assert dataset.splits == {"train": (3, 0, 3), "validation": (2,)}
  keys = [x["key"] for x in shards.read(dataset, "train", 0)]
  expected = [f"train{i}" for i in range(7) if i % 5 != 4 and i % 3]
  assert keys == expected


def test_rejects_are_listed_in_the_order_they_were_read(straight):
  lines = straight["rejects.jsonl"].decode().splitlines()
  rejects = [json.loads(line) for line in lines]
  assert len(rejects) == 8
  assert rejects[0] == {
    "split": "train",
    "shard": 0,
    "record": 0,
    "reason": "divisible",
    "where": "train0",
    "detail": "0",
  }
  assert rejects[2]["record"] == 4
  assert rejects[2]["where"] == "line 4"
  places = [(r["split"], r["shard"], r["record"]) for r in rejects]
  assert places == sorted(places)


def test_provenance_says_what_made_the_folder(straight):
  provenance = json.loads(straight["provenance.json"])
  assert provenance["stage"] == "square"
  assert provenance["config"] == {"power": 2, "size": {"side": 3}}
  assert provenance["inputs"] == ["list.jsonl"]
  assert provenance["weights"] == {"vector": "ab" * 32}
  assert provenance["code"] == [toy_pass.CODE]
  assert provenance["counts"]["read"] == 16
  assert provenance["counts"]["rejected"] == {"divisible": 6, "unreadable": 2}


def test_batches_are_full_and_do_not_cross_shards(tmp_path):
  sizes = []

  def fn(batch):
    sizes.append(len(batch))
    return toy_pass.vectors(batch)

  toy_pass.run(tmp_path / "out", fn=fn, batch_size=3)
  # 6 of 7, 0 of 0, 4 of 5 and 4 of 4 records can be read.
  assert sizes == [3, 3, 3, 1, 3, 1]


def test_a_complete_folder_is_left_alone(tmp_path, straight):
  toy_pass.run(tmp_path / "out")

  def fail(_):
    raise AssertionError("run again")

  seen = []
  counts = toy_pass.run(tmp_path / "out", fn=fail, progress=seen.append)
  assert (counts.shards, counts.skipped, counts.complete) == (0, 4, True)
  assert counts.read == sum(seen) == 16
  assert toy_pass.contents(tmp_path / "out") == straight


def test_progress_counts_every_record(tmp_path):
  seen = []
  toy_pass.run(tmp_path / "out", progress=seen.append)
  assert sum(seen) == 16
  assert len(seen) > 4


def test_processes_make_together_what_one_makes_alone(tmp_path, straight):
  folder = tmp_path / "out"
  first = toy_pass.run(folder, process_index=1, process_count=2)
  assert not first.complete
  assert "other processes are not done" in str(first)
  with pytest.raises(ValueError, match="is unfinished"):
    shards.open(folder)
  second = toy_pass.run(folder, process_index=0, process_count=2)
  assert second.complete
  assert first.read + second.read == 16
  assert toy_pass.contents(folder) == straight


def test_a_pass_goes_on_with_another_number_of_processes(tmp_path, straight):
  toy_pass.run(tmp_path / "out", process_index=2, process_count=3)
  counts = toy_pass.run(tmp_path / "out")
  assert (counts.shards, counts.skipped) == (3, 1)
  assert toy_pass.contents(tmp_path / "out") == straight


# Runs passes in forked children, so that killing many costs little. Nothing
# starts a thread before the fork.
CHILDREN = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import toy_pass

def child(folder, **changes):
  pid = os.fork()
  if pid == 0:
    toy_pass.run(folder, **changes)
    os._exit(0)
  return pid

def slow(batch):
  time.sleep(0.004)
  return toy_pass.vectors(batch)
"""


def children(script, *arguments):
  here = str(pathlib.Path(__file__).parents[1])
  command = [sys.executable, "-c", CHILDREN + script, here, *arguments]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_a_pass_killed_at_random_moments_makes_the_same_bytes(
  tmp_path, straight
):
  out = children(
    """
for seed in range(5):
  moments, kills, status = random.Random(seed), 0, None
  while status != 0:
    pid = child(f"{sys.argv[2]}/{seed}", fn=slow)
    time.sleep(moments.uniform(0, 0.03 + 0.005 * kills))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    kills += status != 0
    assert status in (0, signal.SIGKILL), status
  print(kills)
""",
    str(tmp_path),
  )
  assert sum(int(kills) for kills in out.split()) >= 10
  for seed in range(5):
    assert toy_pass.contents(tmp_path / str(seed)) == straight


def test_a_pass_killed_around_any_rename_makes_the_same_bytes(
  tmp_path, straight
):
  out = children(
    """
replace = os.replace
def killing(number, after):
  calls = []
  def one(source, target):
    calls.append(target)
    if after:
      replace(source, target)
    if len(calls) > number:
      os.kill(os.getpid(), signal.SIGKILL)
    if not after:
      replace(source, target)
  return one

number, status = -1, None
while status != 0:
  number += 1
  for after in (False, True):
    folder = f"{sys.argv[2]}/{number}{after}"
    os.replace = killing(number, after)
    _, status = os.waitpid(child(folder), 0)
    os.replace = replace
    assert status in (0, signal.SIGKILL), status
    assert os.waitpid(child(folder), 0)[1] == 0
print(number)
""",
    str(tmp_path),
  )
  # pass.json, a shard and its notes four times, and four files at the end.
  assert int(out) == 1 + 2 * 4 + 4
  for folder in tmp_path.iterdir():
    assert toy_pass.contents(folder) == straight


def test_processes_at_the_same_time_make_the_same_bytes(tmp_path, straight):
  children(
    """
for attempt in range(5):
  folder = f"{sys.argv[2]}/{attempt}"
  pids = [
    child(folder, process_index=i, process_count=3) for i in range(3)
  ] + [child(folder, process_index=0, process_count=3)]
  for pid in pids:
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
""",
    str(tmp_path),
  )
  for attempt in range(5):
    assert toy_pass.contents(tmp_path / str(attempt)) == straight


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"config": {"power": 3, "size": {"side": 3}}}, "config.power=2; got 3"),
    ({"config": {"power": 2, "size": {}}}, "config.size.side=3; got None"),
    ({"weights": {"vector": "cd" * 32}}, "weights.vector='abab.*got 'cdcd"),
    ({"inputs": ["other.jsonl"]}, r"inputs=\['list.jsonl'\]; got \['other"),
    ({"stage": "cube"}, "stage='square'; got 'cube'"),
    ({"batch_size": 4}, "batch_size=2; got 4"),
    (
      {"features": {**toy_pass.SPECS, "x": "int32"}},
      "features.x=None; got 'int32",
    ),
    ({"pieces": toy_pass.pieces()[:3]}, "splits.validation=1; got None"),
  ],
)
def test_a_folder_is_not_continued_with_other_settings(
  tmp_path, changes, message
):
  toy_pass.run(tmp_path / "out", process_index=1, process_count=2)
  before = toy_pass.contents(tmp_path / "out")
  with pytest.raises(ValueError, match=f"was begun with {message}"):
    toy_pass.run(tmp_path / "out", **changes)
  assert toy_pass.contents(tmp_path / "out") == before


def test_other_code_may_continue_and_is_recorded(tmp_path):
  toy_pass.run(tmp_path / "out", process_index=0, process_count=2)
  new = {"revision": "s", "packages": {}}
  toy_pass.run(tmp_path / "out", code=new)
  assert shards.open(tmp_path / "out").provenance["code"] == [
    toy_pass.CODE,
    new,
  ]


def test_a_folder_with_other_files_is_refused(tmp_path):
  (tmp_path / "photo.jpg").write_bytes(b"")
  with pytest.raises(ValueError, match=r"it has photo\.jpg"):
    toy_pass.run(tmp_path)
  assert list(toy_pass.contents(tmp_path)) == ["photo.jpg"]


def test_another_number_of_results_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="returned 1 results for 2 examples"):
    toy_pass.run(tmp_path / "out", fn=lambda batch: toy_pass.vectors(batch)[:1])
  names = toy_pass.contents(tmp_path / "out")
  assert set(names) == {".pass/pass.json"}


def test_what_the_function_raises_ends_the_pass(tmp_path, straight):
  def fail(batch):
    if batch[0]["key"] == "train20":
      raise ZeroDivisionError
    return toy_pass.vectors(batch)

  with pytest.raises(ZeroDivisionError):
    toy_pass.run(tmp_path / "out", fn=fail)
  toy_pass.run(tmp_path / "out")
  assert toy_pass.contents(tmp_path / "out") == straight


def test_a_result_that_does_not_fit_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="example has the features"):
    toy_pass.run(tmp_path / "out", fn=lambda batch: batch)


@pytest.mark.parametrize(
  ("made", "message"),
  [
    ([], "no pieces"),
    (toy_pass.pieces()[1:], r"split 'train' has pieces \[1, 2\]"),
    (toy_pass.pieces() + toy_pass.pieces(), "expected each of 0 to 5 once"),
  ],
)
def test_pieces_that_are_not_all_there_are_an_error(tmp_path, made, message):
  with pytest.raises(ValueError, match=message):
    toy_pass.run(tmp_path / "out", pieces=made)


def caption(batch):
  return [{"key": x["key"], "caption": x["key"].upper()} for x in batch]


def side(folder, datasets, **changes):
  settings = {
    "stage": "caption",
    "features": {"key": "text", "caption": "text"},
    "pieces": passes.pieces(datasets),
    "inputs": passes.inputs(datasets),
    "fn": caption,
    "keep_all": True,
    "weights": {},
  }
  return toy_pass.run(folder, **(settings | changes))


def test_a_side_folder_is_aligned_with_its_input(tmp_path):
  toy_pass.run(tmp_path / "a")
  counts = side(tmp_path / "b", [shards.open(tmp_path / "a")])
  assert counts.kept == 8
  both = [tmp_path / "a", tmp_path / "b"]
  source = aligned.source([shards.open(x) for x in both], "train")
  assert source[3]["caption"] == source[3]["key"].upper()
  again = side(
    tmp_path / "c",
    [shards.open(folder) for folder in both],
    features={"key": "text", "length": "int32"},
    fn=lambda batch: [
      {"key": x["key"], "length": len(x["caption"])} for x in batch
    ],
  )
  assert again.kept == 8
  inputs = shards.open(tmp_path / "c").provenance["inputs"]
  assert [entry["folder"] for entry in inputs] == [str(x) for x in both]


def test_a_changed_input_is_noticed(tmp_path):
  toy_pass.run(tmp_path / "a")
  dataset = shards.open(tmp_path / "a")
  side(tmp_path / "b", [dataset], process_index=0, process_count=2)
  path = tmp_path / "a" / "provenance.json"
  path.write_text(path.read_text().replace("square", "cube"))
  with pytest.raises(ValueError, match="was begun with inputs="):
    side(tmp_path / "b", [shards.open(tmp_path / "a")])


def test_a_side_folder_keeps_every_record_and_key(tmp_path):
  toy_pass.run(tmp_path / "a")
  datasets = [shards.open(tmp_path / "a")]
  reject = lambda batch: [passes.Reject("no caption", "x") for _ in batch]
  with pytest.raises(ValueError, match="must keep every record, but 'x'"):
    side(tmp_path / "b", datasets, fn=reject)
  swap = lambda batch: caption(batch)[::-1]
  with pytest.raises(ValueError, match="must keep the keys of its input"):
    side(tmp_path / "b", datasets, fn=swap)


def test_a_pass_writes_to_a_bucket(monkeypatch, straight):
  folder = f"{buckets.make(monkeypatch)}/out"
  assert toy_pass.run(folder, process_index=1, process_count=2).shards == 2
  assert toy_pass.run(folder).skipped == 2
  for name, data in straight.items():
    assert files.path(f"{folder}/{name}").read_bytes() == data


def test_flags_of_records_are_counted_and_survive_a_resume(tmp_path):
  def flagged(batch):
    return [
      {"key": x["key"], "flags": ["odd"] * (x["number"] % 2)} for x in batch
    ]

  settings = dict(
    features={"key": "text", "flags": ("text", (None,))},
    fn=flagged,
    flags="flags",
    weights=None,
  )
  counts = toy_pass.run(tmp_path, **settings)
  assert counts.flags == {"odd": 7}
  assert str(counts).startswith(
    "read 16, kept 14, rejected 2 (2 unreadable), fl"
  )
  again = toy_pass.run(tmp_path, **settings)
  assert again.flags == counts.flags
  assert "flagged 7 odd;" in str(again)
  provenance = json.loads((tmp_path / "provenance.json").read_text())
  assert provenance["counts"]["flags"] == {"odd": 7}
