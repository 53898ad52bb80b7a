# SPDX-License-Identifier: Apache-2.0
"""The CLIP score: does the image show what its caption says?

"CLIPScore", arXiv 2104.08718, with w = 100 in place of the paper's 2.5, as is
usual for generated images:

  score(image, caption) = 100 max(cos(image, caption), 0)

A number is of one CLIP (ViT-B/16 in CommonCanvas's evaluation, ViT-H/14 in
MLPerf's): name it beside the number.
"""

from jaxtyping import Float
import numpy as np

from cc_jax.metrics import features


def scores(
  images: Float[np.ndarray, "N D"], captions: Float[np.ndarray, "M _"]
) -> Float[np.ndarray, "N"]:
  """The score of each image with its caption, from 0 to 100.

  Args:
    images: image embeddings of a CLIP.
    captions: text embeddings of the same, in the same order.

  Raises:
    ValueError: see `features.check` and `features.unit`; there is not one
      caption for each image.
  """
  features.check(images=images, captions=captions)
  if len(images) != len(captions):
    raise ValueError(
      f"{len(images)} images with {len(captions)} captions; expected one each"
    )
  one = features.unit(images, "images").astype(np.float64)
  other = features.unit(captions, "captions").astype(np.float64)
  return 100 * np.maximum((one * other).sum(axis=1), 0)


def clip_score(
  images: Float[np.ndarray, "N D"], captions: Float[np.ndarray, "M _"]
) -> float:
  """The mean of `scores`, which is what tables have."""
  return float(scores(images, captions).mean())
