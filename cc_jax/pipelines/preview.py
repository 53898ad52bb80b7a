# SPDX-License-Identifier: Apache-2.0
"""Pictures of a model while it is trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import UInt8
import ml_collections
import numpy as np

from cc_jax.core import sharding, tree
from cc_jax.data import grids
from cc_jax.models import hub, kinds
from cc_jax.pipelines import clip_to_image, sizes, text_to_image

# Of a task: the kind of its network, and its name in configs.
AUTOENCODERS = {
  "autoencoder": ("autoencoder", "vae"),
  "vqgan": ("vqgan", "vqgan"),
}

Preview = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]


def make(config: ml_collections.ConfigDict) -> Preview:
  """`preview(params, batch) -> picture` for the task of a config."""
  task = config.train.task
  if task in AUTOENCODERS:
    return _reconstructions(config, *AUTOENCODERS[task])
  if task == "prior":
    size = config.sample.batch_size
    return _samples(config, clip_to_image, {"batch_size": size})
  if task == "contrastive":
    raise ValueError("a CLIP makes no pictures; set train.preview_every=0")
  return _samples(config, text_to_image, arguments(config))


def arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What `config.sample` says to `text_to_image.generate`."""
  options = config.sample
  names = ("sampler", "steps", "guidance", "rescale", "channels", "batch_size")
  size = sizes.of(options)
  return {
    **{name: options[name] for name in names},
    "size": size.made,
    "wanted": size.wanted,
  }


def to_bytes(images_: Any) -> UInt8[np.ndarray, "N H W 3"]:
  """Images in [0, 1] as bytes, rounded to nearest."""
  return np.round(np.asarray(images_) * 255).astype(np.uint8)


def _samples(
  config: ml_collections.ConfigDict, pipeline: Any, options: dict[str, Any]
) -> Preview:
  """A grid of samples, one row a prompt, always from the same noise.

  Args:
    config: of the run.
    pipeline: the module that has `check`, `make` and `generate`.
    options: of `generate`.
  """
  # Now, and not at the first preview, which may be days away.
  pipeline.check(config)
  each = config.sample.each
  prompts = [prompt for prompt in config.sample.prompts for _ in range(each)]
  made: list[Any] = []

  def preview(params, batch):
    del batch
    if not made:
      made.append(pipeline.make(config, params))
    model = made[0]._replace(params={**made[0].params, **params})
    found = pipeline.generate(model, prompts, seed=config.seed, **options)
    return grids.grid(to_bytes(found), each, labels=prompts)

  return preview


def _reconstructions(
  config: ml_collections.ConfigDict, kind: str, name: str
) -> Preview:
  """Images above what the autoencoder makes of them."""
  structure, _ = kinds.structure(
    kind, hub.config(config.model[name], kind), dtype=config.train.dtype
  )

  @jax.jit
  def reconstruct(params, pixels):
    network = tree.merge(structure, params[name])
    z = network.encode(pixels.astype(jnp.float32) / 127.5 - 1)
    z, _ = network.quantise(z) if kind == "vqgan" else z
    x = network.decode(z)
    x = jnp.clip(x.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return sharding.gather(x)

  def preview(params, batch):
    pixels = batch["image"][:8]
    found = to_bytes(reconstruct(params, pixels))
    return grids.grid(np.concatenate([pixels, found]), len(pixels))

  return preview
