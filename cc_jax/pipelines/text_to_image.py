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
from cc_jax.data import classes, clean_caption, tokenize
from cc_jax.diffusion import samplers
from cc_jax.diffusion import schedule as schedules
from cc_jax.models import families, hub, kinds
from cc_jax.pipelines import sizes


class Design(NamedTuple):
  """All of a model that is not an array; compiled functions depend on it.

  Attributes:
    family: a key of `families.FAMILIES`.
    networks: the name and structure of each network.
    scaling_factor: of the autoencoder's latents.
    schedule: that the denoiser was trained with.
    prediction: what it outputs.
    zero_empty: guidance is away from zeros, not from the empty caption.
    null_caption: "empty", or "buffer": away from PixArt's own null caption.
  """

  family: str
  networks: tuple[tuple[str, tree.Structure], ...]
  scaling_factor: float
  schedule: schedules.Schedule
  prediction: str
  zero_empty: bool
  null_caption: str = "empty"


class Model(NamedTuple):
  """A text-to-image model.

  Attributes:
    design: how its networks work together.
    params: the weights of each network.
    configs: of each.
    tokenizers: from data/tokenize.py, of each text tower; the classes of a
      model that has none.
    length: of captions in tokens, T.
    clean: captions are cleaned by T5's rules.
  """

  design: Design
  params: dict[str, Any]
  configs: dict[str, Any]
  tokenizers: dict[str, Any]
  length: int
  clean: bool = False

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
  ids = {name: tokenize.ids(one) for name, one in tokenizers.items()}
  if family == "dit":
    known = classes.load(names.classes)
    tokenizers = {"label": known}
    ids = {"transformer": {"classes": len(known.names)}}
  found = families.open(
    family,
    names,
    ids,
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
    null_caption=names.null_caption,
  )
  return Model(
    design,
    {name: loaded.params for name, loaded in found.items()} | params,
    {name: loaded.config for name, loaded in found.items()},
    tokenizers,
    config.encode.tokens,
    names.clean,
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
  made = sizes.of(options).made
  for pixels in made:
    if pixels % factor:
      raise ValueError(
        f"an image of {made[0]} x {made[1]} pixels does not divide "
        f"by {factor}, the autoencoder's reduction; set sample.height and "
        "sample.width to multiples, or sample.binning"
      )
  if options.sampler in samplers.LEARNED:
    row = families.FAMILIES[families.find(config.model)]
    network = hub.config(config.model[row.denoiser], row.kinds[row.denoiser])
    if (network.out_channels or 0) != 2 * network.in_channels:
      raise ValueError(
        f"sample.sampler={options.sampler!r} needs a learned variance: a "
        f"model.{row.denoiser} of out_channels={2 * network.in_channels}"
      )


@functools.cache
def compiled(
  design: Design, sampler: str, steps: int, rescale: float, channels: int = 0
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
  learned = sampler in samplers.LEARNED
  predict = families.output if learned else families.predict

  @jax.jit
  def sample(params, captions, empty, size, xt, guidance, key):
    networks = {
      name: tree.merge(structure, params[name])
      for name, structure in design.networks
    }
    # Made at this size and not cropped.
    six = jnp.concatenate([size, jnp.zeros_like(size), size])
    rows = lambda x: jnp.broadcast_to(x, (len(xt), *x.shape[1:]))
    cond = family.conditions(networks, captions, rows(six[None]))
    if design.zero_empty:
      every = jnp.ones(len(xt), bool)
      uncond = families.zero(design.family, cond, every)
    elif design.null_caption == "buffer":
      every = jnp.ones(len(xt), bool)
      null = networks[family.denoiser].drop(cond["context"], every)
      uncond = {**cond, "context": null}
    else:
      uncond = family.conditions(networks, empty, six[None])
      uncond = jax.tree.map(rows, uncond)
    denoise = samplers.guided(
      lambda xt, t, conditions: predict(
        design.family, networks, sharding.constrain(xt), t, conditions
      ),
      cond,
      uncond,
      guidance,
      rescale,
      channels or xt.shape[-1],
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
  if model.clean:
    prompts = [clean_caption.clean(prompt) for prompt in prompts]
  clean = [model.family.clean(prompt) for prompt in prompts]
  return [
    families.Captions(classes.encode(tokenizer, clean))
    if isinstance(tokenizer, classes.Classes)
    else families.Captions(*tokenize.encode(tokenizer, clean, model.length))
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
  wanted: tuple[int, int] | None = None,
  seed: int = 0,
  sampler: str = "dpm_solver_pp",
  steps: int = 20,
  guidance: float = 3.0,
  rescale: float = 0.0,
  channels: int = 0,
  batch_size: int = 16,
  indices: Int[np.ndarray, "N"] | None = None,
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
    wanted: height and width to which images are resized, and cropped where the
      ratio is another.
    seed: of the noise.
    sampler: one of diffusion/samplers.py.
    steps: of the sampler.
    guidance: how far beyond the caption's prediction to go; 1 for none.
    rescale: see `samplers.guided`.
    channels: of the latents that are guided, see there; 0 for all.
    batch_size: images at once.
    indices: the number i of each image, where they are a part of more.
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
  run = compiled(model.design, sampler, steps, rescale, channels)
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
      begin = noise(key, taken if indices is None else indices[taken], shape)
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
  made = np.concatenate(result)
  if wanted in (None, (height, width)):
    return made
  return sizes.fit(made, *wanted)


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
