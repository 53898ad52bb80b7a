# SPDX-License-Identifier: Apache-2.0
"""What code is running: the git revision and the versions of packages."""

import contextlib
import functools
from importlib import metadata
import pathlib
import platform
import re
import shlex
import subprocess
from typing import Any

from cc_jax.core import files

# The command line of this process, where cc-jax was started by one.
COMMAND: list[str] = []

_DESCRIBE = ("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


@functools.cache
def code() -> dict[str, Any]:
  """Returns {"revision": ..., "packages": {name: version}}, without hosts.

  The revision is that of the git checkout that holds this package, with
  "-dirty" when files differ from it, or "" for an installed package. The
  packages are Python and those that cc_jax requires.
  """
  names = {"cc_jax"}
  for requirement in metadata.requires("cc_jax") or ():
    if "extra ==" not in requirement:
      names.add(re.split(r"[^\w.-]", requirement)[0])
  packages = {"python": platform.python_version()}
  packages |= {name: metadata.version(name) for name in sorted(names)}
  return {"revision": _revision(), "packages": packages}


def _revision() -> str:
  root = pathlib.Path(__file__).parents[2]
  # A package in the site-packages of somebody else's repository is not in it.
  if not (root / ".git").exists():
    return ""
  described = subprocess.run(
    ["git", "--no-optional-locks", *_DESCRIBE],
    cwd=root,
    capture_output=True,
    text=True,
  )
  return described.stdout.strip() if described.returncode == 0 else ""


@functools.cache
def digest() -> str:
  """A hash of all that decides what a program is compiled to.

  The package's source as it is on the disk, whatever git says of it, the
  packages of `code`, and those that have XLA.
  """
  root = pathlib.Path(__file__).parents[1]
  source = {
    str(file.relative_to(root)): files.sha256(file)
    for file in sorted(root.rglob("*.py"))
  }
  packages = dict(code()["packages"])
  for name in ("jaxlib", "libtpu"):
    with contextlib.suppress(metadata.PackageNotFoundError):
      packages[name] = metadata.version(name)
  return files.sha256(files.to_json([source, packages]).encode())


def record(workdir: str, stage: str, config: Any) -> None:
  """Notes in workdir/config.json what a stage ran with.

  The file holds, for each stage that has run there, the command and the
  resolved config, the devices, the git revision and the package versions. The
  first process writes it.
  """
  # Late, since passes over data need no jax but the code's version.
  import jax

  if jax.process_index():
    return
  path = files.path(workdir) / "config.json"
  stages = files.read_json(path) if path.exists() else {}
  # Configs hold tuples, which JSON makes lists.
  stages[stage] = {
    "command": shlex.join(["cc-jax", *COMMAND]) if COMMAND else "",
    "devices": {
      "kind": jax.devices()[0].device_kind,
      "count": jax.device_count(),
      "hosts": jax.process_count(),
    },
    "config": config.to_dict(),
    **code(),
  }
  files.write_json(path, stages)
