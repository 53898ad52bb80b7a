# SPDX-License-Identifier: Apache-2.0
"""Captions from networks that look at the image: BLIP-2 and LLaVA 1.5.

CommonCanvas captioned its photographs by BLIP-2 ("telephoning", arXiv
2310.16825, §3.1 and §4.2). pipelines/caption_recipe.py says what may be chosen.

An image is a square of bytes on its way to the devices and is normalised there.
All rows of a batch have the same prompt, so there is one compiled shape.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt8
import numpy as np

from cc_jax.core import sharding, tree
from cc_jax.data import images, squares, tokenize
from cc_jax.models import (
  clip_vision,
  decoding,
  hub,
  kinds,
  lm,
  placeholders,
  published,
)
from cc_jax.pipelines import caption_recipe, overlap


def load(
  model: str,
  tokenizer: str,
  recipe: caption_recipe.Recipe,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[hub.Loaded, Any]:
  """Weights, laid out on a mesh if there is one, and the tokenizer.

  Args:
    model: a row of models/published.py, or a folder.
    tokenizer: as `tokenize.load` names it; "" for the one beside the model.
    recipe: of the captions.
    mesh: of this host's devices.

  Raises:
    ValueError: one of the two is not there.
  """
  loaded = hub.load(model, recipe.kind, mesh=mesh, dtype=recipe.dtype)
  if not tokenizer and model in published.TABLE:
    tokenizer = published.TABLE[model].repository
  return loaded, tokenize.load(tokenizer or model)


def prompt_ids(
  config: Any, tokenizer: Any, recipe: caption_recipe.Recipe
) -> np.ndarray:
  """The prompt as a network reads it: int32 [1 T], with places for an image.

  The first token is written here: whether tokenizers add it depends on the
  version of their files.

  Raises:
    ValueError: a LLaVA's prompt has not exactly one place for an image, or the
      tokenizer knows none.
  """
  text, first = recipe.text, config.text.bos
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  tokens = np.array([[first, *ids]], np.int32)
  if recipe.kind == "blip2":
    return tokens
  mask = np.ones(tokens.shape, bool)
  try:
    return placeholders.expand(tokens, mask, config.image_token, config.places)[
      0
    ]
  except ValueError as error:
    raise ValueError(f"caption.prompt {text!r}: {error}") from error


def writer(
  structure: Any, config: Any, prompt: np.ndarray, recipe: caption_recipe.Recipe
) -> Callable[[Any, Array, Array], Array]:
  """A pure function (weights, images, key) -> token ids [B length].

  Args:
    structure: of the network, of `kinds.structure`.
    config: of it.
    prompt: of `prompt_ids`.
    recipe: of the captions.
  """
  text = config.text
  pad = text.eos if text.pad is None else text.pad
  ends = dict(length=recipe.length, min_length=recipe.min_length, eos=text.eos)
  if pad is not None:
    ends["pad"] = pad

  def write(
    params: Any, pixels: UInt8[Array, "B H W 3"], key: Key[Array, ""]
  ) -> Int[Array, "B T"]:
    model = tree.merge(structure, params)
    image = clip_vision.normalise(pixels.astype(jnp.float32) / 127.5 - 1)
    tokens = jnp.broadcast_to(prompt, (len(pixels), prompt.shape[1]))
    x, mask = model.embed(image.astype(recipe.dtype), tokens)
    size = x.shape[1] + recipe.length - 1
    cache = lm.empty_cache(text, len(x), size, jnp.dtype(recipe.dtype))
    logits, cache = model.text.extend(x, cache, mask, last=True)
    run = (model.text.step, logits[:, 0], cache)
    if recipe.decoding == "beam":
      select = functools.partial(_select, beams=recipe.beams)
      made, _ = decoding.beam_search(
        *run,
        select,
        beams=recipe.beams,
        length_penalty=recipe.length_penalty,
        **ends,
      )
    elif recipe.decoding == "nucleus":
      pick = decoding.sampler(
        recipe.temperature, recipe.top_k or None, recipe.top_p
      )
      made = decoding.generate(*run, pick, key=key, **ends)
    else:
      made = decoding.generate(*run, **ends)
    return sharding.gather(made)

  return write


def _select(cache: lm.Cache, rows: Int[Array, " R"], beams: int) -> lm.Cache:
  """`lm.select` for beams, which take from their own image's beams only.

  Said so that no device need ask another one for its rows.
  """
  if len(rows) != len(cache.mask):
    again = functools.partial(jnp.repeat, repeats=beams)
    return cache._replace(
      k=again(cache.k, axis=1),
      v=again(cache.v, axis=1),
      mask=again(cache.mask, axis=0),
    )
  places = (rows % beams).reshape(-1, beams)

  def take(x: Array, axis: int) -> Array:
    shape = x.shape
    x = x.reshape(*shape[:axis], -1, beams, *shape[axis + 1 :])
    index = places.reshape(
      *[1] * axis, *places.shape, *[1] * (len(shape) - axis - 1)
    )
    return jnp.take_along_axis(x, index, axis=axis + 1).reshape(shape)

  # The mask is the same for all beams of an image.
  return cache._replace(k=take(cache.k, 1), v=take(cache.v, 1))


class Captioner(NamedTuple):
  """What captions images.

  Attributes:
    prepare: a record of the catalogue -> its pixels, on the host.
    write: pixels [B H W 3] and a number -> token ids, for which it does not
      wait; the number is the seed's of what is drawn.
    texts: token ids -> captions.
    batch_size: B.
    size: H and W.
  """

  prepare: Callable[[Mapping[str, Any]], "np.ndarray | images.ImageError"]
  write: Callable[[np.ndarray, int], Int[Array, "B T"]]
  texts: Callable[[np.ndarray], list[str]]
  batch_size: int
  size: int


def make(
  loaded: hub.Loaded,
  tokenizer: Any,
  recipe: caption_recipe.Recipe,
  *,
  mesh: jax.sharding.Mesh,
  batch_size: int,
) -> Captioner:
  """A captioner, compiled for one shape.

  Args:
    loaded: a network with its weights on the mesh.
    tokenizer: of the network.
    recipe: of the captions.
    mesh: of this host's devices.
    batch_size: images at once.

  Raises:
    ValueError: a batch that does not divide over the devices, or a prompt and
      caption that are too long for the network.
  """
  ways = sharding.batch_ways(mesh)
  if batch_size % ways:
    raise ValueError(
      f"caption.batch_size={batch_size} does not divide over {ways} devices"
    )
  config, eos = loaded.config, loaded.config.text.eos
  prompt = prompt_ids(config, tokenizer, recipe)
  structure, _ = kinds.structure(recipe.kind, config, dtype=recipe.dtype)
  size = config.vision.image_size
  layout = sharding.batch_layout(mesh)
  seed = jax.random.key(recipe.seed)
  pixels = jax.ShapeDtypeStruct(
    (batch_size, size, size, 3), jnp.uint8, sharding=layout
  )
  with jax.set_mesh(mesh):
    run = jax.jit(writer(structure, config, prompt, recipe))
    compiled = run.lower(loaded.params, pixels, seed).compile()

  def prepare(example):
    try:
      return squares.decode(
        example["image"], size, recipe.way, middle=recipe.middle
      )
    except images.ImageError as error:
      return error

  def write(pixels, number):
    key = jax.random.fold_in(seed, number)
    return compiled(loaded.params, jax.device_put(pixels, layout), key)

  def texts(rows):
    ends = [np.flatnonzero(row == eos)[:1] for row in rows]
    cut = [
      row[: end[0]] if len(end) else row
      for row, end in zip(rows.tolist(), ends, strict=True)
    ]
    made = tokenizer.batch_decode(cut, skip_special_tokens=True)
    return [text.strip() for text in made]

  return Captioner(prepare, write, texts, batch_size, size)


def stream(
  made: Captioner, seconds: overlap.Seconds
) -> Callable[[Iterator[Mapping[str, Any]]], Iterator[tuple[Any, ...]]]:
  """A stream for `overlap.piece`: records of a catalogue to their captions.

  The one result of a record is its caption and flags; no caption, and the flag
  "image_REASON", where an image cannot be seen.

  Args:
    made: what captions.
    seconds: see `overlap.run`.
  """

  def prepare(example):
    pixels = made.prepare(example)
    if isinstance(pixels, images.ImageError):
      return [("", [f"image_{pixels.reason}"])]
    return [overlap.Prepared(pixels.shape, (example["key"], pixels))]

  def start(shape, values):
    batch = np.zeros((made.batch_size, *shape), np.uint8)
    for row, (_, pixels) in enumerate(values):
      batch[row] = pixels
    # A batch of a pass always begins with the same record.
    rows = made.write(batch, int(values[0][0][:8], 16))
    return lambda: [
      (text, []) for text in made.texts(np.asarray(rows)[: len(values)])
    ]

  def captions(examples):
    return overlap.run(
      examples, prepare, start, batch_size=made.batch_size, seconds=seconds
    )

  return captions
