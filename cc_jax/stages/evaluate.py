# SPDX-License-Identifier: Apache-2.0
"""cc-jax evaluate: how good a checkpoint is, in repeatable numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from cc_jax.core import config as configs
from cc_jax.core import files, log, sharding, versions
from cc_jax.data import aligned, images, loader, shards
from cc_jax.metrics import recognition
from cc_jax.pipelines import (
  clip_gen,
  clip_to_image,
  comparison,
  preview,
  text_to_image,
)
from cc_jax.tasks import task as tasks


def main(config: ml_collections.ConfigDict, workdir: str) -> Mapping[str, Any]:
  """Adds its numbers to `config.evaluate.metrics` and returns them.

  Raises:
    ValueError: no checkpoint or data, or titles that cannot be told apart.
  """
  options = config.evaluate
  found: dict[str, Any] = {}
  model = options.model or config.train.checkpoints
  log.announce("evaluate", model)
  with sharding.use_all_devices(options.batch_size):
    if options.validation_loss:
      found["validation_loss"] = validation_loss(config)
      if config.train.task == "latent_diffusion" and options.timesteps:
        found["validation_mse_at"] = validation_mse(config)
    if options.recognise.each:
      found |= recognise(config)
    if config.train.task in ("contrastive", "prior", "vqgan"):
      found |= numbers(config)
  if options.prompts:
    found["evaluation"] = comparison.run(config)
  versions.record(workdir, "evaluate", config)
  if log.is_first():
    earlier = {}
    if files.path(options.metrics).exists():
      earlier = files.read_json(options.metrics)
    files.write_json(options.metrics, {**earlier, **found})
  for name, value in found.items():
    if not isinstance(value, Mapping):
      log.announce("evaluate", f"{name} = {value:.4g}")
  log.announce("evaluate", f"{len(found)} numbers -> {options.metrics}")
  return found


def validation_loss(config: ml_collections.ConfigDict) -> float:
  """The task's loss on held-out data, with the same noise every time.

  Timesteps and noise come from a fixed key, so that two checkpoints are
  compared on the same work; captions are not dropped.
  """
  return _held_out(config, [{}])[0][0]


def validation_mse(config: ml_collections.ConfigDict) -> dict[str, float]:
  """The squared error at each of `evaluate.timesteps`, with the same noise.

  Unlike the loss it is the same measure whatever timesteps training draws and
  however it weighs them.

  Raises:
    ValueError: a timestep that the schedule does not have.
  """
  steps, last = config.evaluate.timesteps, config.model.schedule.steps
  for step in steps:
    if not 0 <= step < last:
      raise ValueError(f"evaluate.timesteps: {step}; expected 0 to {last - 1}")
  found = _held_out(config, [{"timestep": step} for step in steps])
  return {
    f"{step}": mse["mse"] for step, (_, mse) in zip(steps, found, strict=True)
  }


def _held_out(
  config: ml_collections.ConfigDict, given: list[dict[str, int]]
) -> list[tuple[float, dict[str, float]]]:
  """Loss and metrics over the held-out data, once with each of `given`."""
  options = config.evaluate
  config = ml_collections.ConfigDict(config)
  config.latent_diffusion.drop_caption = 0.0
  for name in ("corrupt", "drop_condition", "dropout", "noise"):
    config.prior[name] = 0.0
  task = tasks.make(config)
  source = tasks.source(task, config.train.folders, options.split)
  params = tasks.trained(config, task, config.sample.part)
  loss = jax.jit(lambda loss, *args: loss(*args))
  # As stored and once: every host sees all records, the last batch is short.
  batches = loader.batches(
    source,
    batch_size=options.batch_size,
    seed=0,
    shuffle=False,
    repeat=False,
    transform=task.transform,
  )
  totals = [(0.0, dict[str, float]()) for _ in given]
  start = 0
  for batch in batches:
    rows = len(next(iter(batch.values())))
    key = jax.random.fold_in(jax.random.key(0), start)
    for place, more in enumerate(given):
      fixed = {k: np.full(rows, v, np.int32) for k, v in more.items()}
      one, metrics = loss(task.loss, params, batch | fixed, key)
      total, sums = totals[place]
      for name, value in metrics.items():
        if isinstance(value, Mapping):  # Of `Task.after`, and no number.
          continue
        sums[name] = sums.get(name, 0.0) + rows * float(value) / len(source)
      totals[place] = total + rows * float(one), sums
    start += rows
  batches.close()
  return [(total / len(source), sums) for total, sums in totals]


def numbers(config: ml_collections.ConfigDict) -> dict[str, float]:
  """What pipelines/clip_gen.py measures of CLIP-GEN's networks."""
  task = tasks.make(config)
  params = tasks.trained(config, task, config.sample.part)
  return clip_gen.measure(config, task.parts, params, real_images)


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
  share = lambda images_, names: recognition.recognised(
    judge, images_, names, options.side
  )
  found = {
    "recognised": share(generate(config, prompts), labels),
    "recognised_real": share(held_out, held_titles),
    "recognised_of": len(labels),
  }
  for changes in options.also:
    other = ml_collections.ConfigDict(config)
    for change in changes.split(","):
      name, _, value = change.partition("=")
      configs.override(other, f"config.sample.{name}", value)
    made = generate(other, prompts)
    found[f"recognised[{changes}]"] = share(made, labels)
  return found


def generate(
  config: ml_collections.ConfigDict, prompts: list[str]
) -> np.ndarray:
  """An image for each prompt, by the model of a config."""
  seed, size = config.seed + 1, config.sample.batch_size
  with log.progress(len(prompts), "evaluate", "images") as progress:
    if config.train.task == "prior":
      return clip_to_image.generate(
        clip_to_image.make(config),
        prompts,
        seed=seed,
        batch_size=size,
        progress=progress,
      )
    return text_to_image.generate(
      text_to_image.make(config),
      prompts,
      seed=seed,
      **preview.arguments(config),
      progress=progress,
    )


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
