# SPDX-License-Identifier: Apache-2.0
"""Saves and restores the train state and the loader's place, with Orbax.

A checkpoint is a folder named after its step:

```
checkpoints/1000/state/    arrays: plain nested dicts, whatever optax holds
                place/    {"next_index": …, "global_batch": …} as JSON
                meta/     whatever the caller wants to find again, as JSON
                sums/     of each array's bits, as JSON: see core/sums.py
```
Orbax writes it under another name and renames it when it is complete, so a
folder with a number is a whole checkpoint. Arrays are stored whole, not by
device: they can be restored onto another mesh and another number of hosts.
The names of NamedTuple fields and the places in tuples become keys, so that
what is on disk does not depend on optax's classes.

What is read is compared with its sums. A checkpoint that was cut short or
changed is left out, said aloud, and the one before it is used; that it is of
another model, or that the disk does not answer, is an error.
"""

from collections.abc import Mapping
import os
import signal
import threading
from typing import Any, NamedTuple

from absl import logging
import jax
from jaxtyping import PyTree
import numpy as np
import orbax.checkpoint as ocp

from cc_jax.core import damage, files, sums, tree

STATE, PLACE, META, SUMS = ITEMS = ("state", "place", "meta", "sums")
SHOWN = 3


class Checkpoints(NamedTuple):
  """An open folder of checkpoints: see `manager`."""

  folder: str
  orbax: ocp.CheckpointManager
  terminated: threading.Event
  old_handler: Any


def manager(
  folder: str | os.PathLike,
  *,
  keep: int | None = 3,
  every: int = 0,
  after: int | None = None,
  async_: bool = True,
) -> Checkpoints:
  """Opens a folder for saving, makes it if need be, clears unfinished saves.

  On a single process it also takes note of SIGTERM, until `close`: see
  `preempted`. Every process of a run must call this.

  Args:
    folder: local or gs:// path.
    keep: checkpoints to keep, the newest; None for all.
    every: steps of which each multiple is kept as well; 0 for none.
    after: the step that a run goes on from, 0 for its beginning. What is there
      of later ones could not be read; it is kept under the name damaged-STEP.
    async_: write in the background, while training goes on.

  Raises:
    ValueError: `keep` is below 1, or `every` below 0.
  """
  if keep is not None and keep < 1:
    raise ValueError(f"keep={keep} checkpoints: must be 1 or more, or None")
  if every < 0:
    raise ValueError(f"every={every} steps a checkpoint is kept: 0 for none")
  _quiet()
  if after is not None:
    damage.set_aside(
      [_path(folder) / str(step) for step in steps(folder) if step > after]
    )
  policies = ocp.checkpoint_managers
  rules = [policies.LatestN(keep)] if keep else []
  rules += [policies.EveryNSteps(every)] if keep and every else []
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policies.AnyPreservationPolicy(rules)
    if rules
    else None,
    enable_async_checkpointing=async_,
    cleanup_tmp_directories=True,
  )
  orbax = ocp.CheckpointManager(
    _path(folder), options=options, item_names=ITEMS
  )

  terminated, old_handler = threading.Event(), None
  in_main = threading.current_thread() is threading.main_thread()
  if jax.process_count() == 1 and in_main:
    old_handler = signal.signal(
      signal.SIGTERM, lambda number, frame: terminated.set()
    )
  return Checkpoints(os.fspath(folder), orbax, terminated, old_handler)


def save(
  checkpoints: Checkpoints,
  step: int,
  state: PyTree,
  place: Mapping[str, Any],
  meta: Mapping[str, Any],
) -> bool:
  """Saves a step; returns once the arrays may be overwritten or donated.

  Args:
    checkpoints: from `manager`.
    step: updates made.
    state: any pytree of arrays: `(step, params, ema, opt)`.
    place: the loader's place, JSON.
    meta: anything to be read again with `meta`, JSON.

  Returns:
    False, and nothing is written, if this step is already the latest.

  Raises:
    ValueError: the folder holds a later step.
  """
  latest = checkpoints.orbax.latest_step()
  if step == latest:
    return False
  if latest is not None and latest > step:
    raise ValueError(
      f"cannot save step {step} in {checkpoints.folder}, which holds the later"
      f" step {latest}; delete that checkpoint or use another workdir"
    )
  flat = tree.flatten(state)
  return checkpoints.orbax.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.PyTreeSave(tree.unflatten(flat)),
      place=ocp.args.JsonSave(dict(place)),
      meta=ocp.args.JsonSave(dict(meta)),
      sums=ocp.args.JsonSave(sums.sums(flat)),
    ),
  )


def steps(folder: str | os.PathLike) -> list[int]:
  """The steps of all checkpoints, in order, whether or not they are whole."""
  path = _path(folder)
  return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []


def latest_step(folder: str | os.PathLike) -> int | None:
  """The newest whole checkpoint; None if there is none, or no such folder."""
  path = _path(folder)
  whole = [s for s in steps(folder) if not _missing(path / str(s))]
  return max(whole, default=None)


def restore(
  folder: str | os.PathLike, abstract_state: PyTree, step: int | None = None
) -> tuple[PyTree, dict[str, Any]]:
  """Reads `(state, place)` back, the state placed as `abstract_state` says.

  Args:
    folder: local or gs:// path of the checkpoints.
    abstract_state: the pytree to fill, with `jax.ShapeDtypeStruct` leaves.
      A leaf with a sharding becomes a `jax.Array` so placed, on whatever mesh;
      one without becomes a NumPy array.
    step: which checkpoint; None for the latest that is not damaged. Every
      process must call this, and all read the same one.

  Raises:
    ValueError: no such checkpoint, one of another model (any path, shape or
      type differs), one on a disk that does not answer, or none that is not
      damaged.
  """
  _quiet()
  wanted = tree.flatten(abstract_state)

  def read(path):
    saved = _saved(path)
    _check_same(path, wanted, saved)
    place = _json(path, PLACE)
    return _fill(abstract_state, _read(path, wanted, saved)), place

  return _read_one(folder, step, damage.together(read))


def load(
  folder: str | os.PathLike,
  part: str = "ema",
  abstract: PyTree | None = None,
  step: int | None = None,
) -> PyTree:
  """Reads one part of a state, and only it: weights without their moments.

  Args:
    folder: local or gs:// path of the checkpoints.
    part: "ema" or "params", or any other first key of the state.
    abstract: the pytree to fill, as in `restore`, except that a floating type
      may differ from the saved one: float32 weights are read as bfloat16 if
      asked. None gives nested dicts of NumPy arrays, as saved.
    step: as of `restore`.

  Raises:
    ValueError: as `restore`; or no such part.
  """
  _quiet()

  def read(path):
    saved = _saved(path)
    inside = {p: leaf for p, leaf in saved.items() if p.split(".")[0] == part}
    if not inside:
      parts = ", ".join(sorted({p.split(".")[0] for p in saved}))
      raise ValueError(f"checkpoint {path} has no {part!r}; it has {parts}")
    if abstract is None:
      return tree.unflatten(_read(path, inside, saved))[part]
    wanted = tree.flatten({part: abstract})
    _check_same(path, wanted, inside, casts=True)
    return _fill({part: abstract}, _read(path, wanted, saved))[part]

  return _read_one(folder, step, read)


def meta(folder: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
  """The `meta` that a checkpoint was saved with; the latest one's if None.

  Raises:
    ValueError: no such checkpoint.
  """
  _quiet()
  return _json(_checkpoint(folder, step), META)


def preempted(checkpoints: Checkpoints, step: int) -> bool:
  """Whether to save now and stop, because this machine is about to go.

  Call it after every step. On one process it is true once SIGTERM has come;
  on several, JAX makes all hosts see it at the same step.
  """
  if jax.process_count() == 1:
    return checkpoints.terminated.is_set()
  return checkpoints.orbax.reached_preemption(step)


def wait(checkpoints: Checkpoints) -> None:
  """Waits until what was saved is on disk; raises what went wrong in it."""
  checkpoints.orbax.wait_until_finished()


def close(checkpoints: Checkpoints) -> None:
  """Waits until what was saved is on disk, and lets go of SIGTERM."""
  wait(checkpoints)
  checkpoints.orbax.close()
  if checkpoints.old_handler is not None:
    signal.signal(signal.SIGTERM, checkpoints.old_handler)


def _quiet():
  # Orbax narrates every save at level INFO and warns of its own deprecations.
  logging.set_verbosity(logging.ERROR)


def _path(folder):
  # Orbax refuses relative paths.
  return files.path(
    folder if files.is_remote(folder) else os.path.abspath(folder)
  )


def _missing(path):
  """Which of its parts a checkpoint does not have."""
  return [item for item in ITEMS if not (path / item).exists()]


def _checkpoint(folder, step):
  """The path of a checkpoint that is there, whole or not."""
  found = steps(folder)
  if not found:
    raise ValueError(f"no checkpoint in {os.fspath(folder)}")
  step = (latest_step(folder) or found[-1]) if step is None else step
  if step not in found:
    raise ValueError(
      f"no checkpoint of step {step} in {os.fspath(folder)}; the latest is"
      f" {found[-1]}"
    )
  return _path(folder) / str(step)


def _read_one(folder, step, read):
  """What `read` makes of one checkpoint, or of the newest undamaged one."""

  def whole(path):
    if missing := _missing(path):
      raise damage.Damaged(
        f"checkpoint {path} is damaged: it has no {missing[0]}"
      )
    return read(path)

  if step is not None or not steps(folder):
    return whole(_checkpoint(folder, step))
  paths = [_path(folder) / str(step) for step in reversed(steps(folder))]
  return damage.newest(whole, paths)


def _fill(abstract, leaves):
  """The structure of `abstract` with these leaves, which are all of its."""
  paths = tree.flatten(abstract)
  return jax.tree.unflatten(
    jax.tree.structure(abstract), [leaves[path] for path in paths]
  )


def _saved(path):
  """Shapes and types in a checkpoint, from its metadata alone."""
  with damage.readable(path):
    found = ocp.PyTreeCheckpointHandler().metadata(path / STATE)
  return tree.flatten(found.tree)


def _read(path, wanted, saved):
  """Reads the wanted leaves of a state and no others."""

  def arguments(leaf):
    sharding = getattr(leaf, "sharding", None)
    # As saved, so that sums can be compared; they are cast afterwards.
    if isinstance(sharding, jax.sharding.Sharding):
      return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape)
    return ocp.RestoreArgs(restore_type=np.ndarray)

  arrays = ocp.args.PyTreeRestore(
    item=tree.unflatten(wanted),
    restore_args=tree.unflatten({p: arguments(x) for p, x in wanted.items()}),
    partial_restore=len(wanted) < len(saved),
  )
  # Without a Checkpointer, in which a host that finds no damage would wait for
  # one that does.
  with damage.readable(path):
    handler = ocp.PyTreeCheckpointHandler()
    found = tree.flatten(handler.restore(path / STATE, args=arrays))
    handler.close()
  expected = _json(path, SUMS)
  for name, sum_ in sums.sums(found).items():
    if expected.get(name) != sum_:
      raise damage.Damaged(
        f"checkpoint {path} is damaged: the bits of {name} are not those that"
        " were written"
      )
  for name in found:
    dtype = wanted[name].dtype
    if found[name].dtype != dtype:
      found[name] = found[name].astype(dtype)
  return found


def _json(path, item):
  with damage.readable(path):
    handler = ocp.JsonCheckpointHandler()
    found = handler.restore(path / item, args=ocp.args.JsonRestore())
    handler.close()
  return found


def _check_same(path, wanted, saved, casts=False):
  """Raises if a checkpoint does not hold exactly what is wanted."""

  def describe(leaf):
    if leaf is None:
      return "nothing"
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

  def same(a, b):
    if a is None or b is None or tuple(a.shape) != tuple(b.shape):
      return False
    floats = jax.dtypes.issubdtype
    both = floats(a.dtype, np.floating) and floats(b.dtype, np.floating)
    return a.dtype == b.dtype or (casts and both)

  differ = [
    f"{p} expected {describe(wanted.get(p))}, got {describe(saved.get(p))}"
    for p in sorted(wanted.keys() | saved.keys())
    if not same(wanted.get(p), saved.get(p))
  ]
  if differ:
    more = f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
    raise ValueError(
      f"checkpoint {path} is of another model: {'; '.join(differ[:SHOWN])}"
      f"{more}; use the config that wrote it, or another workdir"
    )
