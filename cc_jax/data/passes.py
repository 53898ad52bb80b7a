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
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import itertools
import os
from typing import Any, NamedTuple

from cc_jax.core import files, versions
from cc_jax.data import aligned, attribution, ledger, records, shards, tally


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


Progress = Callable[[int], Any]
# Takes a function that makes the shard of a piece, and the pieces.
Runner = Callable[[Callable[[Piece], None], Sequence[Piece]], None]


def run(
  folder: str | os.PathLike[str],
  *,
  name: str,
  stage: str,
  features: Mapping[str, records.Spec],
  pieces: Sequence[Piece],
  fn: Callable[[list[Any]], Sequence[Any]],
  batch_size: int,
  config: Mapping[str, Any],
  inputs: Sequence[Any],
  weights: Mapping[str, str] | None = None,
  keep_all: bool = False,
  attribute: bool = False,
  flags: str | None = None,
  code: Mapping[str, Any] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  progress: Progress | None = None,
  runner: Runner | None = None,
) -> tally.Counts:
  """Maps `fn` over the pieces and writes a dataset; finishes what was begun.

  Args:
    folder: of the output, local or `gs://`.
    name: of the dataset, the first part of its shards' names.
    stage: that runs the pass.
    features: what `fn` returns, as in data/records.py.
    pieces: the whole pass, the same on every process.
    fn: takes a list of at most `batch_size` examples and returns a list of the
      same length, of examples and rejects. Batches are made in order and do not
      cross shards; the last one of a shard may be shorter. What it raises is a
      bug and ends the pass.
    batch_size: how many examples `fn` takes at once.
    config: whatever else decides what is written; JSON values.
    inputs: what the pieces read, JSON values; `inputs()` for datasets.
    weights: the SHA-256 of the weights that made each feature.
    keep_all: for a side folder, which must stay aligned with its input: a
      reject, or a `key` other than the input's, is an error.
    attribute: whether to write data/attribution.py's file beside the shards.
    flags: a feature, a list of texts, of which each is counted.
    code: recorded as what wrote the shards; `versions.code()` when None.
    process_index: this process, of
    process_count: processes that run the same pass on the same folder.
    progress: called with a number of records each time so many are done.
    runner: makes the shards of the pieces that it is given, in any order and
      on any machine; None makes them here, one after another.

  Returns:
    tally.Counts of the shards of this process.

  Raises:
    ValueError: if the folder holds something else, or was begun with other
      settings; if `fn` returns another number of results than it got, or an
      example that does not fit `features`; if the runner has made a shard where
      this process does not see it.
  """
  folder = os.fspath(folder)
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}; expected 1 or more")
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index={process_index} of process_count={process_count}; "
      "expected an index from 0 to one less than the count"
    )
  order = _order(pieces)
  fields = records.fields(features)
  for piece in order:
    shards.filename(name, piece.split, piece.index, piece.count)
  settings = {
    "stage": stage,
    "name": name,
    "features": {field.name: str(field) for field in fields},
    "splits": {piece.split: piece.count for piece in order},
    "batch_size": batch_size,
    "config": dict(config),
    "inputs": list(inputs),
    "weights": dict(sorted((weights or {}).items())),
  }
  if attribute:
    settings["attribution"] = list(attribution.COLUMNS)
  if flags:
    settings["flags"] = flags
  book = ledger.begin(folder, settings)
  code = dict(versions.code() if code is None else code)
  progress = progress or (lambda count: None)

  own = order[process_index::process_count]
  notes = {piece: _notes(book, piece) for piece in own}
  for note in filter(None, notes.values()):
    progress(note["read"])
  waiting = [piece for piece, note in notes.items() if note is None]
  one = functools.partial(
    make, book, fields, fn, batch_size=batch_size, keep_all=keep_all, code=code
  )
  if runner is None:
    for piece in waiting:
      one(piece, progress=progress)
  elif waiting:
    runner(one, waiting)
  for piece in waiting:
    notes[piece] = _notes(book, piece)
    if notes[piece] is None:
      raise ValueError(
        f"shard {piece.index} of {piece.split} was made, but not in {folder} "
        "as it is seen here; name a folder that all machines share"
      )
    if runner is not None:
      progress(notes[piece]["read"])
  complete = ledger.finish(book, fields)
  return tally.Counts(
    **ledger.total(list(notes.values())),
    shards=len(waiting),
    skipped=len(own) - len(waiting),
    complete=complete,
  )


def make(
  book: ledger.Ledger,
  fields: Sequence[records.Field],
  fn: Callable[[list[Any]], Sequence[Any]],
  piece: Piece,
  *,
  batch_size: int,
  keep_all: bool,
  code: Mapping[str, Any],
  progress: Progress = lambda count: None,
) -> None:
  """Writes one shard and its notes, unless they are there; see `run`.

  Any process may call it, several at once and again after one was killed: all
  write the same bytes.
  """
  if _notes(book, piece) is not None:
    return
  entries = _map(piece, fn, batch_size, keep_all, progress)
  name = book.settings["name"]
  flags = book.settings.get("flags")
  note, owners = _write(book.folder, name, piece, fields, entries, flags)
  if "attribution" in book.settings:
    place = ledger.attribution_path(book, piece.split, piece.index)
    attribution.write(place, owners)
  ledger.save(book, piece.split, piece.index, {"code": code, **note})


def _notes(book: ledger.Ledger, piece: Piece) -> dict[str, Any] | None:
  return ledger.load(book, piece.split, piece.index)


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
  fn: Callable[[list[Any]], Sequence[Any]],
  batch_size: int,
  keep_all: bool,
  progress: Progress,
) -> Iterator[tuple[Any, Any]]:
  """Yields (input, result) for what a piece reads, in order, batch by batch."""
  # A reject of the reader takes its place among the others and no place in a
  # batch, so that batches are full.
  held: list[Any] = []
  size = 0

  def mapped() -> Iterator[tuple[Any, Any]]:
    batch = [entry for entry in held if not isinstance(entry, Reject)]
    results = fn(batch) if batch else []
    if len(results) != len(batch):
      raise ValueError(
        f"the function of the pass returned {len(results)} results for "
        f"{len(batch)} examples; expected as many"
      )
    results = iter(results)
    for entry in held:
      result = entry if isinstance(entry, Reject) else next(results)
      if keep_all:
        _check_kept(entry, result)
      yield entry, result

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
  if result.get("key") != _of(entry, "key"):
    raise ValueError(
      f"a side folder must keep the keys of its input; expected "
      f"{entry.get('key')!r}, got {result.get('key')!r}"
    )


def _of(entry: Any, field: str) -> Any:
  """Returns a field of what a piece yields, a dict or a tuple with names."""
  if isinstance(entry, Mapping):
    return entry.get(field)
  return getattr(entry, field, None)


def _write(
  folder: str,
  name: str,
  piece: Piece,
  fields: Sequence[records.Field],
  entries: Iterator[tuple[Any, Any]],
  flags: str | None,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
  """Writes one shard; returns its counts and rejects, and its attribution."""
  rejects: list[dict[str, Any]] = []
  owners: list[dict[str, str]] = []
  licences: collections.Counter[str] = collections.Counter()
  flagged: collections.Counter[str] = collections.Counter()
  number = itertools.count()

  def kept() -> Iterator[records.Example]:
    for entry, result in entries:
      index = next(number)
      if not isinstance(result, Reject):
        licence = result.get("licence") or _of(entry, "licence")
        if licence:
          licences[licence] += 1
        if flags:
          flagged.update(result[flags])
        owners.append(attribution.row(result))
        yield result
        continue
      where = result.where or _of(entry, "where") or _of(entry, "key") or ""
      rejects.append(
        {
          "split": piece.split,
          "shard": piece.index,
          "record": index,
          **result._replace(where=where)._asdict(),
        }
      )

  file = shards.filename(name, piece.split, piece.index, piece.count)
  count, size = shards.write(os.path.join(folder, file), fields, kept())
  read = next(number)
  if count + len(rejects) != read:
    raise AssertionError(f"{file}: {count} + {len(rejects)} != {read}")
  reasons = collections.Counter(reject["reason"] for reject in rejects)
  counted = {"flags": dict(sorted(flagged.items()))} if flags else {}
  return {
    "read": read,
    "kept": count,
    "rejected": dict(sorted(reasons.items())),
    "licences": dict(sorted(licences.items())),
    **counted,
    "bytes": size,
    "rejects": rejects,
  }, owners
