# SPDX-License-Identifier: Apache-2.0
"""What a pass has done so far, kept beside its shards.

    .pass/pass.json                  what the folder is being made from
    .pass/SPLIT-00000-of-00016.json  counts and rejects of a finished shard
    .pass/SPLIT-00000-of-00016.parquet  and its rows of ATTRIBUTION.parquet

These files stay: they are how a later run knows that nothing is left to do.
Neither times nor hosts nor the number of processes are written, and every
write is atomic and always of the same bytes, so processes that share a folder
need not talk to each other.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
from typing import Any, NamedTuple

from cc_jax.core import files
from cc_jax.data import attribution, records, shards

FOLDER = ".pass"

# Of a shard of a folder that is unfinished.
_AGAIN = (
  "delete it and what has its name beside it, and the same command makes that "
  "shard anew"
)


class Ledger(NamedTuple):
  """A folder that a pass is filling.

  Attributes:
    folder: local or `gs://`.
    settings: what it is made from, JSON values; `splits` is the number of
      shards of each split.
    digest: of the settings; the notes on every shard carry it.
  """

  folder: str
  settings: Mapping[str, Any]
  digest: str


def begin(folder: str, settings: Mapping[str, Any]) -> Ledger:
  """Begins a folder, or goes on with one that was begun.

  Raises:
    ValueError: if the folder holds anything else, or was begun with other
      settings.
  """
  shards.check_no_removal(folder)
  # As it will be read back: tuples become lists.
  settings = json.loads(files.to_json(settings))
  path = os.path.join(folder, FOLDER, "pass.json")
  # Listed first: another process may begin the pass and write its first shard
  # between the two looks.
  foreign = set(files.listing(folder)) - {FOLDER}
  if not files.path(path).exists():
    if foreign:
      raise ValueError(
        f"{folder} is not empty (it has {min(foreign)}) and no pass began it; "
        "name another folder, or empty this one"
      )
    files.write_json(path, settings)
  for field, expected, got in _differences(files.read_json(path), settings):
    raise ValueError(
      f"{folder} was begun with {field}={expected!r}; got {got!r}; go on with "
      "the settings it was begun with, or name another folder"
    )
  digest = files.sha256(files.to_json(settings).encode())
  return Ledger(folder, settings, digest)


def resume(folder: str) -> Ledger:
  """The ledger of a folder that a pass has made.

  Raises:
    ValueError: if no pass made it.
  """
  path = os.path.join(folder, FOLDER, "pass.json")
  if not files.path(path).exists():
    raise ValueError(
      f"{folder} has no {FOLDER}/pass.json, so no stage of cc-jax wrote it; "
      "make it again from its source"
    )
  settings = files.read_json(path)
  digest = files.sha256(files.to_json(settings).encode())
  return Ledger(folder, settings, digest)


def change(ledger: Ledger, settings: Mapping[str, Any]) -> Ledger:
  """Gives a finished folder other settings, also in the notes on each shard.

  May be stopped anywhere and called again.
  """
  digest = files.sha256(files.to_json(settings).encode())
  changed = Ledger(ledger.folder, settings, digest)
  if digest != ledger.digest:
    for split, count in settings["splits"].items():
      for shard in range(count):
        note = peek(ledger, split, shard)
        if note["settings"] != digest:
          save(changed, split, shard, note)
    path = os.path.join(ledger.folder, FOLDER, "pass.json")
    files.write_json(path, settings)
  return changed


def peek(ledger: Ledger, split: str, shard: int) -> dict[str, Any]:
  """The notes on a finished shard, whatever settings they are of."""
  return files.read_json(_path(ledger, split, shard))


def _differences(
  begun: Any, now: Any, field: str = ""
) -> Iterator[tuple[str, Any, Any]]:
  """Yields the fields, as "config.size", in which two settings differ."""
  if isinstance(begun, dict) and isinstance(now, dict):
    for name in sorted(begun.keys() | now.keys()):
      inner = f"{field}.{name}" if field else name
      yield from _differences(begun.get(name), now.get(name), inner)
  elif begun != now:
    yield field, begun, now


def load(ledger: Ledger, split: str, shard: int) -> dict[str, Any] | None:
  """Returns the notes on a finished shard; None when it is not finished.

  Raises:
    ValueError: if they were written by a pass with other settings.
  """
  path = _path(ledger, split, shard)
  if not files.path(path).exists():
    return None
  with _remedy(_AGAIN):
    notes = files.read_json(path)
  if notes["settings"] != ledger.digest:
    raise ValueError(
      f"{path} was written with other settings than {FOLDER}/pass.json; two "
      "passes run on one folder; stop one, empty the folder and run again"
    )
  return notes


def save(
  ledger: Ledger, split: str, shard: int, notes: Mapping[str, Any]
) -> None:
  """Writes the notes on a shard, which finishes it.

  `notes` has read, kept, rejected, licences, bytes, rejects and code.
  """
  notes = {"settings": "", **notes} | {"settings": ledger.digest}
  files.write_json(_path(ledger, split, shard), notes)


def owners(
  ledger: Ledger, dataset: shards.Dataset, split: str, shard: int
) -> Iterator[dict[str, str]]:
  """Key, author, licence and so on of each record of a shard, in order.

  The images are read only where no attribution was written.
  """
  if "attribution" in ledger.settings:
    path = attribution_path(ledger, split, shard)
    with _remedy("copy it from where it was made, or make the dataset again"):
      yield from attribution.read(path)
    return
  names = {field.name for field in dataset.fields}
  wanted = sorted(names & set(attribution.COLUMNS))
  for example in shards.read(dataset, split, shard, wanted):
    yield attribution.row(example)


@contextlib.contextmanager
def _remedy(words: str) -> Iterator[None]:
  """Adds to what is said of a damaged file what can be done."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{error}; {words}") from None


def attribution_path(ledger: Ledger, split: str, shard: int) -> str:
  """Where the attribution of a shard is kept."""
  return _path(ledger, split, shard, ".parquet")


def _path(ledger: Ledger, split: str, shard: int, suffix: str = ".json") -> str:
  count = ledger.settings["splits"][split]
  name = f"{split}-{shard:05d}-of-{count:05d}{suffix}"
  return os.path.join(ledger.folder, FOLDER, name)


def total(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the sums over shards of all that is counted."""
  sums = {"rejected": collections.Counter(), "licences": collections.Counter()}
  if any("flags" in note for note in notes):
    sums["flags"] = collections.Counter()
  for note in notes:
    for field, counter in sums.items():
      counter.update(note[field])
  return {
    "read": sum(note["read"] for note in notes),
    "kept": sum(note["kept"] for note in notes),
    **{field: dict(sorted(counter.items())) for field, counter in sums.items()},
  }


def finish(ledger: Ledger, fields: Sequence[records.Field]) -> bool:
  """Completes the folder if all its shards are done; says whether it is."""
  complete = os.path.join(ledger.folder, shards.INFO)
  if not files.path(complete).exists() and not describe(ledger, fields):
    return False
  for place in (ledger.folder, os.path.join(ledger.folder, FOLDER)):
    files.sweep(place)
  return True


def describe(ledger: Ledger, fields: Sequence[records.Field]) -> bool:
  """Writes all that is beside the shards, from the notes on them.

  Returns:
    False, and nothing is written, when a shard is not finished.
  """
  folder, settings, _ = ledger
  notes: dict[str, list[dict[str, Any]]] = {}
  for split, count in settings["splits"].items():
    notes[split] = []
    for shard in range(count):
      if (note := load(ledger, split, shard)) is None:
        return False
      notes[split].append(note)
  every = [note for split in notes.values() for note in split]
  lines = [
    json.dumps(reject, ensure_ascii=False) + "\n"
    for note in every
    for reject in note["rejects"]
  ]
  # Usually one; several when the code was changed between runs.
  code = []
  for note in every:
    if note["code"] not in code:
      code.append(note["code"])
  provenance = {**settings, "code": code, "counts": total(every)}
  sizes = {
    split: [(note["kept"], note["bytes"]) for note in of_split]
    for split, of_split in notes.items()
  }
  place = os.path.join(folder, shards.REJECTS)
  files.write_atomic(place, "".join(lines))
  if "attribution" in settings:
    parts = (
      attribution_path(ledger, split, shard)
      for split, count in settings["splits"].items()
      for shard in range(count)
    )
    with _remedy(_AGAIN):
      attribution.join(parts, folder)
  files.write_json(os.path.join(folder, shards.PROVENANCE), provenance)
  shards.write_metadata(folder, settings["name"], fields, sizes)
  return True
