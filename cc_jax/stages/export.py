# SPDX-License-Identifier: Apache-2.0
"""cc-jax export: a checkpoint to a folder that diffusers opens."""

from collections.abc import Mapping
import dataclasses

import jax
import ml_collections
import numpy as np

from cc_jax.core import checkpoint, files, log, tree, versions
from cc_jax.data import aligned, shards, tokenize
from cc_jax.diffusion import scheduler_config
from cc_jax.models import hub, kinds
from cc_jax.pipelines import encoder, text_to_image

# The first release whose StableDiffusionPipeline reads all that is written.
DIFFUSERS = "0.42.1"

INDEX = {
  "_class_name": "StableDiffusionPipeline",
  "_diffusers_version": DIFFUSERS,
  "feature_extractor": [None, None],
  "image_encoder": [None, None],
  "requires_safety_checker": False,
  "safety_checker": [None, None],
  "scheduler": ["diffusers", ""],
  "text_encoder": ["transformers", "CLIPTextModel"],
  "tokenizer": ["transformers", "CLIPTokenizer"],
  "unet": ["diffusers", "UNet2DConditionModel"],
  "vae": ["diffusers", "AutoencoderKL"],
}


def main(config: ml_collections.ConfigDict, workdir: str) -> str:
  """Writes `config.export.folder`; its last file is the one that opens it.

  Returns:
    The folder.

  Raises:
    ValueError: no checkpoint, or one of another model.
  """
  folder = config.export.folder
  write = {"autoencoder": autoencoder, "latent_diffusion": pipeline}
  task = config.train.task
  if task not in write:
    raise ValueError(f"no export for the task {task!r}")
  if jax.process_index() == 0:
    counts = write[task](config, folder)
    parts = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    log.announce("export", f"parameters: {parts}")
  versions.record(workdir, "export", config)
  log.announce("export", f"{config.sample.part} weights -> {folder}")
  return folder


def pipeline(
  config: ml_collections.ConfigDict, folder: str
) -> Mapping[str, int]:
  """A folder for `diffusers.StableDiffusionPipeline.from_pretrained`.

  Its scheduler is the config's sampler, so that it gives our images.
  """
  sample = config.sample
  model = text_to_image.make(config)
  recipe = scheduler_config.write(
    sample.sampler, model.design.schedule, prediction=model.design.prediction
  )
  readme = card(config)
  folders = {"unet": "unet", "text": "text_encoder", "vae": "vae"}
  side = sample.size // model.configs["vae"].factor
  sizes = {"unet": side, "vae": sample.size}
  for part, kind in text_to_image.KINDS.items():
    part_config = model.configs[part]
    if part in sizes:
      # What a pipeline samples at when it is not told.
      part_config = dataclasses.replace(part_config, sample_size=sizes[part])
    hub.save(f"{folder}/{folders[part]}", kind, part_config, model.params[part])
  tokenize.save(model.tokenizer, f"{folder}/tokenizer")
  files.write_json(
    f"{folder}/scheduler/scheduler_config.json",
    {**recipe, "_diffusers_version": DIFFUSERS},
  )
  files.write_atomic(f"{folder}/README.md", readme)
  scheduler = ["diffusers", recipe["_class_name"]]
  files.write_json(
    f"{folder}/model_index.json", {**INDEX, "scheduler": scheduler}
  )
  return {part: tree.count(model.params[part]) for part in text_to_image.KINDS}


def autoencoder(
  config: ml_collections.ConfigDict, folder: str
) -> Mapping[str, int]:
  """A folder for `diffusers.AutoencoderKL.from_pretrained`.

  The scaling factor in its config is measured here, on training images: one
  over the standard deviation of their latents.
  """
  vae_config = hub.config(config.model.vae, "autoencoder")
  _, shapes = kinds.structure("autoencoder", vae_config, dtype="float32")
  params = checkpoint.load(
    config.train.checkpoints,
    config.sample.part,
    {"vae": shapes},
    None if config.sample.step < 0 else config.sample.step,
  )["vae"]
  datasets = [shards.open(name) for name in config.train.folders]
  source = aligned.source(datasets, config.train.split, ("image",))
  rows = np.linspace(0, len(source) - 1, min(len(source), 256)).astype(int)
  factor = encoder.scaling_factor(
    hub.Loaded(vae_config, params),
    [source[int(row)]["image"] for row in rows],
    config.autoencoder.size,
  )
  log.announce(
    "export", f"scaling factor {factor:.4f}, from {len(rows)} images"
  )
  made = dataclasses.replace(
    vae_config, scaling_factor=factor, sample_size=config.autoencoder.size
  )
  hub.save(folder, "autoencoder", made, params)
  return {"vae": tree.count(params)}


def card(config: ml_collections.ConfigDict) -> str:
  """The model card: what it learned from, by licence."""
  rows: dict[str, int] = {}
  for name in config.train.folders:
    for licence, count in (
      shards.open(name).provenance["counts"]["licences"].items()
    ):
      rows[licence] = rows.get(licence, 0) + count
  lines = "\n".join(f"| {name} | {n:,} |" for name, n in sorted(rows.items()))
  sample = config.sample
  return CARD.format(
    name=config.name,
    rows=lines,
    collection=config.catalogue.collection,
    steps=config.train.steps,
    batch=config.train.batch_size,
    sampler=sample.sampler,
    sampler_steps=sample.steps,
    guidance=sample.guidance,
    size=sample.size,
  )


CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags: [cc_jax]
---
# {name}

A text-to-image model trained by cc_jax on images of known licence
({collection} collection):

| licence | images |
|---|---|
{rows}

Who made each image, and where it came from, is in the data set's records.

Trained for {steps:,} steps of {batch} images. Made for {size} x {size} pixels,
{sampler} with {sampler_steps} steps, guidance {guidance}:

```python
import diffusers

pipe = diffusers.StableDiffusionPipeline.from_pretrained("path/of/this/folder")
image = pipe(
  "a prompt", num_inference_steps={sampler_steps}, guidance_scale={guidance}
).images[0]
```
"""
