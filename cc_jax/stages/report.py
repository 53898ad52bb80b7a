# SPDX-License-Identifier: Apache-2.0
"""cc-jax report: one HTML page, of a dataset, a run or pairs to vote on.

To be opened anywhere: a page asks for nothing that is not in it.
"""

import bisect
from collections.abc import Iterator, Mapping
import io
import itertools
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from PIL import Image

from cc_jax.core import files, log, versions
from cc_jax.data import (
  aligned,
  images,
  licences,
  page,
  prompt_sets,
  shards,
  tokenize,
)
from cc_jax.pipelines import dataset_report, pairwise, run_report

_NEEDED = ("author", "height", "licence", "licence_url", "page_url", "title")


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
    ValueError: a kind that there is not, or what it would show is not there.
  """
  options = config.report
  kinds = {"dataset": dataset_page, "run": run_page, "pairwise": voting_page}
  if options.kind not in kinds:
    raise ValueError(
      f"report.kind={options.kind!r}; expected {', '.join(kinds)}"
    )
  kinds[options.kind](config, workdir)
  versions.record(workdir, "report", config)
  return options.page


def dataset_page(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Numbers, charts and pictures of a folder of images.

  Raises:
    ValueError: no such dataset, or captions that are not beside it.
  """
  del workdir
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
  log.announce(
    "report", f"{len(seen.pictures)} pictures shown -> {options.page}"
  )


def run_page(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Curves, samples, metrics, data, cost and commands of a training.

  Raises:
    ValueError: nothing was trained in the work folder.
  """
  if log.is_first():
    files.write_atomic(config.report.page, run_report.write(config, workdir))
  log.announce("report", f"the run of {workdir} -> {config.report.page}")


def voting_page(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Pairs of pictures to vote on, and the key to whose they are.

  Raises:
    ValueError: folders that are not of the same prompts.
  """
  del workdir
  options = config.report
  if len(options.pairwise) != 2 or not all(options.pairwise):
    raise ValueError(
      f"report.pairwise={options.pairwise}; expected two folders of images "
      "that `cc-jax evaluate` made, ('A/guidance-3', 'B/guidance-3')"
    )
  prompts = prompt_sets.prompts(
    prompt_sets.open(config.evaluate.prompts, config.evaluate.split)
  )
  text, key = pairwise.page(
    tuple(options.pairwise),
    prompts,
    pairs=options.pairs,
    seed=config.seed,
    names=tuple(options.names),
    each=config.evaluate.each,
  )
  if log.is_first():
    files.write_json(options.key, key)
    files.write_atomic(options.page, text)
  log.announce(
    "report",
    f"{len(key['pairs']):,} pairs -> {options.page}; the key, which is not for "
    f"voters -> {options.key}",
  )


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
    dataset_report.sizes(seen.sizes),
  ]
  if seen.captions:
    of = datasets[1].provenance
    flagged = of.get("counts", {}).get("flags", {})
    sections += [
      dataset_report.captions(seen.captions, tokens(seen, of), flagged, total),
      dataset_report.vocabulary(seen.captions),
    ]
  summary = f"{options.duplicates}.summary.json"
  if options.duplicates and files.path(summary).exists():
    sections.append(dataset_report.copies(files.read_json(summary)))
  sections += [
    dataset_report.waited(files.read_json(path))
    for path in options.seconds
    if files.path(path).exists()
  ]
  whole = "all" if measured == total else f"{measured:,} drawn at random"
  code = dataset.provenance.get("code") or [{}]
  return page.render(
    title=f"{dataset.name}: {total:,} images",
    subtitle=f"{dataset.folder}, written by "
    f"cc-jax {dataset.provenance.get('stage', '(unknown)')}.",
    numbers=numbers,
    sections=sections,
    shown=page.gallery(
      seen.pictures,
      f"{len(seen.pictures):,} of {total:,} images, drawn at random.",
    ),
    footer="Made by cc-jax report. Sizes and captions are of "
    f"{whole} of the images; licences and reasons are of all. "
    f"Git revision {code[0].get('revision') or 'unknown'}.",
    provenance=files.to_json(dataset.provenance),
  )


def tokens(seen: Sample, provenance: Mapping[str, Any]) -> list[int]:
  """Lengths of captions for the text encoder that their flags are about."""
  flags = provenance.get("config", {}).get("flags", {})
  if not flags.get("tokenizer"):
    return []
  return tokenize.lengths(tokenize.load(flags["tokenizer"]), seen.captions)
