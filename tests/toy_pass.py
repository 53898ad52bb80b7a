# SPDX-License-Identifier: Apache-2.0
"""A small pass with rejects, for tests and for the processes they kill."""

import contextlib
import pathlib

import numpy as np

from cc_jax.data import drafts, passes

SPECS = {"key": "text", "licence": "text", "vector": ("float32", (3,))}
CODE = {"revision": "r", "packages": {}}
# Numbers of records in each shard of each split.
LENGTHS = {"train": (7, 0, 5), "validation": (4,)}


def read(split, start, count):
  """Yields `count` examples; every fifth record cannot be read."""
  for i in range(start, start + count):
    if i % 5 == 4:
      yield passes.Reject("unreadable", f"line {i}", "no image")
    else:
      yield {"key": f"{split}{i}", "licence": f"CC{i % 2}", "number": i}


def pieces():
  made = []
  for split, lengths in LENGTHS.items():
    for shard, count in enumerate(lengths):
      make = lambda s=split, i=10 * shard, n=count: read(s, i, n)
      made.append(passes.Piece(split, shard, len(lengths), make, count))
  return made


def vectors(batch):
  """Squares the numbers; refuses those that three divides."""
  out = []
  for x in batch:
    vector = np.full(3, x["number"] ** 2, np.float32)
    kept = {"key": x["key"], "licence": x["licence"], "vector": vector}
    refused = passes.Reject("divisible", detail=str(x["number"]))
    out.append(kept if x["number"] % 3 else refused)
  return out


def run(folder, **changes):
  settings = {
    "name": "toy",
    "stage": "square",
    "features": SPECS,
    "pieces": pieces(),
    "fn": vectors,
    "batch_size": 2,
    "config": {"power": 2, "size": {"side": 3}},
    "inputs": ["list.jsonl"],
    "weights": {"vector": "ab" * 32},
    "code": CODE,
  }
  return passes.run(folder, **(settings | changes))


@contextlib.contextmanager
def stopped(monkeypatch, shards):
  """Stops a pass in the first record of a shard, after so many of them."""
  begin, begun = drafts.begin, []

  @contextlib.contextmanager
  def some(*args):
    begun.append(args)
    with begin(*args) as add:

      def write(read, made):
        if len(begun) > shards:
          raise KeyboardInterrupt
        add(read, made)

      yield write

  with monkeypatch.context() as patch:
    patch.setattr(drafts, "begin", some)
    yield


def contents(folder):
  """Returns the bytes of every file below a folder."""
  folder = pathlib.Path(folder)
  files = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}
