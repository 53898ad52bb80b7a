# SPDX-License-Identifier: Apache-2.0
"""Captions a second, beside transformers' `generate` if asked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cc_jax.core import log, profile, timing, tree
from cc_jax.models import clip_vision, kinds
from cc_jax.pipelines import caption_recipe, image_captioner, reference


class Writing(NamedTuple):
  """A captioner of a measurement, and what it is given.

  Attributes:
    recipe: of the captions.
    config: of the network.
    prompt: int32 [1 T], with places for an image.
    pixels: uint8 [B H W 3].
  """

  recipe: caption_recipe.Recipe
  config: Any
  prompt: np.ndarray
  pixels: np.ndarray


def writing(config: ml_collections.ConfigDict) -> Writing:
  """The captioner of `bench.caption`, with random images.

  No token ends a caption, so that all have as many.
  """
  options = config.bench.caption
  recipe = caption_recipe.Recipe(
    options.captioner,
    decoding=options.decoding,
    beams=options.beams,
    length=options.tokens,
    dtype=options.dtype,
  )
  network, prompt = caption_recipe.small(
    recipe.kind,
    width=options.width,
    vision_depth=options.vision_depth,
    text_depth=options.text_depth,
    size=options.size,
  )
  shape = (options.batch_size, options.size, options.size, 3)
  rng = np.random.default_rng(config.seed)
  return Writing(recipe, network, prompt, rng.integers(0, 256, shape, np.uint8))


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Captions a second of a network, beside transformers' `generate`.

  From bytes of images to token ids on the host. Weights are random and the
  same, and both run in turn, as in pipelines/network_speed.py.
  """
  recipe, network, prompt, pixels = writing(config)
  structure, shapes = kinds.structure(recipe.kind, network, dtype=recipe.dtype)
  rng = np.random.default_rng(config.seed)
  params = jax.tree.map(
    lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes
  )
  log.announce(
    "bench",
    f"{recipe.kind}, {recipe.decoding}: {tree.count(shapes):,} weights",
  )
  runs = {}
  if config.bench.compare:
    runs["torch_seconds"] = caption_reference(
      recipe, network, params, prompt, pixels
    )
  params = jax.device_put(
    jax.tree.map(lambda leaf: leaf.astype(recipe.dtype), params)
  )
  write = image_captioner.writer(structure, network, prompt, recipe)
  args = (params, pixels, jax.random.key(0))
  with log.timed() as compiling:
    compiled = jax.jit(write).lower(*args).compile()
  run = lambda: np.asarray(compiled(*args))
  found = timing.in_turn({"seconds": run, **runs}, config.bench.repeats)
  seconds, images = found["seconds"], len(pixels)
  found["compile_seconds"] = compiling()
  found["images_per_second"] = images / seconds
  found["tokens_per_second"] = images * recipe.length / seconds
  if runs:
    theirs = found["torch_seconds"]
    found["torch_images_per_second"] = images / theirs
    found["torch_tokens_per_second"] = images * recipe.length / theirs
    found["speedup"] = theirs / seconds
  slowest = profile.slowest(run, compiled.as_text())
  found["slowest"] = [f"{s:.3f} s {what}" for what, s in slowest]
  return {f"caption_{name}": value for name, value in found.items()}


def caption_reference(
  recipe: caption_recipe.Recipe,
  network: Any,
  params: Any,
  prompt: np.ndarray,
  pixels: np.ndarray,
) -> Callable[[], np.ndarray]:
  """The same captions by transformers."""
  places = getattr(network, "queries", 0)
  # Where ours needs none, theirs marks the places of the image.
  marks = np.full((1, places), network.image_token, prompt.dtype)
  image = clip_vision.normalise(jnp.asarray(pixels, jnp.float32) / 127.5 - 1)
  return reference.captioner(
    recipe.kind,
    network,
    params,
    np.asarray(image),
    np.concatenate([marks, prompt], axis=1),
    dtype=recipe.dtype,
    length=recipe.length,
    num_beams=recipe.beams if recipe.decoding == "beam" else 1,
    do_sample=recipe.decoding == "nucleus",
  )
