# SPDX-License-Identifier: Apache-2.0
"""cc-jax evaluate: how good a checkpoint is, in repeatable numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from cc_jax.core import checkpoint, files, log, sharding, versions
from cc_jax.data import aligned, images, loader, shards
from cc_jax.metrics import recognition
from cc_jax.pipelines import preview, text_to_image
from cc_jax.tasks import task as tasks


def main(
  config: ml_collections.ConfigDict, workdir: str
) -> Mapping[str, float]:
  """Adds its numbers to `config.evaluate.metrics` and returns them.

  Raises:
    ValueError: no checkpoint or data, or titles that cannot be told apart.
  """
  options = config.evaluate
  found: dict[str, Any] = {}
  log.announce("evaluate", f"{config.train.checkpoints}")
  with sharding.use_all_devices(options.batch_size):
    found["validation_loss"] = validation_loss(config)
    if options.recognise.each:
      found |= recognise(config)
  versions.record(workdir, "evaluate", config)
  if log.is_first():
    earlier = {}
    if files.path(options.metrics).exists():
      earlier = files.read_json(options.metrics)
    files.write_json(options.metrics, {**earlier, **found})
  for name, value in found.items():
    log.announce("evaluate", f"{name} = {value:.4g}")
  log.announce("evaluate", f"{len(found)} numbers -> {options.metrics}")
  return found


def validation_loss(config: ml_collections.ConfigDict) -> float:
  """The task's loss on held-out data, with the same noise every time.

  Timesteps and noise come from a fixed key, so that two checkpoints are
  compared on the same work; captions are not dropped.
  """
  options = config.evaluate
  config = ml_collections.ConfigDict(config)
  config.latent_diffusion.drop_caption = 0.0
  task = tasks.make(config)
  source = tasks.source(task, config.train.folders, options.split)
  params = checkpoint.load(
    config.train.checkpoints,
    config.sample.part,
    jax.eval_shape(task.init, jax.random.key(0)),
    None if config.sample.step < 0 else config.sample.step,
  )
  loss = jax.jit(lambda loss, *args: loss(*args)[0])
  # As stored and once: every host sees all records, the last batch is short.
  batches = loader.batches(
    source,
    batch_size=options.batch_size,
    seed=0,
    shuffle=False,
    repeat=False,
    transform=task.transform,
  )
  total, start = 0.0, 0
  for batch in batches:
    rows = len(next(iter(batch.values())))
    key = jax.random.fold_in(jax.random.key(0), start)
    total += rows * float(loss(task.loss, params, batch, key))
    start += rows
  batches.close()
  return total / len(source)


def recognise(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Which share of generated images a classifier of real ones recognises.

  The prompts are templates that were not trained on. The same classifier's
  share of held-out real images says how good a judge it is.
  """
  options = config.evaluate.recognise
  real, titles = real_images(config, config.train.split)
  judge = recognition.fit(real, titles, options.side)
  held_out, held_titles = real_images(config, config.evaluate.split)
  labels = [t for t in sorted(set(titles)) for _ in range(options.each)]
  prompts = [
    options.templates[i % len(options.templates)].format(title=title)
    for i, title in enumerate(labels)
  ]
  model = text_to_image.make(config)
  with log.progress(len(prompts), "evaluate", "images") as progress:
    made = text_to_image.generate(
      model,
      prompts,
      seed=config.seed + 1,
      **preview.arguments(config),
      progress=progress,
    )
  share = lambda images_, names: recognition.recognised(
    judge, images_, names, options.side
  )
  return {
    "recognised": share(made, labels),
    "recognised_real": share(held_out, held_titles),
    "recognised_of": len(made),
  }


def real_images(
  config: ml_collections.ConfigDict, split: str
) -> tuple[np.ndarray, list[str]]:
  """Real images [N H W 3] in [0, 1] as they were encoded, and their titles."""
  size = config.sample.size
  dataset = shards.open(config.evaluate.images)
  source = aligned.source([dataset], split, ("image", "title"))
  pictures, titles = [], []
  for row in range(len(source)):
    example = source[row]
    cover = images.decode_cover(example["image"], size, size)
    pictures.append(cover.image)
    titles.append(example["title"])
  return np.stack(pictures) / 255, titles
