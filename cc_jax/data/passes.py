# SPDX-License-Identifier: Apache-2.0
"""One pass over a dataset: a function mapped over shards, resumable.

A pass writes a dataset folder (data/shards.py) from pieces, one for each shard
of its output. A shard is written under another name and renamed, then notes on
it are written (data/ledger.py): a shard with notes is done and is not made
again. When all are done, whichever process sees it writes rejects.jsonl,
provenance.json, features.json and last dataset_info.json. Processes share
nothing but the folder: process p makes the pieces p, p + P, ... A pass that was
killed and run again leaves the same bytes as one that was not.

Records are kept or rejected, never lost: kept + rejected = read.

A pass may fill several folders at once, each as if it were the only one: what
is kept for one may be rejected for another, and each is finished by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import os
from typing import Any, NamedTuple

from cc_jax.core import files, versions
from cc_jax.data import (
  aligned,
  attribution,
  drafts,
  ledger,
  records,
  shards,
  tally,
)


class Reject(NamedTuple):
  """A record that is left out.

  Attributes:
    reason: a short fixed phrase; rejects are counted by it.
    where: the key, path or line that finds the record again.
    detail: what a person wants to know besides.
  """

  reason: str
  where: str = ""
  detail: str = ""


class Piece(NamedTuple):
  """What one shard of the output is made from.

  Attributes:
    split: of the output.
    index: number of the shard in its split.
    count: number of shards in the split.
    read: yields what `fn` of the pass takes, dicts or tuples with names, and
      rejects for what cannot be read; called again, it yields the same.
    length: how many it will yield, for progress bars; None when unknown.
  """

  split: str
  index: int
  count: int
  read: Callable[[], Iterator[Any]]
  length: int | None = None


def pieces(datasets: Sequence[shards.Dataset]) -> list[Piece]:
  """Returns a piece for each shard of a dataset, or of aligned ones.

  The output then has the same splits and shards; it is aligned with its input
  when nothing is rejected (see `keep_all` of `run`).

  Raises:
    ValueError: if the datasets are not aligned.
  """
  aligned.check(datasets)

  def piece(split: str, index: int, lengths: Sequence[int]) -> Piece:
    read = functools.partial(aligned.read, tuple(datasets), split, index)
    return Piece(split, index, len(lengths), read, lengths[index])

  return [
    piece(split, index, lengths)
    for split, lengths in datasets[0].splits.items()
    for index in range(len(lengths))
  ]


def inputs(datasets: Sequence[shards.Dataset]) -> list[dict[str, str]]:
  """Returns what `run` records of the datasets that a pass reads."""
  return [
    {
      "folder": dataset.folder,
      "provenance": files.sha256(files.to_json(dataset.provenance).encode()),
    }
    for dataset in datasets
  ]


class Output(NamedTuple):
  """A folder that a pass fills.

  Attributes:
    folder: local or `gs://`.
    features: what is written to it, as in data/records.py.
    config: whatever else decides what is written; JSON values.
    weights: the SHA-256 of the weights that made each feature.
  """

  folder: str | os.PathLike[str]
  features: Mapping[str, records.Spec]
  config: Mapping[str, Any]
  weights: Mapping[str, str] | None = None


# Its ledger, and what its records hold.
Target = tuple[ledger.Ledger, Sequence[records.Field]]
Progress = Callable[[int], Any]
# Takes a function that makes the shards of a piece, and the pieces.
Runner = Callable[[Callable[[Piece], None], Sequence[Piece]], None]


def run(
  folder: str | os.PathLike[str],
  *,
  features: Mapping[str, records.Spec],
  fn: Callable[[list[Any]], Sequence[Any]],
  config: Mapping[str, Any],
  weights: Mapping[str, str] | None = None,
  **how: Any,
) -> tally.Counts:
  """Maps `fn` over pieces and writes a dataset; finishes what was begun.

  Args:
    folder: of the only `Output`, which is of these
    features: and
    config: and
    weights:
    fn: returns the one result of each example.
    **how: as of `fill`, which also says what is raised.
  """
  output = Output(folder, features, config, weights)
  return fill([output], fn=functools.partial(_alone, fn), **how)[0]


def _alone(
  fn: Callable[[list[Any]], Sequence[Any]], batch: list[Any]
) -> list[tuple[Any]]:
  return [(result,) for result in fn(batch)]


def fill(
  outputs: Sequence[Output],
  *,
  name: str,
  stage: str,
  pieces: Sequence[Piece],
  fn: Callable[[list[Any]], Sequence[Sequence[Any]]],
  batch_size: int,
  inputs: Sequence[Any],
  keep_all: bool = False,
  attribute: bool = False,
  flags: str | None = None,
  code: Mapping[str, Any] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  progress: Progress | None = None,
  runner: Runner | None = None,
) -> list[tally.Counts]:
  """`run` with several folders, which are made from the pieces together.

  Each is as `run` would have made it, and either goes on with what the other
  began. A piece is read when a shard is missing in any of them.

  Args:
    outputs: the folders.
    name: of the datasets, the first part of their shards' names.
    stage: that runs the pass.
    pieces: the whole pass, the same on every process.
    fn: takes a list of at most `batch_size` examples and returns a list of the
      same length: for each a result an output, an example or a reject. Batches
      are made in order and do not cross shards; the last one of a shard may be
      shorter. What it raises is a bug and ends the pass.
    batch_size: how many examples `fn` takes at once.
    inputs: what the pieces read, JSON values; `inputs()` for datasets.
    keep_all: for side folders, which must stay aligned with their input: a
      reject, or a `key` other than the input's, is an error.
    attribute: whether to write data/attribution.py's file beside the shards.
    flags: a feature, a list of texts, of which each is counted.
    code: recorded as what wrote the shards; `versions.code()` when None.
    process_index: this process, of
    process_count: processes that run the same pass on the same folders.
    progress: called with a number of records each time so many are done.
    runner: makes the shards of the pieces that it is given, in any order and
      on any machine; None makes them here, one after another.

  Returns:
    For each output, tally.Counts of the shards of this process.

  Raises:
    ValueError: if a folder holds something else, or was begun with other
      settings; if `fn` returns another number of results than it got, or an
      example that does not fit its features; if the runner has made a shard
      where this process does not see it.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}; expected 1 or more")
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index={process_index} of process_count={process_count}; "
      "expected an index from 0 to one less than the count"
    )
  order = _order(pieces)
  for piece in order:
    shards.filename(name, piece.split, piece.index, piece.count)
  # In this order on disk; None is what each output has of its own.
  settings = {
    "stage": stage,
    "name": name,
    "features": None,
    "splits": {piece.split: piece.count for piece in order},
    "batch_size": batch_size,
    "config": None,
    "inputs": list(inputs),
    "weights": None,
  }
  if attribute:
    settings["attribution"] = list(attribution.COLUMNS)
  if flags:
    settings["flags"] = flags
  targets = [_begin(output, settings) for output in outputs]
  code = dict(versions.code() if code is None else code)
  progress = progress or (lambda count: None)

  own = order[process_index::process_count]
  notes = [{piece: _note(target, piece) for piece in own} for target in targets]
  waiting = [piece for piece in own if any(n[piece] is None for n in notes)]
  wrote = [sum(note is None for note in n.values()) for n in notes]
  for piece in own:
    if piece not in waiting:
      progress(notes[0][piece]["read"])
  one = functools.partial(
    make, targets, fn, batch_size=batch_size, keep_all=keep_all, code=code
  )
  if runner is None:
    for piece in waiting:
      one(piece, progress=progress)
  elif waiting:
    runner(one, waiting)
  for piece in waiting:
    for target, found in zip(targets, notes, strict=True):
      found[piece] = _note(target, piece)
      if found[piece] is None:
        raise ValueError(
          f"shard {piece.index} of {piece.split} was made, but not in "
          f"{target[0].folder} as it is seen here; name a folder that all "
          "machines share"
        )
    if runner is not None:
      progress(notes[0][piece]["read"])
  return [
    tally.Counts(
      **ledger.total(list(found.values())),
      shards=count,
      skipped=len(own) - count,
      complete=ledger.finish(*target),
    )
    for target, found, count in zip(targets, notes, wrote, strict=True)
  ]


def make(
  targets: Sequence[Target],
  fn: Callable[[list[Any]], Sequence[Sequence[Any]]],
  piece: Piece,
  *,
  batch_size: int,
  keep_all: bool,
  code: Mapping[str, Any],
  progress: Progress = lambda count: None,
) -> None:
  """Writes the shards of one piece that are not there yet; see `fill`.

  Any process may call it, several at once and again after one was killed: all
  write the same bytes.
  """
  wanted = [i for i, x in enumerate(targets) if _note(x, piece) is None]
  if not wanted:
    return
  place = piece.split, piece.index, piece.count
  with contextlib.ExitStack() as stack:
    writes = [
      stack.enter_context(drafts.begin(*targets[i], *place, code))
      for i in wanted
    ]
    entries = _map(piece, fn, len(targets), batch_size, keep_all, progress)
    for entry, results in entries:
      for i, write in zip(wanted, writes, strict=True):
        write(entry, results[i])


def _begin(output: Output, settings: Mapping[str, Any]) -> Target:
  """Begins a folder with the settings of all, and its own."""
  fields = records.fields(output.features)
  own = {
    "features": {field.name: str(field) for field in fields},
    "config": dict(output.config),
    "weights": dict(sorted((output.weights or {}).items())),
  }
  return ledger.begin(os.fspath(output.folder), {**settings, **own}), fields


def _note(target: Target, piece: Piece) -> dict[str, Any] | None:
  return ledger.load(target[0], piece.split, piece.index)


def _order(pieces: Sequence[Piece]) -> list[Piece]:
  """Returns the pieces split by split, checked to be all there."""
  splits = dict.fromkeys(piece.split for piece in pieces)
  order = []
  for split in splits:
    own = sorted((p for p in pieces if p.split == split), key=lambda p: p.index)
    expected = [(i, len(own)) for i in range(len(own))]
    if [(piece.index, piece.count) for piece in own] != expected:
      raise ValueError(
        f"split {split!r} has pieces {[p.index for p in own]} of "
        f"{sorted({p.count for p in own})}; expected each of 0 to "
        f"{len(own) - 1} once"
      )
    order += own
  if not order:
    raise ValueError("a pass over no pieces; expected at least one input shard")
  return order


def _map(
  piece: Piece,
  fn: Callable[[list[Any]], Sequence[Sequence[Any]]],
  outputs: int,
  batch_size: int,
  keep_all: bool,
  progress: Progress,
) -> Iterator[tuple[Any, Sequence[Any]]]:
  """Yields (input, results), in the order they are read, batch by batch."""
  # A reject of the reader takes its place among the others and no place in a
  # batch, so that batches are full.
  held: list[Any] = []
  size = 0

  def mapped() -> Iterator[tuple[Any, Sequence[Any]]]:
    batch = [entry for entry in held if not isinstance(entry, Reject)]
    results = fn(batch) if batch else []
    if len(results) != len(batch):
      raise ValueError(
        f"the function of the pass returned {len(results)} results for "
        f"{len(batch)} examples; expected as many"
      )
    results = iter(results)
    for entry in held:
      refused = isinstance(entry, Reject)
      found = (entry,) * outputs if refused else next(results)
      for result in found if keep_all else ():
        _check_kept(entry, result)
      yield entry, found

  for entry in piece.read():
    held.append(entry)
    size += not isinstance(entry, Reject)
    if size == batch_size:
      yield from mapped()
      progress(len(held))
      held, size = [], 0
  if held:
    yield from mapped()
    progress(len(held))


def _check_kept(entry: Any, result: Any) -> None:
  """Checks that a record of a side folder stays beside its own."""
  if isinstance(result, Reject):
    raise ValueError(
      f"a side folder must keep every record, but {result.where!r} was "
      f"rejected ({result.reason}); give it an empty value instead"
    )
  if result.get("key") != drafts.of(entry, "key"):
    raise ValueError(
      f"a side folder must keep the keys of its input; expected "
      f"{drafts.of(entry, 'key')!r}, got {result.get('key')!r}"
    )
