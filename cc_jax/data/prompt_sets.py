# SPDX-License-Identifier: Apache-2.0
"""What models are compared on: prompts, real images, or both.

    coco30k         30,000 images of COCO 2014's validation with one caption
    parti           the 1,632 prompts of PartiPrompts
    a file          .txt: a prompt a line; .jsonl, .json, .csv, .tsv, .parquet
    a folder        a dataset of cc-jax; images; text files, one prompt each;
                    .json files, many each (HPSv2)
    hf://datasets/OWNER/NAME    Parquet files on the hub

None of these is part of this package. COCO comes from tensorflow-datasets
where `coco_captions` is prepared, else from the Hugging Face hub.
"""

from collections.abc import Callable, Mapping, Sequence
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
from typing import Any

import huggingface_hub
import numpy as np
from pyarrow import parquet
import tensorflow_datasets as tfds

from cc_jax.core import files
from cc_jax.data import aligned, shards, sources_files, sources_folder

COCO = "coco30k"
COCO_COUNT = 30_000
COCO_HUB = "hf://datasets/sayakpaul/coco-30-val-2014"
# TFDS cuts COCO 2014's validation in three, as Karpathy did.
COCO_SPLITS = ("val", "test", "restval")
PARTI = "parti"
PARTI_HUB = ("nateraw/parti-prompts", "PartiPrompts.tsv")

# Columns and keys that hold the prompt, in this order.
TEXTS = ("prompt", "Prompt", "caption", "Caption", "text", "TEXT")
IMAGES = ("image", "jpg")
LISTS = (".txt", ".jsonl", ".json", ".csv", ".tsv")


@dataclasses.dataclass(frozen=True)
class Set:
  """Prompts, images, or images with prompts, always in the same order.

  Attributes:
    name: as it was asked for.
    names: of each row in its source: the stem of a file, a key, a number.
    texts: the prompts; empty for images alone.
    rows: what the source says of each prompt besides, for tools that want it.
    image: the bytes of an image by its row; None for prompts alone.
    identity: a hash of the images or of where they come from; "" for none.
  """

  name: str
  names: tuple[str, ...]
  texts: tuple[str, ...]
  rows: tuple[Mapping[str, Any], ...] = ()
  image: Callable[[int], bytes] | None = None
  identity: str = ""

  def __len__(self) -> int:
    return len(self.names)

  @property
  def hash(self) -> str:
    """Of the prompts in their order."""
    return files.sha256(json.dumps(self.texts).encode())


def open(name: str, split: str = "validation") -> Set:
  """A set by its name, a file or a folder.

  Args:
    name: see the top of this file.
    split: of a dataset of cc-jax.

  Raises:
    ValueError: there is no such set, or it is empty or cannot be fetched.
  """
  found = _find(name, split)
  if not len(found):
    raise ValueError(f"{name} has neither prompts nor images")
  return found


def first(found: Set, count: int) -> Set:
  """The first rows of a set; all of them for a count of 0.

  Raises:
    ValueError: it does not have so many.
  """
  if count < 0 or count > len(found):
    raise ValueError(
      f"{count:,} rows of {found.name}, which has {len(found):,}; 0 takes all"
    )
  if not count:
    return found
  return dataclasses.replace(
    found,
    names=found.names[:count],
    texts=found.texts[:count],
    rows=found.rows[:count],
  )


def prompts(found: Set) -> Set:
  """The same set, which must have prompts.

  Raises:
    ValueError: it has images alone.
  """
  if not found.texts:
    raise ValueError(f"{found.name} has images without prompts")
  return found


def pictures(found: Set) -> Set:
  """The same set, which must have images.

  Raises:
    ValueError: it has prompts alone.
  """
  if found.image is None:
    raise ValueError(f"{found.name} has prompts without images")
  return found


def _find(name: str, split: str) -> Set:
  if name == COCO:
    return coco()
  if name == PARTI:
    repository, file = PARTI_HUB
    return _list(name, file, _fetch(repository, file))
  if sources_files.is_hub(name):
    return _parquet(name)
  place = files.path(name)
  if name.endswith(LISTS) and place.is_file():
    return _list(name, name, place.read_bytes())
  if name.endswith(".parquet") and place.is_file():
    return _parquet(name)
  if not place.is_dir():
    raise ValueError(
      f"no prompts {name!r}; expected {COCO}, {PARTI}, a file "
      f"({', '.join(LISTS)}, .parquet), a folder, or hf://datasets/OWNER/NAME"
    )
  if (place / shards.INFO).exists():
    return _dataset(name, split)
  names = _walk(name)
  kinds = {os.path.splitext(one)[1].lower() for one in names}
  if kinds & set(sources_folder.SUFFIXES):
    return _images(name, names)
  if ".parquet" in kinds:
    return _parquet(name)
  lists = [one for one in names if one.endswith(".json")]
  if lists:
    parts = [_list(one, one, (place / one).read_bytes()) for one in lists]
    stems = [os.path.splitext(one)[0] for one in lists]
    return Set(
      name,
      tuple(
        f"{s}/{n}" for s, p in zip(stems, parts, strict=True) for n in p.names
      ),
      tuple(text for part in parts for text in part.texts),
      tuple(row for part in parts for row in part.rows),
    )
  return _texts(name, names)


def _walk(name: str) -> list[str]:
  """The files below a folder, sorted."""
  found, folders = [], [""]
  while folders:
    inside = folders.pop()
    for path in (files.path(name) / inside).iterdir():
      place = os.path.join(inside, path.name)
      if os.path.splitext(path.name)[1] or not path.is_dir():
        found.append(place)
      else:
        folders.append(place)
  return sorted(found)


def _fetch(repository: str, file: str) -> bytes:
  try:
    path = huggingface_hub.hf_hub_download(
      repository, file, repo_type="dataset"
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"cannot fetch {file} of {repository}: {reason} Allow the network, or "
      "name a copy of the file"
    ) from None
  return files.path(path).read_bytes()


def _list(name: str, file: str, data: bytes) -> Set:
  """Prompts of a file, with what it says besides."""
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} is not UTF-8 text: {error}") from None
  suffix = os.path.splitext(file)[1]
  names: Sequence[str] = ()
  if suffix == ".txt":
    rows: list[Any] = [line.strip() for line in text.splitlines()]
    rows = [line for line in rows if line]
  elif suffix in (".csv", ".tsv"):
    delimiter = "\t" if suffix == ".tsv" else ","
    quoting = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
    rows = list(
      csv.DictReader(io.StringIO(text), delimiter=delimiter, quoting=quoting)
    )
  else:
    try:
      if suffix == ".jsonl":
        rows = [json.loads(x) for x in text.splitlines() if x.strip()]
      else:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
      raise ValueError(f"{name} is not JSON: {error}") from None
    if isinstance(rows, dict):
      names, rows = tuple(rows), list(rows.values())
  texts, details = [], []
  for number, row in enumerate(rows):
    found = row
    if isinstance(row, Mapping):
      found = next((row[key] for key in TEXTS if row.get(key)), None)
    if not isinstance(found, str) or not found.strip():
      raise ValueError(
        f"{name}, prompt {number}: no text in {str(row)[:60]!r}; expected a "
        f"string, or one under {', '.join(TEXTS)}"
      )
    texts.append(found.strip())
    details.append(row if isinstance(row, Mapping) else {})
  names = tuple(names) or tuple(str(number) for number in range(len(texts)))
  return Set(name, names, tuple(texts), tuple(details))


def _texts(name: str, found: Sequence[str]) -> Set:
  """A folder of text files, a prompt each (DPG-Bench)."""
  chosen = [one for one in found if one.endswith(".txt")]
  texts = [(files.path(name) / one).read_text().strip() for one in chosen]
  empty = [o for o, text in zip(chosen, texts, strict=True) if not text]
  if empty:
    raise ValueError(f"{name}/{empty[0]} is empty; expected a prompt")
  names = tuple(os.path.splitext(one)[0] for one in chosen)
  return Set(name, names, tuple(texts), ({},) * len(texts))


def _images(name: str, found: Sequence[str]) -> Set:
  """A folder of images, known by their bytes."""
  chosen = [
    one
    for one in found
    if os.path.splitext(one)[1].lower() in sources_folder.SUFFIXES
  ]
  read = lambda row: (files.path(name) / chosen[row]).read_bytes()
  digest = hashlib.sha256()
  for row, one in enumerate(chosen):
    digest.update(f"{one} {files.sha256(read(row))}\n".encode())
  names = tuple(os.path.splitext(one)[0] for one in chosen)
  return Set(name, names, (), (), read, digest.hexdigest())


def _dataset(name: str, split: str) -> Set:
  """A split of a dataset: its images, its captions, or both."""
  dataset = shards.open(name)
  fields = {field.name for field in dataset.fields}
  texts = sorted(one for one in fields if one.startswith("caption_"))
  texts = texts or [one for one in ("title",) if one in fields]
  light = aligned.source([dataset], split, ("key", *texts[:1]))
  rows = [light[row] for row in range(len(light))]
  light.close()
  keys = tuple(row["key"] for row in rows)
  captions = tuple(row[texts[0]] for row in rows) if texts else ()
  if not all(captions):
    captions = ()
  image, identity = None, ""
  if "image" in fields:
    source = aligned.source([dataset], split, ("image",))
    image = lambda row: source[row]["image"]
    # A key is the hash of the image's bytes.
    identity = files.sha256("\n".join(keys).encode())
  return Set(name, keys, captions, ({},) * len(captions), image, identity)


def _parquet(name: str) -> Set:
  """Parquet files with columns of prompts, images or both."""
  found = sources_files.find(name, ".parquet")
  texts: list[str] = []
  places: list[tuple[str, int]] = []
  column = None
  for file in found.names:
    with sources_files.opened(found, file) as opened:
      table = parquet.ParquetFile(opened)
      held = table.schema_arrow.names
      text = next((one for one in TEXTS if one in held), None)
      column = next((one for one in IMAGES if one in held), None)
      if text is None and column is None:
        raise ValueError(
          f"{name}/{file} has neither prompts ({', '.join(TEXTS)}) nor images "
          f"({', '.join(IMAGES)}), but {', '.join(held)}"
        )
      count = table.metadata.num_rows
      places += [(file, row) for row in range(count)]
      if text:
        read = table.read([text]).column(text).to_pylist()
        # Several captions of an image: the first.
        texts += [one if isinstance(one, str) else one[0] for one in read]
  image, identity = None, ""
  if column:
    read_file = functools.lru_cache(maxsize=2)(
      functools.partial(_column, found, column)
    )
    image = lambda row: read_file(places[row][0])[places[row][1]]
    identity = files.sha256(files.to_json(sources_files.inputs(found)).encode())
  names = tuple(str(number) for number in range(len(places)))
  return Set(name, names, tuple(texts), ({},) * len(texts), image, identity)


def _column(found: sources_files.Files, column: str, file: str) -> list[bytes]:
  """The images of a file, which are asked for in order."""
  with sources_files.opened(found, file) as opened:
    read = parquet.ParquetFile(opened).read([column]).column(column)
  return [x["bytes"] if isinstance(x, dict) else x for x in read.to_pylist()]


def coco(
  count: int = COCO_COUNT, builder: str = "coco_captions", seed: int = 0
) -> Set:
  """Images of COCO 2014's validation, each with the first of its captions.

  Which 30,000 of its 40,504 images CommonCanvas took is not published; these
  are drawn by seed from all, in the order of their numbers.

  Args:
    count: how many.
    builder: of TFDS, prepared as ArrayRecord; the folder it was prepared in
      does as well.
    seed: of the draw.
  """
  try:
    if files.path(builder).is_dir():
      made = tfds.builder_from_directory(builder)
    else:
      made = tfds.builder(builder)
    ready = made.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    splits = [one for one in COCO_SPLITS if one in made.info.splits]
  except (tfds.core.DatasetNotFoundError, FileNotFoundError, OSError):
    ready, splits = False, []
  if not ready or not splits:
    return dataclasses.replace(_parquet(COCO_HUB), name=COCO)
  skip = {"image": tfds.decode.SkipDecoding()}
  sources = [made.as_data_source(one, decoders=skip) for one in splits]
  rows = []
  for place, source in enumerate(sources):
    for row in range(len(source)):
      record = source[row]
      text = record["captions"]["text"][0]
      rows.append((int(record["image/id"]), place, row, text.decode().strip()))
  rows.sort()
  if count > len(rows):
    raise ValueError(
      f"{count:,} images of {made.info.full_name}: {len(rows):,}"
    )
  order = np.random.default_rng(seed).permutation(len(rows))[:count]
  chosen = [rows[row] for row in order.tolist()]
  identity = {
    "data set": made.info.full_name,
    "images": [number for number, *_ in chosen],
  }
  return Set(
    COCO,
    tuple(str(number) for number, *_ in chosen),
    tuple(text for *_, text in chosen),
    ({},) * len(chosen),
    lambda row: sources[chosen[row][1]][chosen[row][2]]["image"],
    files.sha256(json.dumps(identity).encode()),
  )
