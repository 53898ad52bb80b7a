# SPDX-License-Identifier: Apache-2.0
"""cc-jax report: one HTML page of a dataset folder, to be opened anywhere."""

import bisect
import collections
from collections.abc import Iterator
import io
import itertools
import re
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from PIL import Image

from cc_jax.core import files, log, versions
from cc_jax.data import aligned, images, licences, page, shards

_NEEDED = ("author", "height", "licence", "licence_url", "page_url", "title")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_RATIOS = {
  1 / 3: "1:3",
  1 / 2: "1:2",
  3 / 4: "3:4",
  1.0: "1:1",
  4 / 3: "4:3",
  2.0: "2:1",
  3.0: "3:1",
}


class Sample(NamedTuple):
  """What was seen of a dataset's records.

  Attributes:
    sizes: (height, width) of each.
    captions: of each, where there are any.
    urls: of the licences, by id.
    pictures: those that are shown.
  """

  sizes: list[tuple[int, int]]
  captions: list[str]
  urls: dict[str, str]
  pictures: list[page.Picture]


def main(config: ml_collections.ConfigDict, workdir: str) -> str:
  """Writes `config.report.page` and returns its path.

  Raises:
    ValueError: no such dataset, or captions that are not beside it.
  """
  options = config.report
  dataset = shards.open(options.images)
  absent = [n for n in _NEEDED if n not in {f.name for f in dataset.fields}]
  if absent:
    raise ValueError(
      f"{dataset.folder} has no feature {absent[0]!r}; name a folder of images "
      "that `cc-jax catalogue` wrote"
    )
  captions = shards.open(options.captions) if options.captions else None
  datasets = [dataset, *([captions] if captions else [])]
  log.announce(
    "report", f"{len(dataset)} images of {dataset.folder} -> {options.page}"
  )
  seen = sample(datasets, options, config.seed)
  if log.is_first():
    files.write_atomic(options.page, write(datasets, seen, options))
  versions.record(workdir, "report", config)
  log.announce(
    "report", f"{len(seen.pictures)} pictures shown -> {options.page}"
  )
  return options.page


def sample(
  datasets: list[shards.Dataset],
  options: ml_collections.ConfigDict,
  seed: int,
) -> Sample:
  """Reads records that are drawn at random, the same for the same seed."""
  dataset = datasets[0]
  feature = ""
  if len(datasets) > 1:
    names = sorted(field.name for field in datasets[1].fields)
    names = [name for name in names if name.startswith("caption_")]
    if not names:
      raise ValueError(
        f"{datasets[1].folder} has no feature caption_…; name a folder that "
        "`cc-jax caption` wrote"
      )
    feature = names[0]
  total = len(dataset)
  rng = np.random.default_rng(seed)
  drawn = rng.permutation(total)[: max(options.records, options.gallery)]
  shown = drawn[: options.gallery].tolist()
  seen, found = Sample([], [], {}, []), {}
  with log.progress(len(drawn), "report", "images") as progress:
    for index, record in _read(datasets, np.sort(drawn).tolist(), feature):
      seen.sizes.append((int(record["height"]), int(record["width"])))
      seen.urls[record["licence"]] = record["licence_url"]
      if feature:
        seen.captions.append(record[feature])
      if index in shown:
        text = record[feature] if feature else record["title"]
        if picture := _picture(record, text, options.thumbnail):
          found[index] = picture
      progress(1)
  # In the order they were drawn: a dataset is often sorted.
  seen.pictures.extend(found[index] for index in shown if index in found)
  return seen


def _read(
  datasets: list[shards.Dataset], indices: list[int], feature: str
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Records by their number over all splits."""
  names = [*_NEEDED, "image", "width", *([feature] if feature else [])]
  splits = [(s, sum(n)) for s, n in datasets[0].splits.items() if sum(n)]
  ends = list(itertools.accumulate(count for _, count in splits))
  sources = [aligned.source(datasets, split, names) for split, _ in splits]
  try:
    for index in indices:
      part = bisect.bisect_right(ends, index)
      before = ends[part - 1] if part else 0
      yield index, sources[part][index - before]
  finally:
    for source in sources:
      source.close()


def _picture(
  record: dict[str, Any], text: str, side: int
) -> page.Picture | None:
  """A record as it is shown; None for what cannot be decoded any more."""
  try:
    image = images.decode(record["image"], at_least=(side, side))
  except images.ImageError:
    return None
  small = Image.fromarray(image)
  small.thumbnail((side, side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  small.save(file, "WEBP", quality=75, method=6)
  return page.Picture(
    image=file.getvalue(),
    width=int(record["width"]),
    height=int(record["height"]),
    text=text,
    author=record["author"],
    licence=record["licence"],
    licence_url=record["licence_url"],
    page_url=record["page_url"],
  )


def write(
  datasets: list[shards.Dataset],
  seen: Sample,
  options: ml_collections.ConfigDict,
) -> str:
  """The page of a dataset, as HTML."""
  dataset = datasets[0]
  counts = dataset.provenance.get("counts", {})
  rejected = counts.get("rejected", {})
  held = counts.get("licences") or {}
  total, measured = len(dataset), len(seen.sizes)
  numbers = {"images": f"{total:,}"}
  if rejected:
    read = counts["read"]
    numbers["left out"] = f"{sum(rejected.values()):,}"
    numbers["kept of what was read"] = f"{100 * counts['kept'] / read:.1f} %"
  numbers["licence" if len(held) == 1 else "licences"] = str(len(held))
  numbers |= {name: f"{sum(n):,}" for name, n in dataset.splits.items()}
  urls = seen.urls | {
    licence: terms.url for licence in held if (terms := licences.parse(licence))
  }
  sections = [
    page.section(
      "Licences and what was left out",
      page.bars("Licences", held, urls),
      page.bars("Left out, by reason", rejected, of=counts.get("read"))
      if rejected
      else page.paragraph("Nothing was left out."),
    ),
    sizes(seen.sizes),
  ]
  if seen.captions:
    sections.append(captions(seen.captions))
  summary = f"{options.duplicates}.summary.json"
  if options.duplicates and files.path(summary).exists():
    sections.append(copies(files.read_json(summary)))
  whole = "all" if measured == total else f"{measured:,} drawn at random"
  code = dataset.provenance.get("code") or [{}]
  return page.render(
    title=f"{dataset.name}: {total:,} images",
    subtitle=f"{dataset.folder}, written by "
    f"cc-jax {dataset.provenance.get('stage', '(unknown)')}.",
    numbers=numbers,
    sections=sections,
    pictures=seen.pictures,
    sample=f"{len(seen.pictures):,} of {total:,} images, drawn at random.",
    footer="Made by cc-jax report. Sizes and captions are of "
    f"{whole} of the images; licences and reasons are of all. "
    f"Git revision {code[0].get('revision') or 'unknown'}.",
    provenance=files.to_json(dataset.provenance),
  )


def sizes(found: list[tuple[int, int]]) -> str:
  """Charts of the sizes of pictures."""
  height, width = np.array(found, np.float64).T
  shorter = np.minimum(height, width).tolist()
  return page.section(
    "Sizes",
    page.histogram("Shorter side, pixels", shorter, logarithmic=True),
    page.histogram(
      "Megapixels", (height * width / 1e6).tolist(), logarithmic=True
    ),
    page.histogram(
      "Width to height",
      (width / height).tolist(),
      logarithmic=True,
      names=_RATIOS,
    ),
  )


def captions(texts: list[str]) -> str:
  """Charts of the lengths of captions and of their words."""
  split = [_WORD.findall(text.lower()) for text in texts]
  counts = collections.Counter(word for words in split for word in words)
  once = sum(count == 1 for count in counts.values())
  most = dict(sorted(counts.items(), key=lambda x: (-x[1], x[0]))[:40])
  different = len(set(texts))
  return page.section(
    "Captions",
    page.histogram("Words in a caption", [float(len(x)) for x in split])
    + page.paragraph(
      f"{len(texts):,} captions, {different:,} of them different; "
      f"{len(counts):,} different words, {once:,} of them seen once."
    ),
    page.words("Most frequent words", most),
  )


def copies(summary: dict[str, Any]) -> str:
  """What `cc-jax deduplicate` found."""
  near = {int(bits): count for bits, count in summary["near"].items()}
  found = {
    "the same bytes": summary["exact"],
    "0 to 9 bits apart": sum(n for b, n in near.items() if b < 10),
    "10 to 19 bits": sum(n for b, n in near.items() if 10 <= b < 20),
    "20 to 29 bits": sum(n for b, n in near.items() if 20 <= b < 30),
    "30 bits or more": sum(n for b, n in near.items() if b >= 30),
  }
  found = {name: count for name, count in found.items() if count}
  return page.section(
    "Copies",
    page.bars("Copies of another image", found, of=summary["read"])
    if found
    else page.paragraph("No image is a copy of another one."),
    page.paragraph(
      f"{summary['read']:,} images were compared by hashes of 256 bits; up to "
      f"{summary['settings']['threshold']} bits apart, one is a copy, and the "
      "one with the freest licence, then the largest, is kept."
    ),
  )
