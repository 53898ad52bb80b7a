# SPDX-License-Identifier: Apache-2.0
"""Shapes of the batches that a run will train on, before there are any."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections

from cc_jax.core import files
from cc_jax.data import frames, records, shards
from cc_jax.models import hub
from cc_jax.pipelines import encoder


def of(
  config: ml_collections.ConfigDict, features: Sequence[str]
) -> dict[str, jax.ShapeDtypeStruct]:
  """What a step is given: of the data where it is here, or else of the config.

  In aspect buckets it is the square one.

  Args:
    config: of a run.
    features: that its task reads.

  Raises:
    ValueError: data of this config has no such feature.
  """
  options = config.train
  if all(
    files.path(f"{folder}/features.json").exists() for folder in options.folders
  ):
    fields = [f for one in options.folders for f in shards.open(one).fields]
  else:
    fields = list(records.fields(encoded(config)))
  known = {field.name: field for field in fields}
  made = {}
  for name in features:
    if name == "image":
      shape = (config.autoencoder.size, config.autoencoder.size, 3)
      made[name] = (shape, jnp.uint8)
      continue
    if name not in known:
      raise ValueError(
        f"a step of {options.task} reads {name!r}, which encode would not make "
        "with this config"
      )
    shape = known[name].shape
    if shape[:1] == (None,):
      side = (
        config.encode.size // hub.config(config.model.vae, "autoencoder").factor
      )
      shape = (side, side, *shape[1:])
    made[name] = (shape, known[name].dtype)
  return {
    name: jax.ShapeDtypeStruct((options.batch_size, *shape), dtype)
    for name, (shape, dtype) in made.items()
  }


def encoded(config: ml_collections.ConfigDict) -> dict[str, records.Spec]:
  """What `cc-jax encode` would make with this config."""
  options, model = config.encode, config.model
  name = lambda one, kind: hub.Loaded(hub.config(one, kind)) if one else None
  networks = encoder.Networks(
    vae=name(model.vae if options.latents else "", "autoencoder"),
    vqgan=name(options.vqgan, "vqgan"),
    clip=name(options.clip, "clip"),
    # Which one does not matter.
    tokenizer="any" if options.captions else None,
    t5=name(model.text if options.text_states else "", "t5"),
  )
  made = frames.make(
    options.size, bucketed=options.buckets, step=options.bucket_step
  )
  return encoder.features(
    networks,
    encoder.Options(
      made, options.batch_size, std=options.std, tokens=options.tokens
    ),
  )
