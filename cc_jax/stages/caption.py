# SPDX-License-Identifier: Apache-2.0
"""cc-jax caption: a caption for each image, in a folder beside the images."""

import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import os
import shutil
import tempfile
from typing import Any, NamedTuple

import jax
import ml_collections

from cc_jax.core import files, log, sharding, versions
from cc_jax.data import (
  caption_join,
  caption_quality,
  drafts,
  passes,
  shards,
  tally,
  tokenize,
)
from cc_jax.pipelines import (
  caption_recipe,
  captioner,
  image_captioner,
  overlap,
)

# Of what the pieces yield, captions and the flags that they have already.
Write = Callable[[Sequence[Any]], list[tuple[str, list[str]]]]


class Way(NamedTuple):
  """A way to captions.

  Attributes:
    write: makes them.
    config: all that decides them, for provenance.
    pieces: what is read.
    weights: their hash, where a network makes them; else "".
    batch_size: most records in a call.
    seconds: of `overlap.run`, where it is used.
  """

  write: Write
  config: dict[str, Any]
  pieces: Sequence[passes.Piece]
  weights: str = ""
  batch_size: int = 256
  seconds: overlap.Seconds | None = None


def main(config: ml_collections.ConfigDict, workdir: str) -> tally.Counts:
  """Writes `caption_<name>`, and trains a tokenizer if asked to.

  Raises:
    ValueError: no images, or templates, a network or a file that do not fit.
  """
  options = config.caption
  if options.captioner not in WAYS:
    raise ValueError(
      f"caption.captioner={options.captioner!r}; expected {', '.join(WAYS)}"
    )
  dataset = shards.open(options.images)
  feature, flags = f"caption_{options.name}", f"flags_{options.name}"
  total = len(dataset)
  log.announce(
    "caption",
    f"{options.captioner}: {total} images of {options.images} -> "
    f"{options.folder}",
  )
  way = WAYS[options.captioner](config, passes.pieces([dataset]))
  gate = gate_of(options.flags)

  def caption(examples):
    written = way.write(examples)
    found = gate([text for text, _ in written])
    return [
      # Of what has a flag already, no further one would say more.
      {"key": drafts.of(example, "key"), feature: text, flags: known or judged}
      for example, (text, known), judged in zip(
        examples, written, found, strict=True
      )
    ]

  with log.progress(total, "caption", "images") as progress:
    counts = passes.run(
      options.folder,
      name=dataset.name,
      stage="caption",
      features={"key": "text", feature: "text", flags: ("text", (None,))},
      pieces=way.pieces,
      fn=caption,
      batch_size=way.batch_size,
      config={**way.config, "flags": dict(options.flags)},
      inputs=passes.inputs([dataset]),
      weights={feature: way.weights} if way.weights else None,
      keep_all=True,
      flags=flags,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=progress,
    )
  versions.record(workdir, "caption", config)
  if counts.shards and way.seconds:
    overlap.record(workdir, "caption", way.seconds)
  log.announce("caption", f"{counts}")
  if options.vocabulary and counts.complete:
    train_tokenizer(config, feature)
  return counts


def from_metadata(
  config: ml_collections.ConfigDict, pieces: Sequence[passes.Piece]
) -> Way:
  """Captions from what the source says."""
  options = config.caption
  captioner.check_templates(options.templates)

  def write(examples):
    return [
      (captioner.from_metadata(one, options.templates, options.clean), [])
      for one in examples
    ]

  decides = {"templates": list(options.templates), "clean": options.clean}
  return Way(write, {"method": "metadata", **decides}, pieces)


def from_network(
  config: ml_collections.ConfigDict, pieces: Sequence[passes.Piece]
) -> Way:
  """Captions from a network that looks at the images."""
  options = config.caption
  chosen = {
    field.name: options[field.name]
    for field in dataclasses.fields(caption_recipe.Recipe)
    if field.name in options
  }
  recipe = caption_recipe.Recipe(options.captioner, seed=config.seed, **chosen)
  # Hosts work apart, each on its own shards and devices.
  mesh = sharding.make_mesh(**options.mesh, devices=jax.local_devices())
  model = options.model or caption_recipe.KINDS[recipe.kind].model
  loaded, tokenizer = image_captioner.load(
    model, options.tokenizer, recipe, mesh
  )
  made = image_captioner.make(
    loaded, tokenizer, recipe, mesh=mesh, batch_size=options.batch_size
  )
  seconds: overlap.Seconds = collections.Counter()
  stream = image_captioner.stream(made, seconds)
  return Way(
    lambda batch: [written for (written,) in overlap.results(batch)],
    {
      "method": recipe.kind,
      **recipe.decides(),
      "size": made.size,
      "tokenizer": tokenize.digest(tokenizer),
    },
    [overlap.piece(piece, stream) for piece in pieces],
    loaded.hash,
    made.batch_size,
    seconds,
  )


def from_file(
  config: ml_collections.ConfigDict, pieces: Sequence[passes.Piece]
) -> Way:
  """Captions of others, joined by the photograph's id or key."""
  join = config.caption.join
  found = caption_join.read(join.file, join.column, join.caption)
  if join.by not in caption_join.BY:
    raise ValueError(
      f"caption.join.by={join.by!r}; expected {' or '.join(caption_join.BY)}"
    )
  log.announce("caption", f"{len(found):,} captions in {join.file}")

  def write(examples):
    texts = found.find([example[join.by] for example in examples])
    none = [caption_quality.NO_CAPTION]
    return [(text, []) if text else ("", none) for text in texts]

  decides = {**join, "captions": found.digest}
  return Way(write, {"method": "join", **decides}, pieces)


WAYS = {
  "metadata": from_metadata,
  "blip2": from_network,
  "llava": from_network,
  "join": from_file,
}


def gate_of(
  options: ml_collections.ConfigDict,
) -> Callable[[list[str]], list[list[str]]]:
  """What gives captions their flags."""
  count = None
  if options.tokenizer:
    tokenizer = tokenize.load(options.tokenizer)
    count = functools.partial(tokenize.lengths, tokenizer)
  return functools.partial(
    caption_quality.gate,
    min_words=options.min_words,
    count=count,
    longest=options.tokens,
  )


def train_tokenizer(config: ml_collections.ConfigDict, feature: str) -> None:
  """Trains a byte-pair tokenizer on the captions of the train split.

  For models that are trained from nothing: a pretrained text tower comes with
  its own.
  """
  folder = config.model.tokenizer
  if files.listing(folder):
    log.announce("tokenizer", f"{folder} is there already")
    _sweep(folder)
    return
  dataset = shards.open(config.caption.folder)
  captions = [
    example[feature]
    for shard in range(len(dataset.splits[config.train.split]))
    for example in shards.read(dataset, config.train.split, shard, (feature,))
  ]
  with _folder(folder) as written:
    tokenize.train(
      captions,
      written,
      vocabulary=config.caption.vocabulary,
      length=config.encode.tokens,
    )
  log.announce("tokenizer", f"trained on {len(captions)} captions -> {folder}")


@contextlib.contextmanager
def _folder(name: str) -> Iterator[str]:
  """A folder to be filled, which gets its name when it is.

  One that is there is taken for whole. On a bucket it is filled in its place.
  """
  if files.is_remote(name):
    yield name
    return
  parent, last = os.path.split(os.path.abspath(name))
  os.makedirs(parent, exist_ok=True)
  try:
    with tempfile.TemporaryDirectory(
      dir=parent, prefix=f".{last}.", suffix=".tmp"
    ) as temporary:
      written = os.path.join(temporary, last)
      yield written
      os.replace(written, name)
  except Exception:
    # Another process has made the same one, and perhaps swept ours away.
    if not files.listing(name):
      raise
  _sweep(name)


def _sweep(name: str) -> None:
  """Removes what killed processes left beside a folder that is there."""
  if files.is_remote(name):
    return
  parent, last = os.path.split(os.path.abspath(name))
  for beside in files.listing(parent):
    if beside.startswith(f".{last}.") and beside.endswith(".tmp"):
      shutil.rmtree(os.path.join(parent, beside), ignore_errors=True)
