# SPDX-License-Identifier: Apache-2.0
"""Shapes of the batches that a run will train on, before there are any."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from cc_jax.core import files
from cc_jax.data import classes, frames, grids, records, shards
from cc_jax.models import hub
from cc_jax.pipelines import encoder


def of(
  config: ml_collections.ConfigDict,
  features: Sequence[str],
  transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
  """What a step is given: of the data where it is here, or else of the config.

  In aspect buckets it is the square one. A blank record goes through what the
  task does with records, so that it is what a batch will be made of.

  Args:
    config: of a run.
    features: that its task reads.
    transform: that it has for a record.

  Raises:
    ValueError: data of this config has no such feature.
  """
  options = config.train
  if options.folders and all(
    files.path(f"{folder}/features.json").exists() for folder in options.folders
  ):
    fields = [f for one in options.folders for f in shards.open(one).fields]
  else:
    fields = list(records.fields(encoded(config)))
  known = {field.name: field for field in fields}
  record: dict[str, Any] = {}
  for name in features:
    if name == "image":
      pixels = np.zeros((config.encode.size, config.encode.size, 3), np.uint8)
      record[name] = grids.encode_png(pixels)
      continue
    if name.startswith("caption_"):
      record[name] = ""
      continue
    if name == "bucket":
      record[name] = np.full(2, config.encode.size, np.int32)
      continue
    if name not in known:
      raise ValueError(
        f"a step of {options.task} reads {name!r}, which encode would not make "
        "with this config"
      )
    shape = known[name].shape
    if shape[:1] == (None,):
      shape = (length(config, name), *shape[1:])
    record[name] = np.zeros(shape, known[name].dtype)
  record = transform(record) if transform else record
  return {
    name: jax.ShapeDtypeStruct(
      (options.batch_size, *np.shape(value)), np.asarray(value).dtype
    )
    for name, value in record.items()
  }


def length(config: ml_collections.ConfigDict, feature: str) -> int:
  """Rows of a feature that has not the same number in each record."""
  if feature == "text_states":
    return config.encode.tokens
  vae, vqgan = config.model.vae, config.encode.vqgan
  network = (vqgan, "vqgan") if feature == "codes" else (vae, "autoencoder")
  return (config.encode.size // hub.config(*network).factor) ** 2


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
    # As many as there are.
    labels=classes.Classes(()) if options.label else None,
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
