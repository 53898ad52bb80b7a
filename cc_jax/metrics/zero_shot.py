# SPDX-License-Identifier: Apache-2.0
"""What a CLIP knows of classes that it is told in words, and of its two halves.

"Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020, §3.1: an image is of the class whose prompts are nearest to
it. "Mind the Gap", arXiv 2203.02053, §2: the embeddings of images and of
captions lie in two cones apart, which matters to whoever trains on the one
and asks with the other.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np

from cc_jax.metrics import features


def class_embeddings(
  prompts: Sequence[Float[np.ndarray, "M P"]],
) -> Float[np.ndarray, "C P"]:
  """One embedding a class: the mean of its prompts', each of length 1.

  §3.1.4 of the paper; the means are of length 1 again.

  Raises:
    ValueError: see `features.check` and `features.unit`.
  """
  means = []
  for number, rows in enumerate(prompts):
    features.check(**{f"class {number}": rows})
    means.append(features.unit(rows, f"class {number}").mean(axis=0))
  return features.unit(np.stack(means), "classes")


def accuracy(
  images: Float[np.ndarray, "N P"],
  classes: Float[np.ndarray, "C _"],
  labels: Int[np.ndarray, "M"],
) -> float:
  """The share of images whose nearest class, by cosine, is their own.

  Raises:
    ValueError: see `features.check`; there is not one label for each image.
  """
  features.check(images=images, classes=classes)
  if len(images) != len(labels):
    raise ValueError(
      f"{len(images)} images with {len(labels)} labels; expected one each"
    )
  cosines = features.unit(images, "images") @ features.unit(classes, "c").T
  return float(np.mean(cosines.argmax(axis=1) == labels))


def modality_gap(
  images: Float[np.ndarray, "N P"], captions: Float[np.ndarray, "M _"]
) -> float:
  """|mean of images - mean of captions|, each of length 1: from 0 to 2.

  Raises:
    ValueError: see `features.check` and `features.unit`.
  """
  features.check(images=images, captions=captions)
  means = [
    features.unit(rows, name).mean(axis=0, dtype=np.float64)
    for name, rows in (("images", images), ("captions", captions))
  ]
  return float(np.linalg.norm(means[0] - means[1]))
