# SPDX-License-Identifier: Apache-2.0
"""Prompts to images."""

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
from cc_jax.models import hub, kinds

KINDS = {"unet": "unet", "text": "clip_text", "vae": "autoencoder"}


class Design(NamedTuple):
  """All of a model that is not an array; compiled functions depend on it.

  Attributes:
    unet: structure of the denoiser.
    text: of the text tower.
    vae: of the autoencoder.
    scaling_factor: of its latents.
    schedule: that the U-Net was trained with.
    prediction: what the U-Net outputs.
  """

  unet: tree.Structure
  text: tree.Structure
  vae: tree.Structure
  scaling_factor: float
  schedule: schedules.Schedule
  prediction: str


class Model(NamedTuple):
  """A text-to-image model.

  Attributes:
    design: how its networks work together.
    params: the weights of "unet", "text" and "vae".
    configs: of each.
    tokenizer: from data/tokenize.py.
  """

  design: Design
  params: dict[str, Any]
  configs: dict[str, Any]
  tokenizer: Any


def make(
  config: ml_collections.ConfigDict, params: dict[str, Any] | None = None
) -> Model:
  """The model of a config.

  Weights of its files are on the devices of the mesh that is set, else in
  arrays of NumPy.

  Args:
    config: of the run that trained it.
    params: its weights: those of a train state; None reads the checkpoint that
      `config.sample` names.

  Raises:
    ValueError: there is no such checkpoint, or it is of another model, or
      `config.sample` asks for what cannot be, as in `check`.
  """
  check(config)
  # Names and fields first: they are wrong more often, and cost nothing.
  unet = hub.config(config.model.unet, "unet")
  tokenizer = tokenize.load(config.model.tokenizer)
  mesh = sharding.current_mesh()
  vae = hub.load(config.model.vae, "autoencoder", mesh=mesh)
  text = hub.open(
    config.model.text, "clip_text", tokenize.ids(tokenizer), mesh=mesh
  )
  configs = {
    "unet": unet,
    "text": text.config,
    "vae": vae.config,
  }
  made = {
    name: kinds.structure(KINDS[name], part, dtype=config.train.dtype)
    for name, part in configs.items()
  }
  if params is None:
    trains_text = config.latent_diffusion.train_text
    if not trains_text and text.params is None:
      raise ValueError(
        f"model.text={config.model.text!r} has no weights; name a row of "
        "models/published.py or a folder, or set latent_diffusion.train_text"
      )
    trained = ("unet", "text") if trains_text else ("unet",)
    params = checkpoint.load(
      config.train.checkpoints,
      config.sample.part,
      {name: made[name][1] for name in trained},
      None if config.sample.step < 0 else config.sample.step,
    )
  design = Design(
    **{name: structure for name, (structure, _) in made.items()},
    scaling_factor=vae.config.scaling_factor,
    schedule=schedules.Schedule(**config.model.schedule),
    prediction=config.model.prediction,
  )
  params = {"vae": vae.params, "text": text.params, **params}
  return Model(design, params, configs, tokenizer)


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
    `(params, tokens, empty, xt, guidance, key) -> images`: tokens [B T],
    empty [T], xt [B H W C] standard normal, images [B H W 3] in [0, 1].

  Raises:
    ValueError: unknown sampler.
  """
  run = samplers.by_name(sampler)

  @jax.jit
  def sample(params, tokens, empty, xt, guidance, key):
    unet, text, vae = (
      tree.merge(structure, params[name])
      for name, structure in zip(KINDS, design, strict=False)
    )
    denoise = samplers.guided(
      lambda xt, t, context: unet(sharding.constrain(xt), t, context),
      text(tokens).hidden,
      text(jnp.broadcast_to(empty, tokens.shape)).hidden,
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
    x = vae.decode(z / design.scaling_factor)
    x = jnp.clip(x.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return sharding.gather(x)

  return sample


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
  size: int,
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
    size: pixels a side.
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
  factor = model.configs["vae"].factor
  if not prompts:
    raise ValueError("no prompts; give at least one")
  if size % factor:
    raise ValueError(f"size={size} does not divide by {factor}")
  run = compiled(model.design, sampler, steps, rescale)
  side, channels = size // factor, model.configs["vae"].latent_channels
  length = model.configs["text"].positions
  ids, _ = tokenize.encode(model.tokenizer, ["", *prompts], length)
  empty, ids = ids[0], ids[1:]
  key = jax.random.key(seed)
  result = []
  for start in range(0, len(prompts), batch_size):
    # The last batch is filled up, so that there is one compiled shape.
    rows = np.arange(start, start + batch_size)
    taken = np.minimum(rows, len(prompts) - 1)
    if xt is None:
      begin = noise(key, taken, (side, side, channels))
    else:
      begin = jnp.asarray(xt)[taken]
    key_batch = jax.random.fold_in(jax.random.key(seed + 1), start)
    images = run(
      model.params, ids[taken], empty, begin, jnp.float32(guidance), key_batch
    )
    done = min(batch_size, len(prompts) - start)
    result.append(np.asarray(images)[:done])
    progress(done)
  return np.concatenate(result)
