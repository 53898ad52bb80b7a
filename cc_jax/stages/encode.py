# SPDX-License-Identifier: Apache-2.0
"""cc-jax encode: images to latents and captions to tokens, once for all."""

import jax
import ml_collections

from cc_jax.core import log, sharding, versions
from cc_jax.data import passes, shards, tally, tokenize
from cc_jax.models import hub
from cc_jax.pipelines import encoder


def main(config: ml_collections.ConfigDict, workdir: str) -> tally.Counts:
  """Writes what the train step reads.

  Raises:
    ValueError: no images or captions, an autoencoder without weights, or a
      size or batch that does not divide.
  """
  options = config.encode
  datasets = [shards.open(options.images), shards.open(options.captions)]
  # Hosts work apart: each has all weights on its own devices.
  mesh = sharding.make_mesh(devices=jax.local_devices())
  vae = hub.load(config.model.vae, "autoencoder", mesh=mesh)
  flags = options.caption.replace("caption_", "flags_", 1)
  if options.refuse and flags not in {f.name for f in datasets[1].fields}:
    raise ValueError(
      f"encode.refuse needs {flags!r}, which {options.captions} does not have; "
      "make the captions again"
    )
  tokenizer = tokenize.load(config.model.tokenizer)
  fn = encoder.make(
    vae,
    tokenizer,
    caption=options.caption,
    size=options.size,
    tokens=options.tokens,
    batch_size=options.batch_size,
    dtype=config.train.dtype,
    refuse=options.refuse,
  )
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
      features=encoder.features(vae, options.size, options.tokens),
      pieces=passes.pieces(datasets),
      fn=fn,
      batch_size=options.batch_size,
      config={
        "caption": options.caption,
        "size": options.size,
        "tokens": options.tokens,
        "dtype": config.train.dtype,
        "refuse": list(options.refuse),
      },
      inputs=passes.inputs(datasets),
      weights={
        "latent_mean": vae.hash,
        "latent_std": vae.hash,
        "tokens": tokenize.digest(tokenizer),
      },
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      progress=progress,
    )
  versions.record(workdir, "encode", config)
  log.announce("encode", f"{counts}")
  return counts
