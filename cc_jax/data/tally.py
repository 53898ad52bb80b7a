# SPDX-License-Identifier: Apache-2.0
"""What a pass did, in numbers and in one line."""

import collections
from collections.abc import Mapping, Sequence
import types
from typing import NamedTuple


class Counts(NamedTuple):
  """What a pass did.

  Attributes:
    read: records read, now and in shards that were already done.
    kept: of these, how many are in the output.
    rejected: how many were left out, by reason.
    licences: of the kept ones, how many have each `licence`.
    shards: shards written now.
    skipped: shards that were already done.
    complete: whether the folder is finished, by this or any other process.
    flags: how many of the kept ones have each flag, where the pass has some.
  """

  read: int
  kept: int
  rejected: Mapping[str, int]
  licences: Mapping[str, int]
  shards: int
  skipped: int
  complete: bool
  flags: Mapping[str, int] = types.MappingProxyType({})

  def __str__(self) -> str:
    rejected = sum(self.rejected.values())
    reasons = _listed(self.rejected)
    return (
      f"read {self.read}, kept {self.kept}, rejected {rejected}"
      + (f" ({reasons})" if rejected else "")
      + (f", flagged {_listed(self.flags)}" if self.flags else "")
      + f"; wrote {self.shards} shards, skipped {self.skipped} as done"
      + ("" if self.complete else "; other processes are not done yet")
    )


def together(counts: Sequence[Counts]) -> Counts:
  """What several passes did, as one."""

  def added(name: str) -> dict[str, int]:
    found: collections.Counter[str] = collections.Counter()
    for one in counts:
      found.update(getattr(one, name))
    return dict(sorted(found.items()))

  return Counts(
    read=sum(one.read for one in counts),
    kept=sum(one.kept for one in counts),
    rejected=added("rejected"),
    licences=added("licences"),
    shards=sum(one.shards for one in counts),
    skipped=sum(one.skipped for one in counts),
    complete=all(one.complete for one in counts),
    flags=added("flags"),
  )


def _listed(counts: Mapping[str, int]) -> str:
  return ", ".join(f"{n} {name}" for name, n in counts.items())
