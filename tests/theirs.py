# SPDX-License-Identifier: Apache-2.0
"""Images that diffusers makes of an exported folder, beside ours."""

import inspect
import json
import pathlib

import diffusers
from diffusers.utils import logging
import jax
import numpy as np
import torch

from cc_jax.pipelines import text_to_image

# In [0, 1]: half a grey level.
TOLERANCE = 2e-3

logging.set_verbosity_error()
logging.disable_progress_bar()


def opened(folder):
  """The pipeline of a folder, of the class that it names."""
  index = json.loads((pathlib.Path(folder) / "model_index.json").read_text())
  made = getattr(diffusers, index["_class_name"])
  pipe = made.from_pretrained(folder, dtype=torch.float32)
  pipe.set_progress_bar_config(disable=True)
  return pipe


def images(pipe, prompts, xt, steps, guidance, **options):
  """Images [B H W 3] in [0, 1] of diffusers' pipeline."""
  takes = inspect.signature(pipe.__call__).parameters
  plain = {"clean_caption": False, "use_resolution_binning": False}
  return pipe(
    list(prompts),
    latents=torch.tensor(np.asarray(xt)).permute(0, 3, 1, 2),
    num_inference_steps=steps,
    guidance_scale=guidance,
    output_type="np",
    **{name: value for name, value in plain.items() if name in takes},
    **options,
  ).images


def compare(model, folder, prompts, size, more=None, **options):
  """Largest difference of a pixel between diffusers' images and ours.

  A square is made at the size that the folder states.
  """
  told = {} if isinstance(size, int) else dict(height=size[0], width=size[1])
  height, width = (size, size) if isinstance(size, int) else size
  shape = text_to_image.latent_shape(model, (height, width))
  xt = text_to_image.noise(jax.random.key(5), np.arange(len(prompts)), shape)
  ours = text_to_image.generate(
    model, prompts, size=size, xt=xt, batch_size=len(prompts), **options
  )
  other = images(
    opened(folder),
    prompts,
    xt,
    options["steps"],
    options["guidance"],
    **told,
    **(more or {}),
  )
  assert other.shape == ours.shape
  assert ours.std() > 0.05
  return np.abs(ours - other).max()
