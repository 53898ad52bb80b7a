# SPDX-License-Identifier: Apache-2.0
"""Images and prompts -> embeddings of a CLIP, many at a time."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import ml_collections
import numpy as np

from cc_jax.core import sharding, tree
from cc_jax.data import squares, tokenize
from cc_jax.models import clip_dual, clip_vision, hub, kinds


class Embedder(NamedTuple):
  """A CLIP with its tokenizer.

  Attributes:
    structure: of the network.
    params: its weights.
    config: its config.
    tokenizer: from data/tokenize.py.
    length: of captions in tokens.
    batch_size: images or prompts at once.
  """

  structure: tree.Structure
  params: Any
  config: clip_dual.Config
  tokenizer: Any
  length: int
  batch_size: int


def make(
  config: ml_collections.ConfigDict,
  loaded: hub.Loaded | None = None,
  batch_size: int = 64,
) -> Embedder:
  """The CLIP of `config.model.clip`, or one with weights that are given.

  Raises:
    ValueError: a CLIP without weights, or of another tokenizer.
  """
  tokenizer = tokenize.load(config.model.tokenizer)
  if loaded is None:
    mesh = sharding.current_mesh()
    loaded = hub.load(config.model.clip, "clip", mesh=mesh)
  known, vocabulary = loaded.config.text.vocabulary, len(tokenizer)
  if known < vocabulary:
    raise ValueError(
      f"model.tokenizer has {vocabulary} ids, and the text tower of model.clip "
      f"knows {known}; set model.tokenizer to the one it was trained with"
    )
  structure, _ = kinds.structure("clip", loaded.config, config.train.dtype)
  length = min(config.encode.tokens, loaded.config.text.positions)
  return Embedder(
    structure, loaded.params, loaded.config, tokenizer, length, batch_size
  )


@functools.cache
def _compiled(structure: tree.Structure) -> tuple[Callable, Callable]:
  @jax.jit
  def on_images(params, pixels):
    x = clip_vision.normalise(pixels.astype(jnp.float32) / 127.5 - 1)
    clip = tree.merge(structure, params)
    return sharding.gather(clip_dual.unit(clip.image_embedding(x)))

  @jax.jit
  def on_text(params, tokens):
    clip = tree.merge(structure, params)
    return sharding.gather(clip_dual.unit(clip.text_embedding(tokens)))

  return on_images, on_text


def images(
  embedder: Embedder, pixels: UInt8[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, "N P"]:
  """Embeddings of length 1, after CLIP's own resizing and normalisation."""
  size = embedder.config.vision.image_size
  rows = [squares.square(one, size, squares.CROP) for one in pixels]
  run, _ = _compiled(embedder.structure)
  return _all(embedder, run, np.stack(rows))


def texts(
  embedder: Embedder, prompts: Sequence[str]
) -> Float[np.ndarray, "N P"]:
  """Embeddings of length 1."""
  tokens, _ = tokenize.encode(embedder.tokenizer, prompts, embedder.length)
  _, run = _compiled(embedder.structure)
  return _all(embedder, run, tokens)


def _all(embedder: Embedder, run: Callable, rows: np.ndarray) -> np.ndarray:
  """In batches of one shape."""
  made = [
    np.asarray(run(embedder.params, rows[taken]))[:count]
    for taken, count in batches(len(rows), embedder.batch_size)
  ]
  return np.concatenate(made)


def batches(total: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Rows of each batch, the last one filled up, and how many count."""
  for start in range(0, total, size):
    rows = np.minimum(np.arange(start, start + size), total - 1)
    yield rows, min(size, total - start)
