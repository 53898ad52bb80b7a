# SPDX-License-Identifier: Apache-2.0
"""cc-jax caption: a caption for each image, in a folder beside the images."""

from collections.abc import Iterator
import contextlib
import os
import tempfile

import jax
import ml_collections

from cc_jax.core import files, log, versions
from cc_jax.data import passes, shards, tokenize
from cc_jax.pipelines import captioner


def main(config: ml_collections.ConfigDict, workdir: str) -> passes.Counts:
  """Writes `caption_<name>`, and trains a tokenizer if asked to.

  Raises:
    ValueError: no images, or templates that do not fit them.
  """
  options = config.caption
  captioner.check_templates(options.templates)
  dataset = shards.open(options.images)
  feature = f"caption_{options.name}"

  def caption(examples):
    return [
      {
        "key": example["key"],
        feature: captioner.from_metadata(example, options.templates),
      }
      for example in examples
    ]

  total = len(dataset)
  log.announce(
    "caption", f"{total} images of {options.images} -> {options.folder}"
  )
  with log.progress(total, "caption", "images") as progress:
    counts = passes.run(
      options.folder,
      name=dataset.name,
      stage="caption",
      features={"key": "text", feature: "text"},
      pieces=passes.pieces([dataset]),
      fn=caption,
      batch_size=256,
      config={"method": "metadata", "templates": list(options.templates)},
      inputs=passes.inputs([dataset]),
      keep_all=True,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=progress,
    )
  versions.record(workdir, "caption", config)
  log.announce("caption", f"{counts}")
  if options.vocabulary and counts.complete:
    train_tokenizer(config, feature)
  return counts


def train_tokenizer(config: ml_collections.ConfigDict, feature: str) -> None:
  """Trains a byte-pair tokenizer on the captions of the train split.

  For models that are trained from nothing: a pretrained text tower comes with
  its own.
  """
  folder = config.model.tokenizer
  if files.listing(folder):
    log.announce("tokenizer", f"{folder} is there already")
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
  with tempfile.TemporaryDirectory(
    dir=parent, prefix=f".{last}.", suffix=".tmp"
  ) as temporary:
    written = os.path.join(temporary, last)
    yield written
    try:
      os.replace(written, name)
    except OSError:
      # Another process has made the same one.
      if not files.listing(name):
        raise
