# SPDX-License-Identifier: Apache-2.0
"""Numbers of CLIP-GEN's three networks, on held-out images.

contrastive  zero_shot: images told their class by prompts; modality_gap
vqgan        used, perplexity: of the codebook; psnr of reconstructions
prior        modality_gap: between the embeddings that it was trained on and
             those of captions that it will be asked with
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cc_jax.core import sharding, tree
from cc_jax.metrics import zero_shot
from cc_jax.models import hub, kinds
from cc_jax.pipelines import clip_gap, embeddings

# (config, split) -> images in [0, 1] and their titles.
Real = Callable[[Any, str], tuple[np.ndarray, list[str]]]


def measure(
  config: ml_collections.ConfigDict,
  parts: Mapping[str, tuple[str, Any]],
  params: Mapping[str, Any],
  real: Real,
) -> dict[str, float]:
  """What is measured of a task's networks besides the loss.

  Args:
    config: of the run.
    parts: of the task: kind and config of each network.
    params: its weights.
    real: opens held-out images.

  Raises:
    ValueError: no images, or a network that is not there.
  """
  size, split = config.evaluate.batch_size, config.evaluate.split
  if config.train.task == "vqgan":
    pictures, _ = real(config, split)
    return codebook(
      parts["vqgan"][1], params["vqgan"], pictures, size, config.train.dtype
    )
  if config.train.task == "contrastive":
    loaded = hub.Loaded(parts["clip"][1], params["clip"])
    embedder = embeddings.make(config, loaded, size)
    pictures, titles = real(config, split)
    images = embeddings.images(embedder, to_bytes(pictures))
    found = classify(
      embedder, images, titles, config.evaluate.recognise.templates
    )
    return found | gap(config, embedder, images)
  if config.train.task == "prior":
    embedder = embeddings.make(config, batch_size=size)
    images = clip_gap.training_images(config, split)
    return gap(config, embedder, images)
  return {}


def to_bytes(pictures: np.ndarray) -> np.ndarray:
  """Images in [0, 1] as bytes, rounded to nearest."""
  return np.round(pictures * 255).astype(np.uint8)


def classify(
  embedder: embeddings.Embedder,
  images: np.ndarray,
  titles: Sequence[str],
  templates: Sequence[str],
) -> dict[str, float]:
  """The share of images whose title's prompts are the nearest."""
  names = sorted(set(titles))
  prompts = [
    embeddings.texts(embedder, [one.format(title=name) for one in templates])
    for name in names
  ]
  labels = np.array([names.index(title) for title in titles])
  classes = zero_shot.class_embeddings(prompts)
  return {
    "zero_shot": zero_shot.accuracy(images, classes, labels),
    "zero_shot_of": len(images),
  }


def gap(
  config: ml_collections.ConfigDict,
  embedder: embeddings.Embedder,
  images: np.ndarray,
) -> dict[str, float]:
  """How far apart held-out images and captions lie on average.

  Nothing where no captions are named.
  """
  if not config.sample.gap_captions:
    return {}
  captions = embeddings.texts(
    embedder, clip_gap.training_captions(config, config.evaluate.split)
  )
  return {"modality_gap": zero_shot.modality_gap(images, captions)}


def codebook(
  config: Any, params: Any, pictures: np.ndarray, batch_size: int, dtype: str
) -> dict[str, float]:
  """Use of the codes over all pictures, and how near reconstructions are."""
  structure, _ = kinds.structure("vqgan", config, dtype)

  @jax.jit
  def run(params, x):
    vqgan = tree.merge(structure, params)
    zq, codes = vqgan.quantise(vqgan.encode(x * 2 - 1))
    made = jnp.clip(vqgan.decode(zq) / 2 + 0.5, 0, 1)
    return sharding.gather((codes, made))

  counts, error = np.zeros(config.codebook_size), 0.0
  for rows, count in embeddings.batches(len(pictures), batch_size):
    x = pictures[rows].astype(np.float32)
    codes, made = run(params, x)
    codes = np.asarray(codes)[:count].reshape(-1)
    counts += np.bincount(codes, minlength=len(counts))
    error += float(np.sum((np.asarray(made) - x)[:count] ** 2))
  p = counts[counts > 0] / counts.sum()
  return {
    "used": float(np.mean(counts > 0)),
    "perplexity": float(np.exp(-np.sum(p * np.log(p)))),
    "psnr": float(-10 * np.log10(error / pictures.size)),
  }
