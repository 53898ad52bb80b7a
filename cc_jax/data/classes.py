# SPDX-License-Identifier: Apache-2.0
"""Classes of labelled images: names, and their numbers in a network.

A class is read as a caption of one token. That of no caption, "", has the
number after the last, as in DiT's table. The names are a text file, a line
each, which `cc-jax encode` writes beside a run where there is none: all values
of a text feature of the images, such as the title, in the order of letters.
"""

from collections.abc import Sequence
import hashlib
from typing import NamedTuple

from jaxtyping import Int32
import numpy as np

from cc_jax.core import config, files
from cc_jax.data import aligned, shards

# More are no classes but sentences.
MOST = 100_000


class Classes(NamedTuple):
  """Names of classes; their places are their numbers."""

  names: tuple[str, ...]


def load(path: str) -> Classes:
  """The classes in a file.

  Raises:
    ValueError: there is no such file, or a name is empty or there twice.
  """
  if not files.path(path).exists():
    raise ValueError(
      f"no file of classes {path!r}; name one, a class a line, in "
      "model.classes, or run `cc-jax encode` with encode.label"
    )
  names = tuple(files.path(path).read_text().splitlines())
  if not names or len(set(names)) < len(names) or not all(names):
    raise ValueError(f"{path}: expected a class a line, each once, none empty")
  return Classes(names)


def collect(dataset: shards.Dataset, feature: str) -> Classes:
  """All values of a text feature, over all splits; reads every record.

  Raises:
    ValueError: no such feature, or it has too many values.
  """
  if feature not in {field.name for field in dataset.fields}:
    raise ValueError(
      f"encode.label={feature!r}: no such feature in {dataset.folder}"
    )
  found: set[str] = set()
  for split in dataset.splits:
    source = aligned.source([dataset], split, (feature,))
    for index in range(len(source)):
      found.add(source[index][feature])
      if len(found) > MOST:
        raise ValueError(
          f"encode.label={feature!r} has over {MOST:,} values; name a feature "
          "that holds classes"
        )
    source.close()
  return Classes(tuple(sorted(found - {""})))


def save(classes: Classes, path: str) -> None:
  """Writes the file that `load` reads.

  Raises:
    ValueError: a name of several lines.
  """
  for name in classes.names:
    if name.splitlines() != [name]:
      raise ValueError(
        f"a class of several lines, {name!r}; a file has one each"
      )
  files.write_atomic(path, "".join(f"{name}\n" for name in classes.names))


def encode(classes: Classes, names: Sequence[str]) -> Int32[np.ndarray, "B 1"]:
  """The numbers of classes; of "" that of none.

  Raises:
    ValueError: there is no such class.
  """
  known = {name: number for number, name in enumerate(classes.names)}
  known[""] = len(known)
  for name in names:
    if name not in known:
      raise config.unknown("class", name, classes.names[:100])
  return np.array([[known[name]] for name in names], np.int32).reshape(-1, 1)


def digest(classes: Classes) -> str:
  """A hash of the names in their order."""
  text = "\n".join(classes.names)
  return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
