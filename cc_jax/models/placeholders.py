# SPDX-License-Identifier: Apache-2.0
"""Prompts that keep places for an image, and the image put there.

Such a prompt is tokenised with one special id, the placeholder, where the image
is; `expand` repeats it as often as the image has tokens, and `merge` replaces
the embeddings at these places.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np


def expand(
  tokens: np.ndarray, mask: np.ndarray, placeholder: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Makes room for an image in each prompt.

  Args:
    tokens: int [B T], padded on any side, each row with one placeholder.
    mask: bool [B T], true where a token is one of its prompt.
    placeholder: its id.
    count: tokens of an image.

  Returns:
    Tokens and mask [B T-1+count], with `count` placeholders a row.

  Raises:
    ValueError: a prompt has no placeholder, or several.
  """
  found = (tokens == placeholder).sum(axis=1)
  if (found != 1).any():
    row = int(np.argmax(found != 1))
    raise ValueError(
      f"prompt {row} has {found[row]} places for an image (id {placeholder}); "
      "write exactly one"
    )
  # Places of the new prompts -> of the old ones.
  first = np.argmax(tokens == placeholder, axis=1)[:, None]
  places = np.arange(tokens.shape[1] - 1 + count)[None]
  places = np.maximum(np.minimum(places, first), places - (count - 1))
  old = (tokens, mask)
  expanded = [np.take_along_axis(array, places, axis=1) for array in old]
  return expanded[0], expanded[1]


def merge(
  x: Float[Array, "B T D"],
  places: Bool[Array, "B T"],
  image: Float[Array, "B S D"],
) -> Float[Array, "B T D"]:
  """Puts states of images in place of embeddings, each at the next place.

  Args:
    x: embeddings of prompts.
    places: true at S places of each row (`expand`); it is not seen here if
      there are others, since shapes are all that is known of arrays.
    image: states of each row's image.
  """
  order = jnp.clip(jnp.cumsum(places, axis=1) - 1, 0, image.shape[1] - 1)
  moved = jnp.take_along_axis(image, order[..., None], axis=1)  # [B T D]
  return jnp.where(places[..., None], moved.astype(x.dtype), x)
