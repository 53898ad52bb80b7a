# SPDX-License-Identifier: Apache-2.0
"""cc-jax sample: prompts to a labelled grid of images."""

import contextlib

import ml_collections
import numpy as np

from cc_jax.core import files, log, sharding, versions
from cc_jax.data import grids
from cc_jax.pipelines import clip_to_image, preview, text_to_image


def main(config: ml_collections.ConfigDict, workdir: str) -> np.ndarray:
  """Writes `config.sample.picture`; one row a prompt.

  Returns:
    The images, [prompts * each, H, W, 3] in [0, 1].

  Raises:
    ValueError: no checkpoint, no prompts, or a sampler that does not exist.
  """
  options = config.sample
  prompts = [prompt for prompt in options.prompts for _ in range(options.each)]
  run = draw if config.train.task == "prior" else diffuse
  with contextlib.ExitStack() as stack:
    stack.enter_context(sharding.use_all_devices(options.batch_size))
    found = run(config, prompts, stack)
  versions.record(workdir, "sample", config)
  if log.is_first():
    grid = grids.grid(preview.to_bytes(found), options.each, labels=prompts)
    files.write_atomic(options.picture, grids.encode_png(grid))
  log.announce("sample", f"{len(found)} images -> {options.picture}")
  return found


def diffuse(
  config: ml_collections.ConfigDict,
  prompts: list[str],
  stack: contextlib.ExitStack,
) -> np.ndarray:
  """By a denoiser of noise."""
  options, model = config.sample, text_to_image.make(config)
  log.announce(
    "sample",
    f"{len(prompts)} images of {options.size} pixels, "
    f"{options.sampler} {options.steps} steps, guidance {options.guidance}",
  )
  progress = log.progress(len(prompts), "sample", "images")
  return text_to_image.generate(
    model,
    prompts,
    seed=config.seed,
    **preview.arguments(config),
    progress=stack.enter_context(progress),
  )


def draw(
  config: ml_collections.ConfigDict,
  prompts: list[str],
  stack: contextlib.ExitStack,
) -> np.ndarray:
  """By CLIP-GEN's prior of codes."""
  options, model = config.sample, clip_to_image.make(config)
  log.announce(
    "sample",
    f"{len(prompts)} images, each of {options.candidates} candidates, "
    f"temperature {options.temperature}, top_k {options.top_k}, top_p "
    f"{options.top_p}, guidance {options.guidance}, gap {options.gap}",
  )
  progress = log.progress(len(prompts), "sample", "images")
  return clip_to_image.generate(
    model,
    prompts,
    seed=config.seed,
    batch_size=options.batch_size,
    progress=stack.enter_context(progress),
  )
