# SPDX-License-Identifier: Apache-2.0
"""The files of a source: one file, a folder, or a data set on the hub.

Files of a folder, local or gs://, are read where they lie. Those of
"hf://datasets/OWNER/NAME[@REVISION][/FOLDER]" are downloaded one at a time, to
a temporary folder, and removed when they have been read.
"""

from collections.abc import Iterator
import contextlib
import os
import re
import tempfile
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import errors

from cc_jax.core import files
from cc_jax.data import sources_folder

_HUB = re.compile(
  r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<inside>.*))?"
)

# Its bases are OSError and what the HTTP library raises without an answer.
_ERRORS = (*errors.HfHubHTTPError.__bases__, errors.HFValidationError)
_NO_FOLDER = (*sources_folder.SUFFIXES, sources_folder.SIDECAR)


class Files(NamedTuple):
  """The files of one kind in a source.

  Attributes:
    source: as it was named.
    root: the folder or, on the hub, the repository.
    names: their paths in the root, sorted.
    sizes: in bytes.
    revision: the commit, on the hub; "" elsewhere.
  """

  source: str
  root: str
  names: tuple[str, ...]
  sizes: tuple[int, ...]
  revision: str = ""


def is_hub(source: str) -> bool:
  """Whether a source is a data set on the Hugging Face hub."""
  return source.startswith("hf://")


def find(source: str, suffix: str) -> Files:
  """Lists the files with a suffix, at any depth; a file itself is a list of it.

  Raises:
    ValueError: there are none.
  """
  found = _hub(source, suffix) if is_hub(source) else _folder(source, suffix)
  if not found.names:
    raise ValueError(f"{source} has no {suffix} files")
  return found


def _hub(source: str, suffix: str) -> Files:
  match = _HUB.fullmatch(source)
  if not match:
    raise ValueError(
      f"source {source!r}; expected hf://datasets/OWNER/NAME, with @REVISION "
      "and /FOLDER after it if wanted"
    )
  repo, inside = match["repo"], (match["inside"] or "").strip("/")
  hub = huggingface_hub.HfApi()
  try:
    # The commit is pinned, so that a pass that goes on sees the same files.
    revision = hub.dataset_info(repo, revision=match["revision"]).sha
    tree = hub.list_repo_tree(
      repo,
      inside or None,
      recursive=True,
      revision=revision,
      repo_type="dataset",
    )
    sizes = {
      entry.path: int(entry.size)
      for entry in tree
      if entry.path.endswith(suffix)
      and getattr(entry, "size", None) is not None
    }
  except _ERRORS as error:
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f"cannot list {source}: {reason}") from None
  names = tuple(sorted(sizes))
  return Files(source, repo, names, tuple(sizes[n] for n in names), revision)


def _folder(source: str, suffix: str) -> Files:
  place = files.path(source)
  if source and place.is_file():
    length = (place.stat().length,) if source.endswith(suffix) else ()
    names = (place.name,) if length else ()
    return Files(source, os.path.dirname(source), names, length)
  if not source or not place.is_dir():
    raise ValueError(
      f"no folder {source!r}; catalogue.source names a folder, or one file"
    )
  sizes = {}
  folders = [""]
  while folders:
    inside = folders.pop()
    for path in (place / inside).iterdir():
      name = os.path.join(inside, path.name)
      if path.name.endswith(suffix):
        sizes[name] = int(path.stat().length)
      # To ask of every image whether it is a folder would take long.
      elif path.suffix.lower() not in _NO_FOLDER and path.is_dir():
        folders.append(name)
  names = tuple(sorted(sizes))
  return Files(source, source, names, tuple(sizes[n] for n in names))


def inputs(found: Files) -> dict[str, str]:
  """What `passes.run` records: a hash of names and sizes, and the commit.

  The files are not read, which would take as long as the pass itself.
  """
  listed = "".join(
    f"{size} {name}\n"
    for name, size in zip(found.names, found.sizes, strict=True)
  )
  return {
    "source": found.source,
    "files": files.sha256(os.fsencode(listed)),
    "revision": found.revision,
  }


@contextlib.contextmanager
def opened(found: Files, name: str) -> Iterator[Any]:
  """Opens a file to be read as bytes, in order or not.

  Raises:
    ValueError: the hub does not give it.
  """
  if not is_hub(found.source):
    with files.path(os.path.join(found.root, name)).open("rb") as file:
      yield file
    return
  with tempfile.TemporaryDirectory(prefix="cc_jax-") as folder:
    try:
      path = huggingface_hub.hf_hub_download(
        found.root,
        name,
        repo_type="dataset",
        revision=found.revision,
        local_dir=folder,
      )
    except _ERRORS as error:
      reason = str(error).strip().splitlines()[0]
      raise ValueError(
        f"cannot download {name} of {found.source}: {reason}; run the same "
        "command again, it goes on here"
      ) from None
    with open(path, "rb") as file:
      yield file
