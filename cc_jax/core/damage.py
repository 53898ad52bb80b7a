# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a checkpoint, and which one is used in its place.

Damage is what a copy that broke off, or bits that changed, leave: something is
missing, or makes no sense. That a checkpoint is of another model, or that the
disk does not answer, is no damage, and no reason to use an older one.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from cc_jax.core import log

# What a store says that does not answer, and so not of what it holds.
AWAY = (
  "ABORTED",
  "CANCELLED",
  "DEADLINE_EXCEEDED",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "UNAUTHENTICATED",
  "UNAVAILABLE",
)

T = TypeVar("T")


class Damaged(ValueError):
  """A checkpoint that was cut short, or is not what was written."""


@contextlib.contextmanager
def readable(path: Any) -> Iterator[None]:
  """Says of a checkpoint that cannot be read which it is, in one line.

  Raises:
    Damaged: what is there makes no sense, or something is missing.
    ValueError: it could not be looked at.
  """
  try:
    yield
  except (ValueError, KeyError, OSError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    away = any(word in str(error) for word in AWAY)
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
      away = True
    if away:
      raise ValueError(f"checkpoint {path} cannot be read: {reason}") from error
    raise Damaged(f"checkpoint {path} is damaged: {reason}") from error


def newest(read: Callable[[Any], T], paths: Sequence[Any]) -> T:
  """What `read` makes of the first checkpoint that is not damaged.

  Says aloud which ones are.

  Args:
    read: of a path; raises `Damaged`.
    paths: of checkpoints, the newest first; at least one.

  Raises:
    ValueError: all are damaged, or whatever else `read` raises.
  """
  for path in paths[:-1]:
    try:
      return read(path)
    except Damaged as error:
      log.say(f"{error}; the one before it is used")
  try:
    return read(paths[-1])
  except Damaged as error:
    count = f", as are the {len(paths) - 1} after it" if paths[1:] else ""
    raise ValueError(
      f"{error}{count}; delete what is there to begin anew"
    ) from error


def together(read: Callable[[Any], T]) -> Callable[[Any], T]:
  """`read`, called by every process: damage that one finds, all have.

  Else some would go on from another checkpoint than the rest.
  """

  def call(path):
    damage, result = None, None
    try:
      result = read(path)
    except Damaged as error:
      damage = error
    if jax.process_count() > 1:
      fine = multihost_utils.process_allgather(np.array(damage is None))
      if not np.all(fine) and damage is None:
        damage = Damaged(f"checkpoint {path} is damaged: another host said so")
    if damage is not None:
      raise damage
    return result

  return call


def set_aside(paths: Sequence[Any]) -> None:
  """Renames checkpoints to damaged-STEP; every process must call this."""
  if jax.process_index() == 0:
    for path in paths:
      name, again = f"damaged-{path.name}", 1
      while (path.parent / name).exists():
        name, again = f"damaged-{path.name}-{again}", again + 1
      path.rename(path.parent / name)
      log.say(f"checkpoint {path} is now {name}")
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")
