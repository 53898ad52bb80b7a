# SPDX-License-Identifier: Apache-2.0
"""cc-jax encode: images and captions to what train steps read, once for all."""

import collections
from collections.abc import Sequence

import jax
import ml_collections

from cc_jax.core import files, log, sharding, versions
from cc_jax.data import (
  bucket_index,
  classes,
  empty_caption,
  frames,
  passes,
  shards,
  tally,
  tokenize,
)
from cc_jax.models import hub
from cc_jax.pipelines import encoder, overlap


def main(config: ml_collections.ConfigDict, workdir: str) -> tally.Counts:
  """Writes what the train step reads, a folder a size.

  Returns:
    What was done for all sizes together.

  Raises:
    ValueError: no images or captions, a network without weights, or a size or
      batch that does not divide.
  """
  options = config.encode
  folders = [options.images, *([options.captions] if options.captions else [])]
  datasets = [shards.open(folder) for folder in folders]
  networks = load(config)
  sizes = options.sizes or (options.size,)
  if {type(n) for n in sizes} != {int} or len(set(sizes)) < len(sizes):
    raise ValueError(f"encode.sizes={sizes}; expected numbers, each once")
  outputs = [_output(config, networks, size) for size in sizes]
  known = {field.name for field in datasets[-1].fields}
  if options.refuse and outputs[0][0].flags not in known:
    raise ValueError(
      f"encode.refuse needs {outputs[0][0].flags!r}, which {options.captions} "
      "does not have; make the captions again"
    )
  written = [output.folder for _, output in outputs]
  total = len(datasets[0])
  log.announce(
    "encode",
    f"{total} images of {options.images} at {', '.join(map(str, sizes))} "
    f"pixels -> {', '.join(written)}",
  )
  seconds: overlap.Seconds = collections.Counter()
  # A size that is finished is not computed again beside one that is not.
  finished = [
    pair for pair in outputs if shards.INFO in files.listing(pair[1].folder)
  ]
  waiting = [pair for pair in outputs if pair not in finished]
  counts = {}
  for group in filter(None, (finished, waiting)):
    made = _encode(config, datasets, networks, group, seconds)
    counts |= {
      output.folder: count
      for (_, output), count in zip(group, made, strict=True)
    }
  for chosen, output in outputs:
    if counts[output.folder].complete and options.buckets:
      bucket_index.write(shards.open(output.folder))
    if counts[output.folder].complete and options.text_states:
      empty = encoder.empty_states(networks, chosen)
      empty_caption.write(output.folder, empty)
  versions.record(workdir, "encode", config)
  if any(count.shards for count in counts.values()):
    overlap.record(workdir, "encode", seconds)
  for size, folder in zip(sizes, written, strict=True):
    where = f"{size} pixels: " if len(sizes) > 1 else ""
    log.announce("encode", f"{where}{counts[folder]}")
  return tally.together([counts[folder] for folder in written])


def _output(
  config: ml_collections.ConfigDict, networks: encoder.Networks, size: int
) -> tuple[encoder.Options, passes.Output]:
  """How a size is made, and where it is written."""
  options = config.encode
  chosen = encoder.Options(
    frames=frames.make(
      size,
      bucketed=options.buckets,
      step=options.bucket_step,
      crop=options.crop,
      enlarge=options.enlarge,
      seed=config.seed,
    ),
    batch_size=options.batch_size,
    std=options.std,
    caption=options.caption,
    tokens=options.tokens,
    dtype=config.train.dtype,
    refuse=tuple(options.refuse),
    clean=config.model.clean,
    label=options.label,
  )
  decides = {
    "caption": options.caption if options.captions else "",
    "size": size,
    "tokens": options.tokens,
    "clean": config.model.clean,
    "label": options.label,
    "dtype": config.train.dtype,
    "refuse": list(options.refuse),
    "buckets": options.buckets,
    "bucket_step": options.bucket_step,
    "crop": options.crop,
    "enlarge": options.enlarge,
    # Which decides nothing else.
    "seed": config.seed if options.crop == "random" else 0,
  }
  return chosen, passes.Output(
    f"{options.folder}_{size}" if options.sizes else options.folder,
    encoder.features(networks, chosen),
    decides,
    encoder.hashes(networks, chosen),
  )


def _encode(
  config: ml_collections.ConfigDict,
  datasets: Sequence[shards.Dataset],
  networks: encoder.Networks,
  sizes: Sequence[tuple[encoder.Options, passes.Output]],
  seconds: overlap.Seconds,
) -> list[tally.Counts]:
  """One pass over the images, for some sizes."""
  batch_size = config.encode.batch_size
  stream = encoder.make(networks, [chosen for chosen, _ in sizes], seconds)
  with log.progress(len(datasets[0]), "encode", "images") as progress:
    return passes.fill(
      [output for _, output in sizes],
      name=config.name,
      stage="encode",
      pieces=[overlap.piece(one, stream) for one in passes.pieces(datasets)],
      fn=overlap.results,
      batch_size=batch_size,
      inputs=passes.inputs(datasets),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=progress,
    )


def load(config: ml_collections.ConfigDict) -> encoder.Networks:
  """The networks that the config asks for, on this host's devices.

  Raises:
    ValueError: one has no weights, or is not there.
  """
  options, model = config.encode, config.model
  # Hosts work apart: each has all weights on its own devices.
  mesh = sharding.make_mesh(devices=jax.local_devices())
  read = lambda name, kind, **more: hub.load(name, kind, mesh=mesh, **more)
  return encoder.Networks(
    vae=read(model.vae, "autoencoder") if options.latents else None,
    vqgan=read(options.vqgan, "vqgan") if options.vqgan else None,
    clip=read(options.clip, "clip") if options.clip else None,
    tokenizer=tokenize.load(model.tokenizer) if options.captions else None,
    t5=read(model.text, "t5", dtype=config.train.dtype)
    if options.text_states
    else None,
    labels=read_classes(config) if options.label else None,
  )


def read_classes(config: ml_collections.ConfigDict) -> classes.Classes:
  """The classes of `model.classes`; the file is made where it is missing.

  Every host makes the same one.
  """
  path = config.model.classes
  if not files.path(path).exists():
    found = classes.collect(
      shards.open(config.encode.images), config.encode.label
    )
    classes.save(found, path)
    log.announce("encode", f"{len(found.names)} classes -> {path}")
  return classes.load(path)
