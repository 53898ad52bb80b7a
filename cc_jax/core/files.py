# SPDX-License-Identifier: Apache-2.0
"""Local and `gs://` files: paths, atomic writes, JSON, hashes.

Everything goes through `etils.epath`, which Orbax and TFDS use too; `gs://`
needs the extra `gcs`. A file appears under its name only when it is complete:
local files are written beside their place, flushed to disk and renamed; an
object on Google Cloud Storage appears when its upload ends.
"""

from collections.abc import Iterator
import contextlib
import errno
import hashlib
import importlib.util
import json
import math
import mmap
import os
import pathlib
import secrets
import tempfile
from typing import Any, BinaryIO

from etils import epath
import numpy as np

REFUSALS = {
  errno.ENOSPC: "make room",
  errno.EDQUOT: "make room",
  errno.EFBIG: "allow larger files (`ulimit -f`), or name another folder",
  errno.EROFS: "name another folder, or have it mounted to be written",
  errno.EACCES: "get the permission, or name another folder",
  errno.EPERM: "get the permission, or name another folder",
}
"""What an operating system refuses and a person can put right, and how."""


def path(name: str | os.PathLike[str]) -> epath.Path:
  """Returns `name` as a path, local or `gs://`.

  Raises:
    ValueError: if `name` is remote and what opens it is not installed.
  """
  if is_remote(name) and importlib.util.find_spec("gcsfs") is None:
    raise ValueError(
      f"{os.fspath(name)} needs the package gcsfs, which is not installed; "
      "run `pip install 'cc_jax[gcs]'`"
    )
  return epath.Path(name)


def is_remote(name: str | os.PathLike[str]) -> bool:
  """Says whether `name` is an object in a bucket.

  Raises:
    ValueError: for a scheme other than `gs://`.
  """
  scheme, found, _ = os.fspath(name).partition("://")
  if found and scheme != "gs":
    raise ValueError(
      f"{os.fspath(name)} has the scheme {scheme!r}; expected a local path "
      "or gs://BUCKET/PATH"
    )
  return bool(found)


def temporary(name: str | os.PathLike[str]) -> str:
  """Returns a fresh name beside local file `name` for writing it.

  It starts with a dot and ends in `.tmp`, so that what a killed process left
  can be found and removed.
  """
  head, tail = os.path.split(os.fspath(name))
  return os.path.join(head, f".{tail}.{secrets.token_hex(4)}.tmp")


def sweep(folder: str | os.PathLike[str]) -> None:
  """Removes the temporary files that killed processes left in a folder.

  A process that is just writing one loses it; `commit` then relies on the file
  that the one who sweeps knows to be there.
  """
  for name in listing(folder):
    if name.startswith(".") and name.endswith(".tmp"):
      path(os.path.join(folder, name)).unlink(missing_ok=True)


def commit(written: str, name: str | os.PathLike[str]) -> None:
  """Moves the complete local file `written` to `name`, local or `gs://`.

  Processes may race to write one file if all write the same bytes.
  """
  if is_remote(name):
    path(written).copy(path(name), overwrite=True)
    os.remove(written)
    return
  try:
    _flush(written)
    os.replace(written, name)
  except FileNotFoundError:
    # Another process wrote the same file and swept ours away.
    if not os.path.exists(name):
      raise
  # Without this a power cut may undo the rename.
  _flush(os.path.dirname(os.path.abspath(name)))


def write_atomic(name: str | os.PathLike[str], data: bytes | str) -> None:
  """Writes a whole file, text as UTF-8; a reader sees all of it or none.

  The folder is made when it is missing.
  """
  if isinstance(data, str):
    data = data.encode()
  if is_remote(name):
    target = path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return
  with open_atomic(name) as file:
    file.write(data)


@contextlib.contextmanager
def open_atomic(name: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Opens a file for writing that is too large for `write_atomic`.

  It appears under its name when the block ends, unless by an error. The folder
  is made when it is missing; a remote file is written here first.
  """
  with contextlib.ExitStack() as stack:
    path(name).parent.mkdir(parents=True, exist_ok=True)
    local = os.fspath(name)
    if is_remote(name):
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      local = os.path.join(folder, os.path.basename(local))
    written = temporary(local)
    try:
      with open(written, "wb") as target:
        yield target
      commit(written, name)
    except OSError as error:
      # The system does not say it of a file that is open.
      if error.errno and not error.filename:
        error.filename = written
      raise
    finally:
      pathlib.Path(written).unlink(missing_ok=True)


def map_array(
  name: str | os.PathLike[str],
  start: int,
  dtype: np.dtype,
  shape: tuple[int, ...],
) -> np.ndarray:
  """A read-only array of a part of a file, from byte `start` on.

  A local file is mapped as long as the array lives: only what is looked at is
  read, and nothing else of the file takes memory. A remote part is read whole.

  Raises:
    ValueError: the file ends before the array does.
  """
  size = math.prod(shape) * dtype.itemsize
  if not size:
    return np.empty(shape, dtype)
  if is_remote(name):
    with path(name).open("rb") as source:
      source.seek(start)
      data, before = source.read(size), 0
  else:
    # A map begins at a page.
    before = start % mmap.ALLOCATIONGRANULARITY
    with open(name, "rb") as source:
      length = max(0, os.fstat(source.fileno()).st_size - start)
      data = b""
      if length >= size:
        data = mmap.mmap(
          source.fileno(),
          before + size,
          access=mmap.ACCESS_READ,
          offset=start - before,
        )
  if len(data) < before + size:
    raise ValueError(f"{os.fspath(name)} is cut off; download it again")
  return np.ndarray(shape, dtype, data, before)


def to_json(value: Any) -> str:
  """Returns `value` as JSON text: two spaces, the order given, a last newline.

  Raises:
    ValueError: for NaN and infinities, which JSON does not have.
  """
  return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(name: str | os.PathLike[str], value: Any) -> None:
  """Writes `to_json(value)` atomically; see there and `write_atomic`."""
  write_atomic(name, to_json(value))


def read_json(name: str | os.PathLike[str]) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: if the file is missing or not JSON.
  """
  try:
    return json.loads(path(name).read_bytes())
  except FileNotFoundError:
    raise ValueError(f"{os.fspath(name)} does not exist") from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{os.fspath(name)} is not JSON: {error}") from None


def sha256(data: bytes | os.PathLike[str]) -> str:
  """Returns the SHA-256 of bytes, or of the file at a path, in hexadecimal."""
  if isinstance(data, bytes):
    return hashlib.sha256(data).hexdigest()
  with path(data).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: str | os.PathLike[str]) -> list[str]:
  """Returns the sorted names in a folder; none when there is no such folder."""
  place = path(folder)
  return sorted(x.name for x in place.iterdir()) if place.is_dir() else []


def _flush(name: str) -> None:
  descriptor = os.open(name, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
