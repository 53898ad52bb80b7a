# SPDX-License-Identifier: Apache-2.0
"""cc-jax catalogue: a folder of images to a dataset, by licence."""

import functools

import jax
import ml_collections

from cc_jax.core import log, versions
from cc_jax.data import catalogue, licences, passes, sources

# What decides which images are let in.
SETTINGS = ("collection", "licence", "min_side", "max_pixels")


def main(config: ml_collections.ConfigDict, workdir: str) -> passes.Counts:
  """Lets in what the collection may hold, and counts what it may not.

  Raises:
    ValueError: no such folder or collection, or a default licence that is not
      a Creative Commons one.
  """
  options = config.catalogue
  examine = functools.partial(
    catalogue.examine,
    collection=options.collection,
    licence=options.licence,
    min_side=options.min_side,
    max_pixels=options.max_pixels,
  )
  # Asked of the gate before anything is read, so that typos stop here.
  licences.gate(options.collection, licence_url=options.licence)
  if options.licence and licences.parse(options.licence) is None:
    raise ValueError(
      f"catalogue.licence={options.licence!r} is not in data/licences.py; "
      "expected an id such as CC-BY-4.0 or the address of its deed"
    )
  pieces = sources.folder_pieces(
    options.source,
    options.columns.to_dict(),
    options.records_per_shard,
  )
  total = sum(piece.length for piece in pieces)
  log.announce(
    "catalogue",
    f"{total} rows of {options.source} -> {options.folder}, "
    f"{options.collection} collection",
  )
  with log.progress(total, "catalogue", "images") as progress:
    counts = passes.run(
      options.folder,
      name=config.name,
      stage="catalogue",
      features=catalogue.FEATURES,
      pieces=pieces,
      fn=lambda rows: [examine(row) for row in rows],
      batch_size=64,
      config={
        **{name: options[name] for name in SETTINGS},
        "columns": options.columns.to_dict(),
      },
      inputs=[sources.folder_inputs(options.source)],
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=progress,
    )
  versions.record(workdir, "catalogue", config)
  log.announce("catalogue", f"{counts}")
  return counts
