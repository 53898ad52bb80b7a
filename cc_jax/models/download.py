# SPDX-License-Identifier: Apache-2.0
"""Fetches published weights, unless they were fetched before.

Those of the Hugging Face hub go to its own cache. A few networks were only ever
published as single files elsewhere; they go beside it, to HF_HOME/cc_jax.
"""

from collections.abc import Sequence
import glob
import hashlib
import os
import re
import urllib.error
import urllib.request

import huggingface_hub
from huggingface_hub import constants

from cc_jax.core import files, log, weight_files
from cc_jax.models import published

CHUNK = 2**20
# Seconds without a byte after which a server is given up.
PATIENCE = 60


def fetch(
  name: str, entry: published.Entry, stem: str, variant: str | None
) -> str:
  """The local folder, or file, of a row.

  Args:
    name: of the row, for errors.
    entry: the row.
    stem: of the file name of weights in a folder.
    variant: as of `hub.load`.

  Raises:
    ValueError: it cannot be fetched.
  """
  if entry.repository.startswith("https://"):
    return _file(name, entry)
  try:
    return network(entry.repository, entry.subfolder, stem, variant)
  except ValueError as error:
    raise ValueError(
      f"cannot fetch {name} ({entry.repository}/{entry.subfolder}): {error} "
      "Copy that folder here and name the copy, or allow the network."
    ) from error


def network(
  repository: str,
  subfolder: str,
  stem: str,
  variant: str | None = None,
  revision: str | None = None,
) -> str:
  """The local folder of one network of the hub, or the file of its weights.

  Args:
    repository: on the hub.
    subfolder: of it, or a file of weights.
    stem: of the file name of weights in a folder.
    variant: as of `hub.load`; None fetches the first that is there.
    revision: as of `snapshot`.

  Raises:
    ValueError: why it cannot be fetched.
  """
  choices = [("config.json", *n) for n in weight_files.names(stem, variant)]
  alone = subfolder.endswith(weight_files.SUFFIXES)
  for wanted in [("",)] if alone else choices:
    # Without the slash that joining nothing would add.
    patterns = [os.path.join(subfolder, w).rstrip("/") for w in wanted]
    folder = snapshot(repository, patterns, revision)
    found = [p for p in patterns if glob.glob(os.path.join(folder, p))]
    if alone or set(found) - {patterns[0]}:
      return os.path.join(folder, subfolder)
  raise ValueError("no weights in it")


def snapshot(
  repository: str, patterns: Sequence[str], revision: str | None = None
) -> str:
  """The local folder of a repository of the hub, whose name is the revision.

  Args:
    repository: on the hub.
    patterns: of the files that are fetched, unless they were before.
    revision: None for the newest, or that which was fetched offline.

  Raises:
    ValueError: why it cannot be fetched.
  """
  at = {"revision": revision} if revision else {}
  try:
    return huggingface_hub.snapshot_download(
      repository, allow_patterns=list(patterns), **at
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(reason) from error


def _file(name: str, entry: published.Entry) -> str:
  """A file at an address of its own; it appears when it is whole.

  As torch.hub has it, eight digits before the suffix of a file's name are the
  first of its sha256.
  """
  target = os.path.join(constants.HF_HOME, "cc_jax", entry.subfolder)
  if os.path.exists(target):
    return target
  try:
    if constants.HF_HUB_OFFLINE:
      raise OSError("HF_HUB_OFFLINE is set")
    _download(entry.repository, target)
  except (OSError, ValueError) as error:
    raise ValueError(
      f"cannot fetch {name} ({entry.repository}): {error}. Download that file "
      "and name the copy, or allow the network."
    ) from error
  return target


def _download(address: str, target: str) -> None:
  """Writes what an address gives to a file.

  Raises:
    OSError: no connection, or it broke.
    ValueError: what came is cut off, or of another hash than its name states.
  """
  os.makedirs(os.path.dirname(target), exist_ok=True)
  stated = re.search(r"-([0-9a-f]{8})\.\w+$", target)
  digest, done = hashlib.sha256(), 0
  try:
    opened = urllib.request.urlopen(address, timeout=PATIENCE)
  except urllib.error.HTTPError as error:
    # It is an open connection, too.
    error.close()
    raise
  with opened as source:
    size = int(source.headers.get("Content-Length") or 0)
    with (
      files.open_atomic(target) as sink,
      log.progress(size // CHUNK, "download", "MiB") as progress,
    ):
      while data := source.read(CHUNK):
        sink.write(data)
        digest.update(data)
        done += len(data)
        progress(1)
      if size and done != size:
        raise ValueError(f"it broke off after {done} of {size} bytes")
      if stated and not digest.hexdigest().startswith(stated[1]):
        raise ValueError(
          f"its sha256 begins with {digest.hexdigest()[:8]}, expected "
          f"{stated[1]}"
        )
