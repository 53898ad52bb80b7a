# SPDX-License-Identifier: Apache-2.0
"""A bucket in memory that stands in for Google Cloud Storage."""

import importlib.util
import uuid

from etils.epath import backend
import fsspec
from fsspec.implementations import memory


class Bucket(memory.MemoryFileSystem):
  """Takes the paths that gcsfs takes."""

  protocol = ("gs", "gcs")

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.split("://", 1)[-1])


def make(monkeypatch):
  """Makes epath open gs:// paths in memory; returns the path of a bucket."""
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *args: True if name == "gcsfs" else found(name, *args),
  )
  systems = {"gcs": Bucket(), "file": fsspec.filesystem("file")}
  opened = systems.__getitem__
  monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", opened)
  return f"gs://{uuid.uuid4().hex}"
