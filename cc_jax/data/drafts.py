# SPDX-License-Identifier: Apache-2.0
"""One shard while it is made: its records, and the notes that finish it."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import os
from typing import Any

from cc_jax.data import attribution, ledger, records, shards


@contextlib.contextmanager
def begin(
  book: ledger.Ledger,
  fields: Sequence[records.Field],
  split: str,
  index: int,
  count: int,
  code: Mapping[str, Any],
) -> Iterator[Callable[[Any, Any], None]]:
  """Takes what was read and what was made of it, in order.

  What is made is an example, or a `passes.Reject`. When the block ends the
  shard appears, then its attribution and its notes; after an error nothing
  does.

  Args:
    book: of the folder.
    fields: what a record holds.
    split: of the shard.
    index: of the shard in its split.
    count: shards of the split.
    code: what writes it.
  """
  rejects: list[dict[str, Any]] = []
  owners: list[dict[str, str]] = []
  counted = {"licences": collections.Counter[str]()}
  if flags := book.settings.get("flags"):
    counted["flags"] = collections.Counter[str]()
  size = 0
  file = shards.filename(book.settings["name"], split, index, count)

  with shards.writing(os.path.join(book.folder, file)) as write:

    def add(read: Any, made: Any) -> None:
      nonlocal size
      if isinstance(made, Mapping):
        if licence := made.get("licence") or of(read, "licence"):
          counted["licences"][licence] += 1
        if flags:
          counted["flags"].update(made[flags])
        record = records.encode(fields, made)
        write(record)
        size += len(record)
        owners.append(attribution.row(made))
        return
      where = made.where or of(read, "where") or of(read, "key") or ""
      place = {
        "split": split,
        "shard": index,
        "record": len(owners) + len(rejects),
      }
      rejects.append(place | made._replace(where=where)._asdict())

    yield add
  if "attribution" in book.settings:
    attribution.write(ledger.attribution_path(book, split, index), owners)
  reasons = collections.Counter(reject["reason"] for reject in rejects)
  notes = {
    "code": code,
    "read": len(owners) + len(rejects),
    "kept": len(owners),
    "rejected": dict(sorted(reasons.items())),
    **{name: dict(sorted(found.items())) for name, found in counted.items()},
    "bytes": size,
    "rejects": rejects,
  }
  ledger.save(book, split, index, notes)


def of(entry: Any, field: str) -> Any:
  """A field of what a pass reads, a dict or a tuple with names."""
  if isinstance(entry, Mapping):
    return entry.get(field)
  return getattr(entry, field, None)
