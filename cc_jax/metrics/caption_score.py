# SPDX-License-Identifier: Apache-2.0
"""A caption score: how likely a captioner finds the prompt, given the image.

As CogView's caption loss, arXiv 2105.13290, §3.3, the mean of -log p over the
tokens of a prompt; here its exponential, so that more is better: the geometric
mean of the probabilities of a prompt's tokens, from 0 to 1. A number is of one
captioner and one tokenizer: name them beside it (the published CapS are of
CogView's own).
"""

from jaxtyping import Bool, Float
import numpy as np


def scores(
  log_p: Float[np.ndarray, "N T"], mask: Bool[np.ndarray, "N T"]
) -> Float[np.ndarray, "N"]:
  """The score of each image with its prompt.

  Args:
    log_p: the logarithm of each token's probability.
    mask: true where a token is one of the prompt.

  Raises:
    ValueError: a prompt without tokens, or what is no logarithm of a
      probability.
  """
  counts = mask.sum(axis=1)
  if not counts.all():
    raise ValueError(f"prompt {counts.argmin()} has no tokens")
  used = np.where(mask, log_p, 0).astype(np.float64)
  if not (used <= 0).all():
    row = int(np.argmax(~(used <= 0).all(axis=1)))
    raise ValueError(f"prompt {row} has a probability that is not from 0 to 1")
  return np.exp(used.sum(axis=1) / counts)


def caption_score(
  log_p: Float[np.ndarray, "N T"], mask: Bool[np.ndarray, "N T"]
) -> float:
  """The mean of `scores`."""
  return float(scores(log_p, mask).mean())
