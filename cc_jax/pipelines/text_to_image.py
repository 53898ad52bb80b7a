# SPDX-License-Identifier: Apache-2.0
"""Prompts to images, for every family of models/families.py."""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PRNGKeyArray
import ml_collections
import numpy as np

from cc_jax.core import checkpoint, sharding, tree
from cc_jax.data import tokenize
from cc_jax.diffusion import samplers
from cc_jax.diffusion import schedule as schedules
from cc_jax.models import families, hub, kinds


class Design(NamedTuple):
  """All of a model that is not an array; compiled functions depend on it.

  Attributes:
    family: a key of `families.FAMILIES`.
    networks: the name and structure of each network.
    scaling_factor: of the autoencoder's latents.
    schedule: that the denoiser was trained with.
    prediction: what it outputs.
    zero_empty: guidance is away from zeros, not from the empty caption.
  """

  family: str
  networks: tuple[tuple[str, tree.Structure], ...]
  scaling_factor: float
  schedule: schedules.Schedule
  prediction: str
  zero_empty: bool


class Model(NamedTuple):
  """A text-to-image model.

  Attributes:
    design: how its networks work together.
    params: the weights of each network.
    configs: of each.
    tokenizers: from data/tokenize.py, of each text tower.
    length: of captions in tokens, T.
  """

  design: Design
  params: dict[str, Any]
  configs: dict[str, Any]
  tokenizers: dict[str, Any]
  length: int

  @property
  def family(self) -> families.Family:
    """The row of the model's family."""
    return families.FAMILIES[self.design.family]


def make(
  config: ml_collections.ConfigDict,
  params: dict[str, Any] | None = None,
  *,
  part: str = "",
) -> Model:
  """The model of a config.

  Weights of its files are on the devices of the mesh that is set, else in
  arrays of NumPy.

  Args:
    config: of the run that trained it.
    params: its weights: those of a train state; None reads the checkpoint that
      `config.sample` names.
    part: of a checkpoint, "ema" or "params"; "" for that of `config.sample`.

  Raises:
    ValueError: there is no such checkpoint, or it is of another model, or
      `config.sample` asks for what cannot be, as in `check`.
  """
  check(config)
  names, trains_text = config.model, config.latent_diffusion.train_text
  family = families.find(names)
  tokenizers = {
    name: tokenize.load(one)
    for name, one in families.tokenizers(family, names).items()
  }
  found = families.open(
    family,
    names,
    {name: tokenize.ids(one) for name, one in tokenizers.items()},
    train_text=trains_text,
    mesh=sharding.current_mesh(),
  )
  row = families.FAMILIES[family]
  made = {
    name: kinds.structure(
      row.kinds[name], loaded.config, dtype=config.train.dtype
    )
    for name, loaded in found.items()
  }
  if params is None:
    trained = (row.denoiser, *(row.text if trains_text else ()))
    params = checkpoint.load(
      config.train.checkpoints,
      part or config.sample.part,
      {name: made[name][1] for name in trained},
      None if config.sample.step < 0 else config.sample.step,
    )
  design = Design(
    family=family,
    networks=tuple((name, structure) for name, (structure, _) in made.items()),
    scaling_factor=found["vae"].config.scaling_factor,
    schedule=schedules.Schedule(**names.schedule),
    prediction=names.prediction,
    zero_empty=names.zero_empty,
  )
  return Model(
    design,
    {name: loaded.params for name, loaded in found.items()} | params,
    {name: loaded.config for name, loaded in found.items()},
    tokenizers,
    config.encode.tokens,
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a `config.sample` that `generate` could not follow.

  Raises:
    ValueError: no prompts, numbers below one, a sampler that does not exist or
      a size that the autoencoder cannot make.
  """
  options = config.sample
  samplers.by_name(options.sampler)
  if not options.prompts:
    raise ValueError("sample.prompts is empty; give at least one prompt")
  for name in ("each", "steps", "size", "batch_size"):
    if options[name] < 1:
      raise ValueError(f"sample.{name}={options[name]}; expected 1 or more")
  families.check_zeros(families.find(config.model), config.model.zero_empty)
  factor = hub.config(config.model.vae, "autoencoder").factor
  if options.size % factor:
    raise ValueError(
      f"sample.size={options.size} does not divide by {factor}, the "
      "autoencoder's reduction"
    )


@functools.cache
def compiled(
  design: Design, sampler: str, steps: int, rescale: float
) -> Callable[..., jax.Array]:
  """The function from tokens and noise to images, compiled when first called.

  Kept, so that a later call for the same design compiles nothing.

  Returns:
    `(params, captions, empty, size, xt, guidance, key) -> images`: captions
    are one `families.Captions` [B T] a text tower, empty likewise the empty
    caption [1 T], size [2] height and width in pixels, xt [B H W C] standard
    normal, images [B Y X 3] in [0, 1].

  Raises:
    ValueError: unknown sampler.
  """
  run = samplers.by_name(sampler)
  family = families.FAMILIES[design.family]

  @jax.jit
  def sample(params, captions, empty, size, xt, guidance, key):
    networks = {
      name: tree.merge(structure, params[name])
      for name, structure in design.networks
    }
    # Made at this size and not cropped.
    sizes = jnp.concatenate([size, jnp.zeros_like(size), size])
    rows = lambda x: jnp.broadcast_to(x, (len(xt), *x.shape[1:]))
    cond = family.conditions(networks, captions, rows(sizes[None]))
    if design.zero_empty:
      every = jnp.ones(len(xt), bool)
      uncond = families.zero(design.family, cond, every)
    else:
      uncond = family.conditions(networks, empty, sizes[None])
      uncond = jax.tree.map(rows, uncond)
    denoise = samplers.guided(
      lambda xt, t, conditions: families.predict(
        design.family, networks, sharding.constrain(xt), t, conditions
      ),
      cond,
      uncond,
      guidance,
      rescale,
    )
    z = run(
      denoise,
      sharding.constrain(xt),
      design.schedule,
      steps=steps,
      prediction=design.prediction,
      key=key,
    )
    x = networks["vae"].decode(z / design.scaling_factor)
    x = jnp.clip(x.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return sharding.gather(x)

  return sample


def encode(model: Model, prompts: Sequence[str]) -> list[families.Captions]:
  """Prompts as each text tower of a model reads them."""
  clean = [model.family.clean(prompt) for prompt in prompts]
  return [
    families.Captions(*tokenize.encode(tokenizer, clean, model.length))
    for tokenizer in model.tokenizers.values()
  ]


def noise(
  key: PRNGKeyArray, indices: Int[np.ndarray, "B"], shape: Sequence[int]
) -> Float[jax.Array, "B H W C"]:
  """Standard normal latents; image i's depend on key and i alone."""
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices))
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def generate(
  model: Model,
  prompts: Sequence[str],
  *,
  size: int | tuple[int, int],
  seed: int = 0,
  sampler: str = "dpm_solver_pp",
  steps: int = 20,
  guidance: float = 3.0,
  rescale: float = 0.0,
  batch_size: int = 16,
  xt: Float[Any, "N H W C"] | None = None,
  progress: Callable[[int], Any] = lambda count: None,
) -> Float[np.ndarray, "N Y X 3"]:
  """Makes an image for each prompt.

  Image i depends on the seed, i and its prompt, not on the batch it is in
  (with ddpm, whose noise on the way is a batch's, on that too).

  Args:
    model: from `make`.
    prompts: N captions.
    size: pixels a side, or height and width.
    seed: of the noise.
    sampler: one of diffusion/samplers.py.
    steps: of the sampler.
    guidance: how far beyond the caption's prediction to go; 1 for none.
    rescale: see `samplers.guided`.
    batch_size: images at once.
    xt: the noise to start from, instead of the seed's.
    progress: called with the number of images made.

  Returns:
    Images in [0, 1].

  Raises:
    ValueError: no prompt, a size that the autoencoder cannot make, or a
      sampler that does not exist or cannot make these steps.
  """
  if not prompts:
    raise ValueError("no prompts; give at least one")
  run = compiled(model.design, sampler, steps, rescale)
  height, width = (size, size) if isinstance(size, int) else size
  shape = latent_shape(model, (height, width))
  captions, empty = encode(model, prompts), encode(model, [""])
  pixels = np.array([height, width], np.float32)
  key = jax.random.key(seed)
  result = []
  for start in range(0, len(prompts), batch_size):
    # The last batch is filled up, so that there is one compiled shape.
    rows = np.arange(start, start + batch_size)
    taken = np.minimum(rows, len(prompts) - 1)
    if xt is None:
      begin = noise(key, taken, shape)
    else:
      begin = jnp.asarray(xt)[taken]
    images = run(
      model.params,
      jax.tree.map(lambda x, taken=taken: x[taken], captions),
      empty,
      pixels,
      begin,
      jnp.float32(guidance),
      jax.random.fold_in(jax.random.key(seed + 1), start),
    )
    done = min(batch_size, len(prompts) - start)
    result.append(np.asarray(images)[:done])
    progress(done)
  return np.concatenate(result)


def latent_shape(model: Model, size: tuple[int, int]) -> tuple[int, int, int]:
  """Height, width and channels of the latents of an image.

  Raises:
    ValueError: a size that the autoencoder cannot make.
  """
  vae = model.configs["vae"]
  for pixels in size:
    if pixels < 1 or pixels % vae.factor:
      raise ValueError(f"size={pixels} does not divide by {vae.factor}")
  return size[0] // vae.factor, size[1] // vae.factor, vae.latent_channels
