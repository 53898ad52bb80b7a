# SPDX-License-Identifier: Apache-2.0
"""Takes records out of finished datasets that stand beside each other.

The first folder leads: its attribution says which records an opt-out list
means. These go from it and from every side folder named, which keep their
shards; only shards that lose something are written again. Notes, rejects.jsonl,
counts and ATTRIBUTION.parquet then read as if the records had been rejected as
"opted_out" when they were first seen.

What is to go is written to removal.json before anything changes, in the leading
folder first, and is removed from there last. While a folder has the file,
nothing else opens it, so that nobody reads folders of which one is done and the
other is not. A removal that was killed is finished by the same command, with
the same bytes; one that forgot a side folder is finished by naming it.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import os
from typing import Any, NamedTuple

from array_record.python import array_record_module

from cc_jax.core import files
from cc_jax.data import attribution, ledger, opt_out, records, shards

# Of one shard: key -> {"licence", "why"}.
_Gone = Mapping[str, Mapping[str, str]]


class Counts(NamedTuple):
  """What was done: records removed by folder, and shards written again."""

  removed: Mapping[str, int]
  shards: int

  def __str__(self) -> str:
    each = ", ".join(f"{n} from {name}" for name, n in self.removed.items())
    return f"removed {each or 'nothing'}; wrote {self.shards} shards again"


def remove(
  folders: Sequence[str],
  listed: opt_out.OptOut,
  progress: Callable[[int], Any] | None = None,
) -> Counts:
  """Takes out what a list names; first finishes what was begun before.

  Args:
    folders: the leading dataset and side folders of it, those that others were
      made from before those made from them.
    listed: from data/opt_out.py.
    progress: called with 1 for each shard that is done.

  Raises:
    ValueError: no folders; one that no pass of cc_jax wrote or finished, or
      whose shards are not those of the first.
  """
  if not folders:
    raise ValueError("remove.folders is empty; expected a catalogue folder")
  progress = progress or (lambda count: None)
  journal = os.path.join(folders[0], shards.REMOVAL)
  done = []
  if files.path(journal).exists():
    done.append(_carry_out(files.read_json(journal), progress))
  plan = _plan(folders, listed)
  if any(plan["gone"].values()):
    done.append(_carry_out(plan, progress))
  removed: collections.Counter[str] = collections.Counter()
  for counts, _ in done:
    removed.update(counts)
  written = sum(count for _, count in done)
  return Counts(dict(removed), written)


def _plan(folders: Sequence[str], listed: opt_out.OptOut) -> dict[str, Any]:
  """What is to go: folder -> shard, as "train/3" -> key -> why."""
  leading, *beside = [shards.open(folder) for folder in folders]
  books = [ledger.resume(folder) for folder in folders]
  named, before = {}, {}
  for split, lengths in leading.splits.items():
    for shard in range(len(lengths)):
      gone = {}
      for row in ledger.owners(books[0], leading, split, shard):
        if why := opt_out.match(listed, row):
          gone[row["key"]] = {"licence": row["licence"], "why": why}
      named[f"{split}/{shard}"] = gone
      before[f"{split}/{shard}"] = _gone_before(books[0], split, shard)
  made = {leading.folder: {x: gone for x, gone in named.items() if gone}}
  for dataset in beside:
    expected, got = (
      {split: len(lengths) for split, lengths in one.splits.items()}
      for one in (leading, dataset)
    )
    if got != expected:
      raise ValueError(
        f"{dataset.folder} has the shards {got}; expected {expected}, as "
        f"{leading.folder} has, beside which it stands"
      )
    made[dataset.folder] = {}
    for place, gone in named.items():
      split, shard = _place(place)
      # Whoever has lost as many already needs no second look.
      if before[place] and (
        dataset.splits[split][shard] != leading.splits[split][shard]
      ):
        gone = before[place] | gone
      if gone:
        made[dataset.folder][place] = gone
  return {
    "list": listed.digest,
    "gone": made,
    "provenance": {d.folder: _digest(d.provenance) for d in (leading, *beside)},
  }


def _gone_before(
  book: ledger.Ledger, split: str, shard: int
) -> dict[str, dict[str, str]]:
  """What an earlier removal took out of a shard."""
  note = ledger.load(book, split, shard)
  return {
    reject["where"]: {"licence": reject["licence"], "why": reject["detail"]}
    for reject in note["rejects"]
    if reject["reason"] == opt_out.REASON and "licence" in reject
  }


def _place(text: str) -> tuple[str, int]:
  split, _, shard = text.partition("/")
  return split, int(shard)


def _digest(value: Any) -> str:
  return files.sha256(files.to_json(value).encode())


def _carry_out(
  plan: Mapping[str, Any], progress: Callable[[int], Any]
) -> tuple[dict[str, int], int]:
  """Does what a plan says, or what is left of it."""
  folders = list(plan["gone"])
  for folder in folders:
    files.write_json(os.path.join(folder, shards.REMOVAL), plan)
  number = _digest(plan)
  removed, written = {}, 0
  changed: dict[str, str] = {}  # Hashes of provenance: before -> after.
  for folder, places in plan["gone"].items():
    dataset = shards.open(folder, removing=True)
    book = ledger.resume(folder)
    removed[folder] = 0
    for text, gone in places.items():
      place = _place(text)
      note = _note(book, dataset, *place, gone, number)
      removed[folder] += note.get("removed", {}).get(number, 0)
      written += _shard(book, dataset, *place, gone, note)
      progress(1)
    book = ledger.change(book, _inputs(book.settings, changed))
    ledger.describe(book, dataset.fields)
    now = files.read_json(os.path.join(folder, shards.PROVENANCE))
    changed[plan["provenance"][folder]] = _digest(now)
  for folder in reversed(folders):
    for place in (folder, os.path.join(folder, ledger.FOLDER)):
      files.sweep(place)
    files.path(os.path.join(folder, shards.REMOVAL)).unlink(missing_ok=True)
  return removed, written


def _inputs(
  settings: Mapping[str, Any], changed: Mapping[str, str]
) -> dict[str, Any]:
  """Settings with the new hashes of the folders that they were made from."""

  def one(entry: Any) -> Any:
    if not isinstance(entry, dict) or "provenance" not in entry:
      return entry
    before = entry["provenance"]
    return entry | {"provenance": changed.get(before, before)}

  return {**settings, "inputs": [one(entry) for entry in settings["inputs"]]}


def _read(path: str) -> Iterator[bytes]:
  """The records of a shard as they are stored."""
  with shards.whole(path):
    opened = array_record_module.ArrayRecordReader(path)
    try:
      for _ in range(opened.num_records()):
        yield opened.read()
    finally:
      opened.close()


def _note(
  book: ledger.Ledger,
  dataset: shards.Dataset,
  split: str,
  shard: int,
  gone: _Gone,
  number: str,
) -> dict[str, Any]:
  """Writes the notes that a shard will have, before the shard itself.

  Only a shard that is whole can say what is taken from it.
  """
  note = ledger.peek(book, split, shard)
  if number in note.get("removed", {}):
    return note
  flags = book.settings.get("flags")
  decode = records.decoder(dataset.fields, ["key", *([flags] if flags else [])])
  left_out = {reject["record"] for reject in note["rejects"]}
  numbers = (i for i in range(note["read"]) if i not in left_out)
  rejects, size = list(note["rejects"]), 0
  licences = dict(note["licences"])
  flagged = collections.Counter(note.get("flags", {}))
  for record in _read(dataset.path(split, shard)):
    fields, index = decode(record), next(numbers)
    key = fields["key"]
    if key not in gone:
      size += len(record)
      continue
    licence = gone[key]["licence"]
    if licences.get(licence):
      licences[licence] -= 1
    if flags:
      flagged.subtract(fields[flags])
    rejects.append(
      {
        "split": split,
        "shard": shard,
        "record": index,
        "reason": opt_out.REASON,
        "where": key,
        "detail": gone[key]["why"],
        "licence": licence,
      }
    )
  count = len(rejects) - len(note["rejects"])
  if not count:
    return note
  reasons = dict(note["rejected"])
  reasons[opt_out.REASON] = reasons.get(opt_out.REASON, 0) + count
  note |= {
    "kept": note["kept"] - count,
    "rejected": dict(sorted(reasons.items())),
    "licences": {name: n for name, n in licences.items() if n},
    **({"flags": dict(+flagged)} if flags else {}),
    "bytes": size,
    "rejects": sorted(rejects, key=lambda reject: reject["record"]),
    "removed": note.get("removed", {}) | {number: count},
  }
  ledger.save(book, split, shard, note)
  return note


def _shard(
  book: ledger.Ledger,
  dataset: shards.Dataset,
  split: str,
  shard: int,
  gone: _Gone,
  note: Mapping[str, Any],
) -> int:
  """Writes a shard and its attribution as its notes say; 0 if they are so."""
  path = dataset.path(split, shard)
  if "attribution" in book.settings:
    place = ledger.attribution_path(book, split, shard)
    rows = attribution.read(place)
    left = [row for row in rows if row["key"] not in gone]
    if len(left) < len(rows):
      attribution.write(place, left)
  with shards.whole(path):
    opened = array_record_module.ArrayRecordReader(path)
    count = opened.num_records()
    opened.close()
  if count == note["kept"]:
    return 0
  key_of = records.decoder(dataset.fields, ["key"])
  kept = (one for one in _read(path) if key_of(one)["key"] not in gone)
  shards.write_records(path, kept)
  return 1
