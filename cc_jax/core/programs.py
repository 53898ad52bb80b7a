# SPDX-License-Identifier: Apache-2.0
"""Compiled programs in files: made on one machine, run on another.

A step that takes ten minutes to compile is compiled once, by `cc-jax plan`, for
a slice that need not be there. The file is one line of JSON that says for what,
then what JAX makes of the program, which is unpickled: load no file that others
made.
"""

import hashlib
from importlib import metadata
import json
from typing import Any

import jax
from jax.experimental import serialize_executable

from cc_jax.core import files


def facts(lowered: Any, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """What a program is compiled of, for and by."""
  device = mesh.devices.flat[0]
  named = ("jax", "jaxlib", *(("libtpu",) if device.platform == "tpu" else ()))
  return {
    "mesh": {name: int(size) for name, size in mesh.shape.items()},
    "device": device.device_kind,
    "versions": {name: metadata.version(name) for name in named},
    "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
  }


def save(
  file: str, lowered: Any, compiled: Any, mesh: jax.sharding.Mesh, config: Any
) -> None:
  """Writes a program.

  Args:
    file: where to.
    lowered: what was compiled.
    compiled: of it.
    mesh: it was compiled for.
    config: what it was made of, in plain values: so that a refusal can say
      what is different.
  """
  payload, _, _ = serialize_executable.serialize(compiled)
  head = {**facts(lowered, mesh), "config": json.loads(json.dumps(config))}
  files.write_atomic(file, json.dumps(head).encode() + b"\n" + payload)


def load(file: str, lowered: Any, mesh: jax.sharding.Mesh, config: Any) -> Any:
  """Reads a program for the devices of a mesh.

  Args:
    file: of `save`.
    lowered: what would have to be compiled.
    mesh: to run on.
    config: as of `save`.

  Raises:
    ValueError: no program there, or one of another mesh, version or step.
  """
  path = files.path(file)
  if not path.exists():
    raise ValueError(
      f"no program {file}; `cc-jax plan --config.plan.program={file}` makes it"
    )
  head, _, payload = path.read_bytes().partition(b"\n")
  try:
    known = json.loads(head)
    differ = differences(known, facts(lowered, mesh), config)
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{file} is no program of `cc-jax plan`") from error
  if differ:
    raise ValueError(
      f"{file} is another program: {differ}; compile it again with `cc-jax "
      "plan`, or leave out train.program"
    )
  return serialize_executable.deserialize_and_load(
    payload,
    lowered.in_tree,
    lowered.out_tree,
    execution_devices=list(mesh.devices.flat),
  )


def differences(
  known: dict[str, Any], wanted: dict[str, Any], config: Any
) -> str:
  """What of a saved program is not as it should be; "" for nothing."""
  found = [
    f"{name} {known[name]} (now {wanted[name]})"
    for name in ("device", "mesh", "versions")
    if known[name] != wanted[name]
  ]
  if known["program"] == wanted["program"]:
    return ", ".join(found)
  ours = _flat(json.loads(json.dumps(config)))
  theirs = _flat(known["config"])
  fields = [
    f"{name}={theirs.get(name)!r} (now {ours.get(name)!r})"
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  ]
  return ", ".join([*found, *(fields or ["the code of the step differs"])])


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  made: dict[str, Any] = {}
  for name, value in tree.items():
    made |= _flat(value, f"{prefix}{name}.")
  return made
