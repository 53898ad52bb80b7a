# SPDX-License-Identifier: Apache-2.0
"""Captions and images into one space: CLIP's loss, for small towers.

"Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020, figure 3. CLIP-GEN needs a CLIP of its images; where no
published one fits, or none can be had, it is trained on captioned ones here.
Each image is compared with all captions of the global batch, over all devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import ml_collections
import numpy as np

from cc_jax.core import tree
from cc_jax.data import squares, tokenize
from cc_jax.models import clip_dual, clip_vision, hub, kinds, layers
from cc_jax.tasks import task


def make(config: ml_collections.ConfigDict) -> task.Task:
  """Both towers of `config.model.clip`, on images and `config.encode.caption`.

  Raises:
    ValueError: no such towers or tokenizer, or captions that are longer than
      the text tower has positions for.
  """
  options, tokens = config.contrastive, config.encode.tokens
  if options.largest_scale <= 0:
    raise ValueError(
      f"contrastive.largest_scale={options.largest_scale}; expected above 0"
    )
  tokenizer = tokenize.load(config.model.tokenizer)
  clip_config = network(config.model.clip, tokenizer)
  if tokens > clip_config.text.positions:
    raise ValueError(
      f"encode.tokens={tokens} is too long for a text tower with "
      f"{clip_config.text.positions} positions"
    )
  structure, _ = kinds.structure("clip", clip_config, config.train.dtype)
  size, caption = clip_config.vision.image_size, config.encode.caption

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    made = kinds.make("clip", clip_config, rngs=layers.keys(key))
    return {"clip": tree.split(made)[1]}

  def loss(
    params: dict[str, Any], batch: dict[str, Array], key: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    del key
    clip = tree.merge(structure, params["clip"])
    x = clip_vision.normalise(batch["image"].astype(jnp.float32) / 127.5 - 1)
    image = clip_dual.unit(clip.image_embedding(x))
    text = clip_dual.unit(clip.text_embedding(batch["tokens"]))
    logits = clip.logits(image, text)
    found = jnp.argmax(logits, axis=1) == jnp.arange(len(logits))
    gap = jnp.mean(image, axis=0) - jnp.mean(text, axis=0)
    return symmetric(logits), {
      "accuracy": jnp.mean(found),
      "scale": jnp.exp(clip.logit_scale[...]),
      "modality_gap": jnp.linalg.norm(gap),
    }

  def after(before, params, metrics):
    del before
    # §2.5: more than 100 made the training unstable.
    limit = jnp.log(options.largest_scale)
    scale = jnp.minimum(params["clip"]["logit_scale"], limit)
    return {"clip": {**params["clip"], "logit_scale": scale}}, metrics

  def transform(record: dict[str, Any]) -> dict[str, Any]:
    ids, _ = tokenize.encode(tokenizer, [record[caption]], tokens)
    pixels = squares.decode(record["image"], size, squares.CROP)
    return {"image": pixels, "tokens": np.asarray(ids[0])}

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss),
    features=("image", caption),
    transform=transform,
    weights={},
    parts={"clip": ("clip", clip_config)},
    after=after,
  )


def network(name: Any, tokenizer: Any) -> clip_dual.Config:
  """The config of a CLIP by any of its names; its ids are the tokenizer's.

  Args:
    name: as of `hub.config`; fields need no vocabulary.
    tokenizer: of data/tokenize.py.
  """
  if isinstance(name, str):
    return hub.config(name, "clip")
  text = {**tokenize.ids(tokenizer), **name.get("text", {})}
  return hub.config({**name, "text": text}, "clip")


def symmetric(logits: Float[Array, "B B"]) -> Float[Array, ""]:
  """Mean cross-entropy of each row, and of each column, with its own place."""
  rows = jax.nn.log_softmax(logits, axis=1)
  columns = jax.nn.log_softmax(logits, axis=0)
  return -(jnp.mean(jnp.diag(rows)) + jnp.mean(jnp.diag(columns))) / 2
