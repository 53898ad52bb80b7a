# SPDX-License-Identifier: Apache-2.0
"""cc-jax catalogue: images of any source to a dataset, by licence."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

import jax
import ml_collections

from cc_jax.core import config as configs
from cc_jax.core import log, versions
from cc_jax.data import (
  beam_runner,
  catalogue,
  filters,
  licences,
  opt_out,
  passes,
  rows,
  sources,
  tally,
)

RUNNERS = ("here", "beam")
# What decides which images are let in.
SETTINGS = ("collection", "licence", "min_side", "max_pixels", "url_encoded")


def main(config: ml_collections.ConfigDict, workdir: str) -> tally.Counts:
  """Lets in what the collection may hold, and counts what it may not.

  Raises:
    ValueError: no such source, collection or runner, a default licence that is
      not a Creative Commons one, or a rule, filter or opt-out list that cannot
      be read.
  """
  options = config.catalogue
  runner = _runner(options)
  tests = filters.parse(options.filters)
  opted = opt_out.read(options.opt_out)
  examine = functools.partial(
    catalogue.examine,
    collection=options.collection,
    licence=options.licence,
    allow=licences.rule(options.allow),
    opted=opted,
    tests=tests,
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
  wanted = rows.Wanted(
    source=options.source,
    columns=options.columns.to_dict(),
    records_per_shard=options.records_per_shard,
    keep=tuple(dict.fromkeys(test.column for test in tests)),
    url_encoded=options.url_encoded,
    licensed=not options.licence,
  )
  pieces = sources.pieces(wanted, options.format)
  lengths = [piece.length for piece in pieces]
  total = None if None in lengths else sum(lengths)
  log.announce(
    "catalogue",
    f"{total or 'all'} rows of {options.source} -> {options.folder}, "
    f"{' '.join(options.allow) or options.collection} collection",
  )
  shown = (len(pieces), "shards") if total is None else (total, "images")
  with log.progress(shown[0], "catalogue", shown[1]) as progress:
    if total is None and runner is None:
      # Nobody knows how many rows there are before they have been read.
      pieces = [_counted(piece, progress) for piece in pieces]
    counts = passes.run(
      options.folder,
      name=config.name,
      stage="catalogue",
      features=catalogue.FEATURES,
      pieces=pieces,
      fn=functools.partial(_each, examine),
      batch_size=64,
      config={
        **{name: options[name] for name in SETTINGS},
        "allow": list(options.allow),
        "filters": list(options.filters),
        "opt_out": opted.digest,
        "columns": options.columns.to_dict(),
      },
      inputs=[sources.inputs(wanted, options.format)],
      attribute=True,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=None if total is None else progress,
      runner=runner,
    )
  versions.record(workdir, "catalogue", config)
  log.announce("catalogue", f"{counts}")
  return counts


def _runner(options: ml_collections.ConfigDict) -> passes.Runner | None:
  """What makes the shards; None for this process."""
  if options.runner not in RUNNERS:
    raise configs.unknown("catalogue.runner", options.runner, RUNNERS)
  if options.runner == "beam":
    return beam_runner.make(options.beam_options)
  if options.beam_options:
    raise ValueError(
      "catalogue.beam_options are for --config.catalogue.runner=beam"
    )
  return None


def _each(fn: Callable[[Any], Any], batch: Sequence[Any]) -> list[Any]:
  # In place of a lambda, which cannot be sent to another process.
  return [fn(row) for row in batch]


def _counted(
  piece: passes.Piece, progress: Callable[..., None]
) -> passes.Piece:
  """The piece, which says when it has been read."""

  def read() -> Iterator[Any]:
    yield from piece.read()
    progress(1)

  return piece._replace(read=read)
