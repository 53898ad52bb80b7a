# SPDX-License-Identifier: Apache-2.0
"""Did a model learn images by heart? What it makes beside what it learned.

Two ways to look. A hash of 256 bits (data/duplicates.py) finds copies, also
mirrored ones and ones that are a part of the other: of the training image as it
is and of its middle square, which is what most models see. And the embedding of
a CLIP finds what is nearest in content, for a person to look at: likeness is no
proof, and the copies that are counted are those of the hash.

    memorisation.json   the images most like one of training, with its author,
                        licence and page
    memorisation.png    the same side by side

tests/pipelines/test_memorisation.py plants copies; its docstring has what was
found of them among photographs.
"""

from collections.abc import Callable, Iterable, Sequence
import os
from typing import Any, NamedTuple

import jax
from jaxtyping import Bool, Int64, UInt8
import ml_collections
import numpy as np
from PIL import Image

from cc_jax.core import files, log
from cc_jax.data import aligned, duplicates, generated, grids, images, shards
from cc_jax.metrics import neighbours
from cc_jax.pipelines import image_features

LIST, PICTURE = "memorisation.json", "memorisation.png"
OWED = ("key", "title", "author", "licence", "licence_url", "page_url")
NONE = 257
"""Bits to the nearest hash of an image that has none within the threshold."""

_BLOCK = 4096
_SIDE = 160  # Of the pictures side by side, in pixels.


class Copies(NamedTuple):
  """For each image the training image that it is a copy of.

  Attributes:
    row: of training; -1 for none.
    bits: in which their hashes differ; NONE for none.
  """

  row: Int64[np.ndarray, "N"]
  bits: Int64[np.ndarray, "N"]


def none(count: int) -> Copies:
  """So many images of which none is a copy."""
  return Copies(np.full(count, -1, np.int64), np.full(count, NONE, np.int64))


def find_copies(
  training: UInt8[np.ndarray, "M 32 32"],
  made: UInt8[np.ndarray, "N 32 32"],
  threshold: int = duplicates.THRESHOLD,
) -> Copies:
  """Which images are copies, whole, mirrored, or a part of the other.

  Args:
    training: signatures of `duplicates.luminance`.
    made: likewise.
    threshold: the most bits in which copies differ.
  """
  row, bits = none(len(made))
  whole = ((0.0, 1.0), (0.0, 1.0))
  parts = (whole, *duplicates.WINDOWS)
  hash_all = lambda rows: duplicates.pack(duplicates.bits(rows))
  flat = lambda rows: rows.std((1, 2)) < duplicates.FLAT
  mine = np.flatnonzero(~flat(made))
  theirs = np.flatnonzero(~flat(training))
  if not len(mine) or not len(theirs):
    return Copies(row, bits)

  def note(ours: np.ndarray, other: np.ndarray, far: np.ndarray) -> None:
    # The nearest of each; of equals, the earlier in training.
    order = np.lexsort((other, far))
    ours, other, far = ours[order], other[order], far[order]
    first = np.unique(ours, return_index=True)[1]
    better = first[far[first] < bits[ours[first]]]
    row[ours[better]], bits[ours[better]] = other[better], far[better]

  # All parts of training images among generated ones,
  table = duplicates.index(hash_all(made[mine]))
  for chosen, probes in _probes(training, theirs, parts):
    for probe, found, far in duplicates.search(table, probes, threshold):
      note(mine[found], chosen[probe], far)
  # and parts of generated ones among those of training.
  table = duplicates.index(hash_all(training[theirs]))
  for chosen, probes in _probes(made, mine, duplicates.WINDOWS):
    for probe, found, far in duplicates.search(table, probes, threshold):
      note(chosen[probe], theirs[found], far)
  return Copies(row, bits)


def _probes(
  signatures: UInt8[np.ndarray, "n 32 32"],
  rows: Int64[np.ndarray, " m"],
  parts: Sequence[Any],
) -> Iterable[tuple[np.ndarray, Bool[np.ndarray, "k 256"]]]:
  """Hashes of parts of images and of their mirrored ones, with their rows."""
  for low in range(0, len(rows), _BLOCK):
    chosen = rows[low : low + _BLOCK]
    for part in parts:
      plain = duplicates.bits(signatures[chosen], *part)
      yield chosen, plain
      yield chosen, duplicates.mirrored(plain)


def signatures(name: str, middle: bool) -> image_features.Network:
  """What takes the place of a network: luminances for hashes."""

  def prepare(image: np.ndarray) -> np.ndarray:
    if middle:
      side = min(image.shape[:2])
      top, left = ((one - side) // 2 for one in image.shape[:2])
      image = image[top : top + side, left : left + side]
    return duplicates.luminance(image)

  return image_features.Network(
    name,
    {"hash": "luminance", "middle": middle},
    ("luminance",),
    prepare,
    jax.jit(lambda params, rows: {"luminance": rows}),
    {},
  )


class Training(NamedTuple):
  """The images that a model learned from.

  Attributes:
    source: their records.
    features: of `image_features.cached`.
    name: of the folder.
  """

  source: aligned.Source
  features: dict[Any, Any]
  name: str


def open_training(
  config: ml_collections.ConfigDict, clip: image_features.Network | None
) -> Training:
  """Looks at all images of `config.evaluate.training`, unless it was done.

  Raises:
    ValueError: there are none, or their authors are not known.
  """
  options = config.evaluate
  dataset = shards.open(options.training)
  known = {field.name for field in dataset.fields}
  if absent := [name for name in (*OWED, "image") if name not in known]:
    raise ValueError(
      f"{dataset.folder} has no feature {absent[0]!r}; evaluate.training names "
      "a folder of images that `cc-jax catalogue` wrote"
    )
  source = aligned.source([dataset], options.training_split, ("image", *OWED))
  light = aligned.source([dataset], options.training_split, ("key",))
  keys = "\n".join(light[row]["key"] for row in range(len(light)))
  light.close()
  eyes = [
    signatures("whole", middle=False),
    signatures("middle", middle=True),
    *([clip] if clip else []),
  ]
  side = 512

  def read(row: int) -> np.ndarray:
    return images.decode(source[row]["image"], at_least=(side, side))

  found = image_features.cached(
    options.cache,
    eyes,
    {"training": files.sha256(keys.encode()), "at_least": side},
    read,
    len(source),
    batch_size=options.batch_size,
    what="training images",
  )
  return Training(source, found, dataset.folder)


def of_either(
  training: Training, made: UInt8[np.ndarray, "N 32 32"], threshold: int
) -> Copies:
  """`find_copies` of whole training images or their middles: the nearer."""
  whole, middle = (
    find_copies(training.features[name, "luminance"], made, threshold)
    for name in ("whole", "middle")
  )
  better = middle.bits < whole.bits
  return Copies(
    np.where(better, middle.row, whole.row),
    np.where(better, middle.bits, whole.bits),
  )


def look(
  config: ml_collections.ConfigDict,
  training: Training,
  clip: image_features.Network | None,
  folder: str,
  chosen: Sequence[int],
  texts: Sequence[str],
  made_by: dict[str, Any],
) -> dict[str, Any]:
  """Compares the images of a folder with those of training.

  Args:
    config: `evaluate` has what is listed and what counts as a copy.
    training: of `open_training`.
    clip: that it was opened with.
    folder: of generated images.
    chosen: their numbers.
    texts: the prompt of each number.
    made_by: what decides the images, for the cache.

  Returns:
    `copies` of `copies_of` images, or None and `why` they cannot be counted;
    `training_images`; quantiles of the cosine.
  """
  options = config.evaluate
  eyes = [signatures("whole", middle=False), *([clip] if clip else [])]
  ours = image_features.cached(
    options.cache,
    eyes,
    made_by,
    generated.reader(folder, chosen),
    len(chosen),
    batch_size=options.batch_size,
    what=f"images of {folder}",
  )
  side = min(generated.read(folder, chosen[0]).shape[:2])
  near, found = None, {}
  if side < duplicates.FREQUENCIES:
    # Among digits of 8 pixels it took 83 % of held-out ones for copies.
    copies, counted = none(len(chosen)), None
    found["why"] = (
      f"images of {side} pixels a side are too small for the hash, which needs "
      f"{duplicates.FREQUENCIES}"
    )
  else:
    mine = ours["whole", "luminance"]
    copies = of_either(training, mine, options.copy_bits)
    counted = int((copies.row >= 0).sum())
  if clip:
    bank = training.features[clip.name, "image"]
    near = neighbours.nearest(ours[clip.name, "image"], bank)
    cosine = near.cosine[:, 0]
    for share in (0.5, 0.99, 1.0):
      found[f"cosine_{share:g}"] = float(np.quantile(cosine, share))
  found = {
    "copies": counted,
    "copies_of": len(chosen),
    "training_images": len(training.source),
    **found,
  }
  # Copies first, then what is nearest in content.
  likeness = near.cosine[:, 0] if near else np.zeros(len(chosen))
  order = np.lexsort((-likeness, copies.bits))[: options.nearest]
  rows = []
  for place in order.tolist():
    row = int(copies.row[place])
    copied = row >= 0
    if not copied:
      if near is None:
        break
      row = int(near.row[place, 0])
    owed = {name: training.source[row][name] for name in OWED}
    rows.append(
      {
        "image": generated.name(chosen[place]),
        "prompt": texts[chosen[place]],
        "copy": copied,
        "bits": int(copies.bits[place]) if copied else None,
        "cosine": float(likeness[place]) if near and not copied else None,
        "row": row,
        **owed,
      }
    )
  if log.is_first():
    whole_list = {"training": training.name, **found, "nearest": rows}
    files.write_json(os.path.join(folder, LIST), whole_list)
    if rows:
      picture = side_by_side(folder, rows, lambda row: training.source[row])
      files.write_atomic(
        os.path.join(folder, PICTURE), grids.encode_png(picture)
      )
  return found


def side_by_side(
  folder: str,
  rows: Sequence[dict[str, Any]],
  record: Callable[[int], dict[str, Any]],
) -> UInt8[np.ndarray, "h w 3"]:
  """Pairs of pictures: what was made, and what it is like."""
  pictures, labels = [], []
  for one in rows:
    number = int(os.path.splitext(os.path.basename(one["image"]))[0])
    theirs = images.decode(record(one["row"])["image"], at_least=(_SIDE, _SIDE))
    for image in (generated.read(folder, number), theirs):
      pictures.append(fitted(image, _SIDE))
    how = (
      f"{one['bits']} bits apart"
      if one["copy"]
      else f"cosine {one['cosine']:.3f}"
    )
    by = one["author"] or "author not stated"
    labels += [f"{one['prompt']}", f"{how}: {by}, {one['licence']}"]
  return grids.grid(np.stack(pictures), 4, labels)


def fitted(
  image: UInt8[np.ndarray, "H W 3"], side: int
) -> UInt8[np.ndarray, "{side} {side} 3"]:
  """A picture on a white square."""
  picture = Image.fromarray(image)
  scale = side / max(picture.size)
  size = tuple(max(1, round(one * scale)) for one in picture.size)
  kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
  sheet = Image.new("RGB", (side, side), "white")
  place = ((side - size[0]) // 2, (side - size[1]) // 2)
  sheet.paste(picture.resize(size, kind), place)
  return np.asarray(sheet)
