# SPDX-License-Identifier: Apache-2.0
"""A folder of generated images, by the number of their prompt.

    recipe.json            what makes them: model, prompts, seed, sampler, ...
    000/000017.png         image 17, of prompt 17
    000/000018.rejected    image 18 was no image: why

An image follows from the recipe and its number alone, so a run that was killed
is finished by making what is not there, and the folder is the same as if it
had not been. One run writes at a time: it holds `.lock` of a local folder. In a
bucket nothing is locked; two runs there would write the same bytes twice.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import functools
import os
import socket
from typing import Any, NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

from cc_jax.core import files
from cc_jax.data import grids, images

RECIPE = "recipe.json"
LOCK = ".lock"
EACH = 1000  # images of a sub-folder


class Missing(NamedTuple):
  """What a folder lacks.

  Attributes:
    images: their numbers.
    rejected: how many were no images.
  """

  images: list[int]
  rejected: int


def name(index: int) -> str:
  """The file of an image in its folder."""
  return f"{index // EACH:03d}/{index:06d}.png"


def begin(folder: str, recipe: Mapping[str, Any]) -> None:
  """Notes the recipe of a folder, or checks that it has the same.

  Raises:
    ValueError: it has images of another recipe.
  """
  place = os.path.join(folder, RECIPE)
  if files.path(place).exists():
    found = files.read_json(place)
    if found != recipe:
      old, new = dict(_flat(found)), dict(_flat(recipe))
      told = ", ".join(
        f"{key} {_short(old.get(key))} (now {_short(new.get(key))})"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
      )
      raise ValueError(
        f"{folder} has images of another recipe: {told}; name another "
        "evaluate.folder, or remove this one"
      )
    # What a run that was killed was just writing.
    for inside in files.listing(folder):
      files.sweep(os.path.join(folder, inside))
    return
  strangers = [one for one in files.listing(folder) if one != LOCK]
  if strangers:
    raise ValueError(
      f"{folder} has {strangers[0]!r} and no {RECIPE}; name an empty folder"
    )
  files.write_json(place, recipe)


def _flat(
  recipe: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  for key, value in recipe.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def _short(value: Any) -> str:
  text = f"{value!r}"
  return text if len(text) <= 40 else f"{text[:37]}..."


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
  """Holds a local folder for this process, as long as it lives.

  Raises:
    ValueError: another process holds it.
  """
  if files.is_remote(folder):
    yield
    return
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, LOCK), "a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      file.seek(0)
      raise ValueError(
        f"another run ({file.read().strip() or 'just started'}) writes to "
        f"{folder}; wait for it, or name another evaluate.folder"
      ) from None
    # The name stays behind; the lock goes with the process, however it ends.
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield


def missing(folder: str, count: int) -> Missing:
  """Which of the first `count` images are not there."""
  there, rejected = set(), 0
  for inside in {index // EACH for index in range(0, count, EACH)}:
    for file in files.listing(os.path.join(folder, f"{inside:03d}")):
      stem, _, suffix = file.partition(".")
      if suffix in ("png", "rejected") and stem.isdecimal():
        if int(stem) < count and int(stem) not in there:
          there.add(int(stem))
          rejected += suffix == "rejected"
  return Missing([i for i in range(count) if i not in there], rejected)


def write(folder: str, index: int, image: Float[np.ndarray, "H W 3"]) -> bool:
  """Writes an image of values in [0, 1], or why it is none.

  Returns:
    Whether it is an image: one with a value that is not finite is not, and is
    not made again.
  """
  place = os.path.join(folder, name(index))
  wrong = int((~np.isfinite(image)).sum())
  if wrong:
    place = os.path.splitext(place)[0] + ".rejected"
    files.write_atomic(place, f"{wrong} of {image.size} values not finite\n")
    return False
  data = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
  files.write_atomic(place, grids.encode_png(data))
  return True


def indices(folder: str, count: int) -> list[int]:
  """The numbers of the images of a complete folder, without rejects.

  Raises:
    ValueError: images are missing, or all were rejected.
  """
  absent, _ = missing(folder, count)
  if absent:
    raise ValueError(
      f"{folder} lacks {len(absent):,} of {count:,} images, {name(absent[0])} "
      "the first; run the same command again, which makes them"
    )
  refused = {
    int(file.partition(".")[0])
    for inside in {index // EACH for index in range(0, count, EACH)}
    for file in files.listing(os.path.join(folder, f"{inside:03d}"))
    if file.endswith(".rejected")
  }
  found = [index for index in range(count) if index not in refused]
  if not found:
    raise ValueError(
      f"all {count:,} images of {folder} have values that are not finite; "
      "look at the checkpoint, or compute in float32 (train.dtype)"
    )
  return found


def read(folder: str, index: int) -> UInt8[np.ndarray, "H W 3"]:
  """One image.

  Raises:
    ValueError: it is not there or is damaged.
  """
  place = os.path.join(folder, name(index))
  try:
    return images.decode(files.path(place).read_bytes())
  except FileNotFoundError:
    raise ValueError(
      f"{place} is gone; run the same command again, which makes it"
    ) from None
  except images.ImageError as error:
    raise ValueError(
      f"{place} is damaged ({error}); remove it and run the same command "
      "again, which makes it anew"
    ) from None


def reader(folder: str, chosen: Sequence[int]) -> functools.partial:
  """A function from a place among `chosen` to that image."""
  return functools.partial(_read_at, folder, tuple(chosen))


def _read_at(folder: str, chosen: tuple[int, ...], place: int) -> np.ndarray:
  return read(folder, chosen[place])
