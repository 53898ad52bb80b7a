# SPDX-License-Identifier: Apache-2.0
"""Text to latent by diffusion: the loss of Stable Diffusion.

"High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, eq. 3, with latents that were encoded before and text that is
encoded here: its encoder costs 8 % of a step at 256 pixels, its states twenty
times the storage of the latents.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
import ml_collections

from cc_jax.core import sharding, tree
from cc_jax.data import latents, tokenize
from cc_jax.diffusion import schedule as schedules
from cc_jax.models import families, kinds, layers
from cc_jax.tasks import task


def make(config: ml_collections.ConfigDict) -> task.Task:
  """The denoiser and, with `train_text`, the text towers; else frozen.

  Raises:
    ValueError: a network, schedule or objective that does not exist.
  """
  options, names, train = config.latent_diffusion, config.model, config.train
  schedule = schedules.Schedule(**names.schedule)
  schedules.check_prediction(schedule, names.prediction)
  check(options)
  family = families.find(names)
  families.check_zeros(family, names.zero_empty)
  row = families.FAMILIES[family]
  tokenizers = {
    name: tokenize.load(one)
    for name, one in families.tokenizers(family, names).items()
  }
  tokenizer = tokenizers["text"]
  found = families.open(
    family,
    names,
    {name: tokenize.ids(one) for name, one in tokenizers.items()},
    train_text=options.train_text,
    dtype=train.dtype,
    mesh=sharding.current_mesh(),
  )
  vae = found.pop("vae")
  channels = found[row.denoiser].config.out_channels
  if channels not in (None, vae.config.latent_channels):
    raise ValueError(
      f"model.{row.denoiser} predicts {channels} channels of latents that have "
      f"{vae.config.latent_channels}; a learned variance is not trained here, "
      f"set out_channels={vae.config.latent_channels}"
    )
  structures = {
    name: kinds.structure(
      row.kinds[name],
      loaded.config,
      dtype=train.dtype,
      **({"remat": train.remat} if name == row.denoiser else {}),
    )[0]
    for name, loaded in found.items()
  }
  trained = (row.denoiser, *(row.text if options.train_text else ()))
  parts = {name: (row.kinds[name], found[name].config) for name in trained}
  frozen = {
    name: loaded.params for name, loaded in found.items() if name not in trained
  }
  empty = tokenize.encode(tokenizer, [""], config.encode.tokens)[0][0]

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    keys = jax.random.split(key, len(parts))
    return {
      name: tree.split(kinds.make(*part, rngs=layers.keys(key)))[1]
      for key, (name, part) in zip(keys, parts.items(), strict=True)
    }

  def loss(
    frozen: dict[str, Any],
    params: dict[str, Any],
    batch: dict[str, Array],
    key: PRNGKeyArray,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    weights = {**frozen, **params}
    networks = {
      name: tree.merge(structure, weights[name])
      for name, structure in structures.items()
    }
    keys = jax.random.split(key, 4)
    x0 = sample_latent(batch, keys[0]) * vae.config.scaling_factor
    dropped = jax.random.bernoulli(keys[1], options.drop_caption, (len(x0),))
    tokens = batch["tokens"]
    if not names.zero_empty:
      tokens = drop(tokens, empty, dropped)
    with jax.named_scope("text"):
      conditions = row.conditions(
        networks,
        captions(tokens, tokenizers),
        sizes(batch, vae.config.factor),
      )
    if names.zero_empty:
      conditions = families.zero(family, conditions, dropped)
    t = schedules.sample_t(keys[2], len(x0), schedule, options.stratified)
    eps = schedules.offset_noise(keys[3], x0.shape, options.offset_noise)
    xt = schedules.add_noise(schedule, x0, eps, t)
    output = families.predict(family, networks, xt, t, conditions)
    wanted = schedules.target(schedule, x0, eps, t, names.prediction)
    errors = jnp.mean(
      jnp.square(output.astype(jnp.float32) - wanted), axis=(1, 2, 3)
    )
    weight = schedules.loss_weight(
      schedule, t, names.prediction, options.min_snr_gamma or None
    )
    return jnp.mean(weight * errors), {"mse": jnp.mean(errors)}

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss, frozen),
    features=(
      "latent_mean",
      *(("latent_std",) if config.encode.std else ()),
      "tokens",
      *row.features,
      *(("bucket",) if config.encode.buckets else ()),
    ),
    transform=latents.shaped if config.encode.buckets else None,
    weights={
      "latent_mean": vae.hash,
      "latent_std": vae.hash,
      "tokens": tokenize.digest(tokenizer),
    },
    parts=parts,
  )


def check(options: ml_collections.ConfigDict) -> None:
  """Refuses numbers of `config.latent_diffusion` that mean nothing."""
  if not 0 <= options.drop_caption <= 1:
    raise ValueError(
      f"drop_caption={options.drop_caption}; expected a share from 0 to 1"
    )
  for name in ("offset_noise", "min_snr_gamma"):
    if options[name] < 0:
      raise ValueError(f"{name}={options[name]}; expected 0 (off) or more")


def sample_latent(
  batch: dict[str, Array], key: PRNGKeyArray
) -> Float[Array, "B H W C"]:
  """A latent from the mean and deviation that the encoder gave; unscaled.

  The mean itself where no deviation was kept (`encode.std`).
  """
  mean = batch["latent_mean"].astype(jnp.float32)
  if "latent_std" not in batch:
    return mean
  std = batch["latent_std"].astype(jnp.float32)
  return mean + std * jax.random.normal(key, mean.shape)


def captions(
  tokens: Int[Array, "B T"], tokenizers: Mapping[str, Any]
) -> list[families.Captions]:
  """One array of ids as each text tower reads it, with its own padding."""
  eos = tokenizers["text"].eos_token_id
  ends = tokens == eos
  mask = ends.cumsum(axis=-1) <= ends
  return [
    families.Captions(tokenize.repad(tokens, eos, one.pad_token_id), mask)
    for one in tokenizers.values()
  ]


def sizes(batch: dict[str, Array], factor: int) -> Int[Array, "B 6"]:
  """What a family may read of an image's size, see `families.Family`.

  Zeros for the original where the family does not read it.
  """
  B, height, width, _ = batch["latent_mean"].shape
  target = jnp.broadcast_to(jnp.array([height, width]) * factor, (B, 2))
  none = jnp.zeros((B, 2), jnp.int32)
  parts = [batch.get("size", none), batch.get("crop", none), target]
  return jnp.concatenate(parts, axis=-1)


def drop(
  tokens: Int[Array, "B T"],
  empty: Int[Any, "T"],
  dropped: Bool[Array, "B"],
) -> Int[Array, "B T"]:
  """Puts the empty caption in place of some captions.

  So that one network learns both sides of guidance (arXiv 2207.12598, §3.2).
  """
  return jnp.where(dropped[:, None], jnp.asarray(empty), tokens)
