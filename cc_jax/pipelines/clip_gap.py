# SPDX-License-Identifier: Apache-2.0
"""From a caption's embedding to one that a prior of images has learned.

CLIP's images and captions lie apart ("Mind the Gap", arXiv 2203.02053), and a
prior that was trained on images alone is asked with captions. What is done:

  none     the caption's embedding as it is: CLIP-GEN, arXiv 2203.00386
  shift    moved by the difference of both means, "Mind the Gap", §4.3
  nearest  the mean of the training images' embeddings nearest to it, as in
           "KNN-Diffusion", arXiv 2204.02849

Noise on embeddings in training ("LAFITE", arXiv 2111.13792) is
`config.prior.noise`. The means for "shift" are of the training images and of
their captions, which CLIP was trained on, and the prior was not.
"""

from typing import NamedTuple

from jaxtyping import Float
import ml_collections
import numpy as np

from cc_jax.data import aligned, shards
from cc_jax.metrics import features
from cc_jax.pipelines import embeddings

WAYS = ("none", "shift", "nearest")


class Gap(NamedTuple):
  """A way, and what it has measured.

  Attributes:
    way: one of `WAYS`.
    shift: mean of images minus mean of captions.
    images: embeddings of training images.
    nearest: how many of them are averaged.
  """

  way: str
  shift: Float[np.ndarray, "P"] | None = None
  images: Float[np.ndarray, "M P"] | None = None
  nearest: int = 8


def make(
  config: ml_collections.ConfigDict, embedder: embeddings.Embedder
) -> Gap:
  """What `config.sample.gap` says, measured on the data of the training.

  Raises:
    ValueError: another way, or no captions for "shift".
  """
  options = config.sample
  check(options)
  if options.gap == "none":
    return Gap("none")
  images = training_images(config)
  if options.gap == "nearest":
    return Gap("nearest", images=images, nearest=options.gap_nearest)
  captions = embeddings.texts(embedder, training_captions(config))
  return Gap("shift", shift=images.mean(0) - captions.mean(0))


def check(options: ml_collections.ConfigDict) -> None:
  """Refuses a way that is not there."""
  if options.gap not in WAYS:
    raise ValueError(f"sample.gap={options.gap!r}; expected {', '.join(WAYS)}")
  for name in ("gap_records", "gap_nearest"):
    if options[name] < 1:
      raise ValueError(f"sample.{name}={options[name]}; expected 1 or more")


def training_images(
  config: ml_collections.ConfigDict, split: str = ""
) -> Float[np.ndarray, "M P"]:
  """Embeddings of length 1 that `cc-jax encode` stored, some of a split."""
  datasets = [shards.open(name) for name in config.train.folders]
  rows = _rows(config, datasets, "clip_image", split or config.train.split)
  return features.unit(np.stack(rows).astype(np.float32), "clip_image")


def training_captions(
  config: ml_collections.ConfigDict, split: str = ""
) -> list[str]:
  """Captions of the same images.

  Raises:
    ValueError: there are none.
  """
  folder, name = config.sample.gap_captions, config.encode.caption
  if not folder:
    raise ValueError(
      "sample.gap=shift needs captions; set sample.gap_captions to a folder "
      "that `cc-jax caption` wrote, or sample.gap=nearest"
    )
  dataset = shards.open(folder)
  return _rows(config, [dataset], name, split or config.train.split)


def _rows(config, datasets, name, split):
  source = aligned.source(datasets, split, (name,))
  count = min(len(source), config.sample.gap_records)
  chosen = np.linspace(0, len(source) - 1, count).astype(int)
  return [source[int(row)][name] for row in chosen]


def close(
  gap: Gap, captions: Float[np.ndarray, "N P"]
) -> Float[np.ndarray, "N P"]:
  """Captions' embeddings as the prior is given them, of length 1."""
  if gap.way == "none":
    return captions
  if gap.way == "shift":
    return features.unit(captions + gap.shift, "shifted captions")
  cosines = captions @ gap.images.T
  count = min(gap.nearest, len(gap.images))
  near = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
  return features.unit(gap.images[near].mean(axis=1), "nearest images")
