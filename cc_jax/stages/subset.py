# SPDX-License-Identifier: Apache-2.0
"""cc-jax subset: so many images of a dataset, and what stands beside them."""

import os

import jax
import ml_collections

from cc_jax.core import log, versions
from cc_jax.data import aligned, passes, records, shards, subset, tally


def main(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, tally.Counts]:
  """Writes each folder again with the same records of it.

  Returns:
    What was done, by folder that was read.

  Raises:
    ValueError: no folders, folders that are not aligned or have one name, or
      fewer records than are to be drawn.
  """
  options = config.subset
  names = [os.path.basename(name.rstrip("/")) for name in options.folders]
  if not names or len(set(names)) < len(names):
    raise ValueError(
      f"subset.folders={options.folders!r}; expected one or more, each of "
      "another name"
    )
  datasets = [shards.open(folder) for folder in options.folders]
  aligned.check(datasets)
  chosen = subset.choose(
    datasets[0], options.split, options.count, by=options.by, seed=config.seed
  )
  done = {}
  for name, dataset in zip(names, datasets, strict=True):
    folder = f"{options.folder}/{name}"
    log.announce(
      "subset",
      f"{len(chosen)} of {sum(dataset.splits[options.split])} records of "
      f"{dataset.folder} -> {folder}",
    )
    pieces = subset.pieces(
      dataset, {options.split: chosen}, options.records_per_shard
    )
    total = sum(piece.length for piece in pieces)
    with log.progress(total, "subset", "records") as progress:
      counts = passes.run(
        folder,
        name=dataset.name,
        stage="subset",
        features={f.name: records.spec(f) for f in dataset.fields},
        pieces=pieces,
        fn=lambda batch: batch,
        batch_size=64,
        config={
          "seed": config.seed,
          **{key: options[key] for key in ("count", "by", "split")},
        },
        # Of the first folder, too: it decides who is drawn.
        inputs=passes.inputs(
          [datasets[0], *([] if dataset is datasets[0] else [dataset])]
        ),
        weights=dataset.provenance.get("weights", {}),
        keep_all=True,
        attribute="attribution" in dataset.provenance,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        progress=progress,
      )
    log.announce("subset", f"{counts}")
    done[dataset.folder] = counts
  versions.record(workdir, "subset", config)
  return done
