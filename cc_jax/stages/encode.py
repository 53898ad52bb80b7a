# SPDX-License-Identifier: Apache-2.0
"""cc-jax encode: images and captions to what train steps read, once for all."""

import collections

import jax
import ml_collections

from cc_jax.core import log, sharding, versions
from cc_jax.data import bucket_index, frames, passes, shards, tally, tokenize
from cc_jax.models import hub
from cc_jax.pipelines import encoder, overlap


def main(config: ml_collections.ConfigDict, workdir: str) -> tally.Counts:
  """Writes what the train step reads.

  Raises:
    ValueError: no images or captions, a network without weights, or a size or
      batch that does not divide.
  """
  options = config.encode
  folders = [options.images, *([options.captions] if options.captions else [])]
  datasets = [shards.open(folder) for folder in folders]
  networks = load(config)
  chosen = encoder.Options(
    frames=frames.make(
      options.size,
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
  )
  known = {field.name for field in datasets[-1].fields}
  if chosen.refuse and chosen.flags not in known:
    raise ValueError(
      f"encode.refuse needs {chosen.flags!r}, which {options.captions} does "
      "not have; make the captions again"
    )
  features = encoder.features(networks, chosen)
  seconds: overlap.Seconds = collections.Counter()
  stream = encoder.make(networks, chosen, seconds)
  total = len(datasets[0])
  log.announce(
    "encode",
    f"{total} images of {options.images} at {options.size} pixels "
    f"-> {options.folder}",
  )
  with log.progress(total, "encode", "images") as progress:
    counts = passes.run(
      options.folder,
      name=config.name,
      stage="encode",
      features=features,
      pieces=[overlap.piece(one, stream) for one in passes.pieces(datasets)],
      fn=overlap.results,
      batch_size=options.batch_size,
      config={
        "caption": options.caption if options.captions else "",
        "size": options.size,
        "tokens": options.tokens,
        "dtype": config.train.dtype,
        "refuse": list(options.refuse),
        "buckets": options.buckets,
        "bucket_step": options.bucket_step,
        "crop": options.crop,
        "enlarge": options.enlarge,
        # Which decides nothing else.
        "seed": config.seed if options.crop == "random" else 0,
      },
      inputs=passes.inputs(datasets),
      weights=encoder.hashes(networks, chosen),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=progress,
    )
  if counts.complete and options.buckets:
    bucket_index.write(shards.open(options.folder))
  versions.record(workdir, "encode", config)
  if counts.shards:
    log.announce("encode", overlap.limits(seconds))
  log.announce("encode", f"{counts}")
  return counts


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
  )
