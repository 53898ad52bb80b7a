# SPDX-License-Identifier: Apache-2.0
"""Generated images as the tools of other benchmarks read them.

    geneval     00000/metadata.jsonl, 00000/samples/0000.png ...
                github.com/djghosh13/geneval, of its evaluation_metadata.jsonl
    hpsv2       anime/00000.jpg ..., a folder a style
                github.com/tgxs002/HPSv2, of a folder of its four .json files
    dpg         STEM.png, the images of a prompt as one square of tiles
                github.com/TencentQQGYLab/ELLA, of its folder of prompts
    compbench   samples/PROMPT_000000.png
                github.com/Karine-Huang/T2I-CompBench, of one of its .txt files

Their scores are made by their own tools, in an environment of their own.
"""

from collections.abc import Callable, Iterator
import io
import json
import math
import os

import numpy as np
from PIL import Image

from cc_jax.core import files
from cc_jax.data import generated, grids, prompt_sets

# A file to write, and its bytes when it is not there.
File = tuple[str, Callable[[], bytes]]


def write(
  layout: str,
  folder: str,
  target: str | os.PathLike[str],
  prompts: prompt_sets.Set,
  each: int,
) -> int:
  """Writes the files of a layout that are not there.

  Args:
    layout: a key of `LAYOUTS`.
    folder: of generated images, number `each * p + k` for prompt p.
    target: where to.
    prompts: in their order.
    each: images a prompt.

  Returns:
    How many files the target has.

  Raises:
    ValueError: an unknown layout, prompts that it cannot name, or an image that
      is missing.
  """
  check(layout, prompts, each)
  count = 0
  for name, make in LAYOUTS[layout](folder, prompts, each):
    place = os.path.join(target, name)
    if not files.path(place).exists():
      files.write_atomic(place, make())
    count += 1
  return count


def check(layout: str, prompts: prompt_sets.Set, each: int) -> None:
  """Refuses prompts that a layout has no place for.

  Raises:
    ValueError: it has none.
  """
  if layout not in LAYOUTS:
    raise ValueError(
      f"unknown layout {layout!r}; expected {', '.join(LAYOUTS)}"
    )
  if layout == "geneval":
    if not all("tag" in row for row in prompts.rows):
      raise ValueError(
        f"{prompts.name} has no GenEval metadata; name its "
        "evaluation_metadata.jsonl as evaluate.prompts"
      )
  if layout == "hpsv2" and not all("/" in name for name in prompts.names):
    raise ValueError(
      f"{prompts.name} has no styles; name a folder of HPSv2's anime.json, "
      "concept-art.json, paintings.json and photo.json"
    )
  if layout == "hpsv2" and each != 1:
    raise ValueError(f"HPSv2 takes one image a prompt, not each={each}")
  if layout == "dpg" and math.isqrt(each) ** 2 != each:
    raise ValueError(f"DPG-Bench takes 1 or 4 images a prompt, not each={each}")
  if layout == "compbench":
    for text in prompts.texts:
      if "_" in text or "/" in text or len(text.encode()) > 240:
        raise ValueError(
          f"T2I-CompBench has the prompt in the file's name, which cannot be "
          f"{text[:80]!r}"
        )


def _geneval(
  folder: str, prompts: prompt_sets.Set, each: int
) -> Iterator[File]:
  for place, row in enumerate(prompts.rows):
    told = json.dumps(row)
    yield f"{place:05d}/metadata.jsonl", lambda told=told: told.encode()
    for k in range(each):
      yield f"{place:05d}/samples/{k:04d}.png", _png(folder, place * each + k)


def _hpsv2(folder: str, prompts: prompt_sets.Set, each: int) -> Iterator[File]:
  del each
  for place, name in enumerate(prompts.names):
    style, _, number = name.rpartition("/")
    yield (
      f"{style}/{int(number):05d}.jpg",
      lambda place=place: _jpeg(generated.read(folder, place)),
    )


def _dpg(folder: str, prompts: prompt_sets.Set, each: int) -> Iterator[File]:
  side = math.isqrt(each)

  def tiles(place: int) -> bytes:
    found = [generated.read(folder, place * each + k) for k in range(each)]
    rows = [np.concatenate(found[r * side :][:side], 1) for r in range(side)]
    return grids.encode_png(np.concatenate(rows))

  for place, name in enumerate(prompts.names):
    yield f"{name}.png", lambda place=place: tiles(place)


def _compbench(
  folder: str, prompts: prompt_sets.Set, each: int
) -> Iterator[File]:
  for place, text in enumerate(prompts.texts):
    for k in range(each):
      index = place * each + k
      yield f"samples/{text}_{index:06d}.png", _png(folder, index)


LAYOUTS = {
  "geneval": _geneval,
  "hpsv2": _hpsv2,
  "dpg": _dpg,
  "compbench": _compbench,
}


def _png(folder: str, index: int) -> Callable[[], bytes]:
  return lambda: grids.encode_png(generated.read(folder, index))


def _jpeg(image: np.ndarray) -> bytes:
  """Of little loss; the tool knows no other suffix."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
  return file.getvalue()
