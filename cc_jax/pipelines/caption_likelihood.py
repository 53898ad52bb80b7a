# SPDX-License-Identifier: Apache-2.0
"""Images and captions -> how likely a captioner finds each token.

For metrics/caption_score.py, by the captioners of pipelines/image_captioner.py.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int
import numpy as np

from cc_jax.core import files, sharding, tree
from cc_jax.data import squares
from cc_jax.models import clip_vision, hub, kinds
from cc_jax.pipelines import caption_recipe, image_captioner, image_features

LENGTH = 64
"""Tokens of a prompt that are asked for; longer ones are cut."""


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
  def run(params, pixels, ids, prompt):
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


class Captioner(NamedTuple):
  """A captioner that is asked how likely it finds captions.

  Attributes:
    name: of its weights.
    loaded: the weights.
    tokenizer: of it.
    recipe: its kind, prompt, resizing and type; `length` is that of captions.
  """

  name: str
  loaded: hub.Loaded
  tokenizer: Any
  recipe: caption_recipe.Recipe


def load(name: str, kind: str, dtype: str = "bfloat16") -> Captioner:
  """A captioner with the prompt of its kind.

  Args:
    name: a row of models/published.py, or a folder with its tokenizer.
    kind: "blip2" or "llava".
    dtype: of weights and computation.

  Raises:
    ValueError: there is none.
  """
  recipe = caption_recipe.Recipe(kind, length=LENGTH, dtype=dtype)
  return Captioner(name, *image_captioner.load(name, "", recipe), recipe)


def network(
  captioner: Captioner, captions: Sequence[str]
) -> tuple[image_features.Network, Bool[np.ndarray, "N T"]]:
  """What finds `log_p` [N T] of images, the logarithm of each token's
  probability, and where a token is one of the caption.

  Args:
    captioner: of `load`.
    captions: one for each image that it will be given.
  """
  loaded, recipe = captioner.loaded, captioner.recipe
  structure, _ = kinds.structure(recipe.kind, loaded.config, recipe.dtype)
  prompt = image_captioner.prompt_ids(
    loaded.config, captioner.tokenizer, recipe
  )
  ids, mask = tokens(captioner.tokenizer, captions, recipe.length)
  compiled = _compiled(structure, recipe.dtype)
  identity = {
    "network": recipe.kind,
    "weights": loaded.hash,
    "recipe": recipe.decides(),
    "captions": files.sha256(ids.tobytes() + mask.tobytes()),
  }
  made = image_features.Network(
    captioner.name,
    identity,
    ("log_p",),
    functools.partial(
      squares.square, size=loaded.config.vision.image_size, way=recipe.way
    ),
    lambda params, batch: {"log_p": compiled(params, *batch, prompt)},
    loaded.params,
    beside=ids,
  )
  return made, mask
