# SPDX-License-Identifier: Apache-2.0
"""Prompts to images by CLIP-GEN: embedding, codes, image.

"CLIP-GEN", arXiv 2203.00386: the prior has learned to write the codes of an
image from CLIP's embedding of it, and is given that of a prompt. Of several
candidates CLIP takes the one nearest to the prompt, as in "DALL-E",
arXiv 2102.12092, §2.6.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import ml_collections
import numpy as np

from cc_jax.core import checkpoint, sharding, tree
from cc_jax.models import decoding, families, hub, kinds
from cc_jax.models import prior as priors
from cc_jax.pipelines import clip_gap, embeddings


class Design(NamedTuple):
  """The networks without their weights, and how codes are drawn."""

  prior: tree.Structure
  vqgan: tree.Structure
  temperature: float
  top_k: int
  top_p: float
  guidance: float
  dtype: str


class Model(NamedTuple):
  """CLIP-GEN: the three networks and what closes the gap between CLIP's two.

  Attributes:
    design: of the compiled function.
    params: weights of "prior" and "vqgan".
    configs: of both.
    embedder: CLIP.
    gap: from pipelines/clip_gap.py.
    candidates: images of which CLIP takes one.
  """

  design: Design
  params: dict[str, Any]
  configs: dict[str, Any]
  embedder: embeddings.Embedder
  gap: clip_gap.Gap
  candidates: int


def make(
  config: ml_collections.ConfigDict,
  params: dict[str, Any] | None = None,
  *,
  part: str = "",
) -> Model:
  """The model of a config.

  Args:
    config: of the run that trained the prior.
    params: its weights; None reads the checkpoint that `config.sample` names,
      or, where nothing was trained, those that `config.model.prior` brings.
    part: of a checkpoint, "ema" or "params"; "" for that of `config.sample`.

  Raises:
    ValueError: a network that does not exist or has no weights, or a
      `config.sample` that cannot be followed.
  """
  check(config)
  options, names, mesh = config.sample, config.model, sharding.current_mesh()
  vqgan = hub.load(names.vqgan, "vqgan", mesh=mesh)
  clip = hub.load(names.clip, "clip", mesh=mesh)
  embedder = embeddings.make(config, clip, options.batch_size)
  found = families.prior(names.prior, vqgan.config, clip.config)
  dtype = config.train.dtype
  structure, shapes = kinds.structure("prior", found, dtype)
  trained = checkpoint.latest_step(config.train.checkpoints) is not None
  if params is None and not trained and isinstance(names.prior, str):
    params = {"prior": hub.load(names.prior, "prior", mesh=mesh).params}
  if params is None:
    params = checkpoint.load(
      config.train.checkpoints,
      part or options.part,
      {"prior": shapes},
      None if options.step < 0 else options.step,
    )
  design = Design(
    structure,
    kinds.structure("vqgan", vqgan.config, dtype)[0],
    options.temperature,
    options.top_k,
    options.top_p,
    options.guidance,
    dtype,
  )
  return Model(
    design,
    {"prior": params["prior"], "vqgan": vqgan.params},
    {"prior": found, "vqgan": vqgan.config},
    embedder,
    clip_gap.make(config, embedder),
    options.candidates,
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a `config.sample` that `generate` could not follow.

  Raises:
    ValueError: no prompts, numbers below one, or nothing left to draw from.
  """
  options = config.sample
  if not options.prompts:
    raise ValueError("sample.prompts is empty; give at least one prompt")
  for name in ("each", "candidates", "batch_size"):
    if options[name] < 1:
      raise ValueError(f"sample.{name}={options[name]}; expected 1 or more")
  clip_gap.check(options)
  pick(options.temperature, options.top_k, options.top_p)


def pick(temperature: float, top_k: int, top_p: float) -> decoding.Pick:
  """How a code is chosen: `top_k` of 1 is the likeliest, 0 is no limit."""
  if top_k == 1:
    return decoding.greedy
  return decoding.sampler(temperature, top_k or None, top_p)


@functools.cache
def compiled(design: Design) -> Callable[..., jax.Array]:
  """The function (params, condition, key) -> images in [0, 1], kept."""
  choose = pick(design.temperature, design.top_k, design.top_p)

  @jax.jit
  def run(params, condition, key):
    prior = tree.merge(design.prior, params["prior"])
    codes = priors.sample(
      prior,
      sharding.constrain(condition),
      choose,
      key,
      guidance=design.guidance,
      dtype=jnp.dtype(design.dtype),
    )
    side = round(codes.shape[1] ** 0.5)
    vqgan = tree.merge(design.vqgan, params["vqgan"])
    x = vqgan.decode_codes(codes.reshape(-1, side, side))
    return sharding.gather(jnp.clip(x / 2 + 0.5, 0, 1))

  return run


def generate(
  model: Model,
  prompts: Sequence[str],
  *,
  seed: int = 0,
  batch_size: int = 16,
  indices: Int[np.ndarray, "N"] | None = None,
  progress: Callable[[int], Any] = lambda count: None,
) -> Float[np.ndarray, "N H W 3"]:
  """Makes an image for each prompt, in [0, 1].

  Args:
    model: from `make`.
    prompts: N captions.
    seed: of the codes that are drawn; what is drawn for a prompt depends on its
      place too.
    batch_size: candidates at once.
    indices: the number of each image, none twice, where they are a part of
      more; in place of places, see `numbered`.
    progress: called with the number of images made.

  Raises:
    ValueError: no prompt.
  """
  if not prompts:
    raise ValueError("no prompts; give at least one")
  captions = embeddings.texts(model.embedder, prompts)
  condition = clip_gap.close(model.gap, captions)
  drawn = 0

  def advance(count):
    nonlocal drawn
    before, drawn = drawn, drawn + count
    progress(drawn // model.candidates - before // model.candidates)

  draw = dict(seed=seed, batch_size=batch_size, progress=advance)
  if indices is None:
    rows = np.repeat(condition, model.candidates, axis=0)
    made = from_embeddings(model, rows, **draw)
  else:
    made = numbered(model, condition, indices, **draw)
  if model.candidates == 1:
    return made
  return rerank(model.embedder, captions, made)


def from_embeddings(
  model: Model,
  condition: Float[np.ndarray, "N P"],
  *,
  seed: int,
  batch_size: int,
  progress: Callable[[int], Any] = lambda count: None,
) -> Float[np.ndarray, "N H W 3"]:
  """An image, in [0, 1], for each embedding of length 1."""
  run, key = compiled(model.design), jax.random.key(seed)
  made = []
  for start, (rows, count) in enumerate(
    embeddings.batches(len(condition), batch_size)
  ):
    found = run(model.params, condition[rows], jax.random.fold_in(key, start))
    made.append(np.asarray(found)[:count])
    progress(count)
  return np.concatenate(made)


def numbered(
  model: Model,
  condition: Float[np.ndarray, "N P"],
  indices: Int[np.ndarray, "N"],
  *,
  seed: int,
  batch_size: int,
  progress: Callable[[int], Any] = lambda count: None,
) -> Float[np.ndarray, "M H W 3"]:
  """Candidates of images by their numbers, whichever others are asked for.

  Codes are drawn for whole batches of numbers, so what is drawn follows from
  the seed, the number and the size of batches.

  Returns:
    For each embedding its candidates, M / N in a row, in [0, 1].
  """
  run, key = compiled(model.design), jax.random.key(seed)
  blocks, places = np.divmod(indices, batch_size)
  made: list[Any] = [None] * len(indices)
  for block in np.unique(blocks):
    wanted = np.flatnonzero(blocks == block)
    rows = np.repeat(condition[wanted[:1]], batch_size, axis=0)
    rows[places[wanted]] = condition[wanted]
    own = jax.random.fold_in(key, int(block))
    drawn = [
      np.asarray(run(model.params, rows, jax.random.fold_in(own, candidate)))
      for candidate in range(model.candidates)
    ]
    for row in wanted:
      made[row] = np.stack([images[places[row]] for images in drawn])
    progress(len(wanted) * model.candidates)
  return np.concatenate(made)


def rerank(
  embedder: embeddings.Embedder,
  captions: Float[np.ndarray, "N P"],
  made: Float[np.ndarray, "M H W 3"],
) -> Float[np.ndarray, "N H W 3"]:
  """Of the candidates of each prompt, M / N in a row, the one nearest to it."""
  N = len(captions)
  pixels = np.round(made * 255).astype(np.uint8)
  seen = embeddings.images(embedder, pixels).reshape(N, len(made) // N, -1)
  best = np.argmax(np.einsum("btd,bd->bt", seen, captions), axis=1)
  return made.reshape(N, -1, *made.shape[1:])[np.arange(N), best]
