# SPDX-License-Identifier: Apache-2.0
"""Images and captions -> how likely a captioner finds each token.

For metrics/caption_score.py, by the captioners of pipelines/image_captioner.py.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8
import numpy as np

from cc_jax.core import sharding, tree
from cc_jax.data import squares
from cc_jax.models import clip_vision, hub, kinds
from cc_jax.pipelines import caption_recipe, embeddings, image_captioner


def tokens(
  tokenizer: Any, captions: Sequence[str], length: int
) -> tuple[Int[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
  """Ids of captions as they follow a prompt, and where they are not padding.

  Args:
    tokenizer: of the captioner.
    captions: N texts.
    length: T; longer ones are cut.
  """
  ids = np.zeros((len(captions), length), np.int32)
  mask = np.zeros(ids.shape, bool)
  for row, caption in enumerate(captions):
    # With a space, as a word after a word.
    text = tokenizer(f" {caption.strip()}", add_special_tokens=False)
    found = text["input_ids"][:length]
    ids[row, : len(found)], mask[row, : len(found)] = found, True
  return ids, mask


@functools.cache
def _compiled(structure: tree.Structure, dtype: str) -> Any:
  @jax.jit
  def run(params, pixels, prompt, ids):
    model = tree.merge(structure, params)
    image = clip_vision.normalise(pixels.astype(jnp.float32) / 127.5 - 1)
    prompts = jnp.broadcast_to(prompt, (len(pixels), prompt.shape[1]))
    # Padding is behind, where no token before it looks.
    read = jnp.concatenate([prompts, ids], axis=1)
    x, mask = model.embed(image.astype(dtype), read)
    logits = model.text(x, mask)[:, -ids.shape[1] - 1 : -1]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    found = jnp.take_along_axis(log_p, ids[..., None], axis=2)[..., 0]
    return sharding.gather(found)

  return run


def log_probabilities(
  loaded: hub.Loaded,
  tokenizer: Any,
  recipe: caption_recipe.Recipe,
  pixels: UInt8[np.ndarray, "N H W 3"],
  captions: Sequence[str],
  *,
  batch_size: int = 16,
) -> tuple[Float[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
  """Logarithms of the probability of each token of a caption, and a mask.

  Args:
    loaded: the captioner.
    tokenizer: of it.
    recipe: its kind, prompt, resizing, type; T is its `length`.
    pixels: N images.
    captions: one each.
    batch_size: images at once.

  Raises:
    ValueError: not one caption for each image.
  """
  if len(pixels) != len(captions):
    raise ValueError(
      f"{len(pixels)} images with {len(captions)} captions; expected one each"
    )
  size = loaded.config.vision.image_size
  structure, _ = kinds.structure(recipe.kind, loaded.config, recipe.dtype)
  prompt = image_captioner.prompt_ids(loaded.config, tokenizer, recipe)
  ids, mask = tokens(tokenizer, captions, recipe.length)
  seen = np.stack([squares.square(one, size, recipe.way) for one in pixels])
  run = _compiled(structure, recipe.dtype)
  made = [
    np.asarray(run(loaded.params, seen[rows], prompt, ids[rows]))[:count]
    for rows, count in embeddings.batches(len(seen), batch_size)
  ]
  return np.concatenate(made), mask
