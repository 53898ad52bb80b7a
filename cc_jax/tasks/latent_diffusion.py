# SPDX-License-Identifier: Apache-2.0
"""Text to latent by diffusion: one loss for all families.

"High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, eq. 3, with latents that were encoded before, if not asked
otherwise (latent_source.py), and text that is encoded here: CLIP costs 8 % of a
step at 256 pixels, its states twenty times the storage of the latents. (T5's
states are stored: conditioning.py.) Where the denoiser learns a variance, as
DiT and PixArt-alpha do, the variational bound comes on top:
diffusion/variational.py.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
import ml_collections

from cc_jax.core import sharding, tree
from cc_jax.diffusion import schedule as schedules
from cc_jax.diffusion import variational
from cc_jax.models import families, kinds, layers
from cc_jax.tasks import conditioning, latent_source, starting, task


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
  reader = conditioning.make(config, family)
  found = families.open(
    family,
    names,
    reader.ids,
    train_text=options.train_text,
    stored=config.encode.text_states,
    dtype=train.dtype,
    mesh=sharding.current_mesh(),
  )
  vae = found.pop("vae")
  denoiser = found[row.denoiser].config
  check_channels(row.denoiser, denoiser, vae.config.latent_channels)
  source = latent_source.make(config, vae, denoiser, row.features)
  found |= source.networks
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

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    keys = jax.random.split(key, len(parts))
    return {
      name: tree.split(kinds.make(*part, rngs=layers.keys(key)))[1]
      for key, (name, part) in zip(keys, parts.items(), strict=True)
    }

  def loss(
    frozen: dict[str, Any],
    known: Any,
    params: dict[str, Any],
    batch: dict[str, Array],
    key: PRNGKeyArray,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    weights = {**frozen, **params}
    networks = {
      name: tree.merge(structure, weights[name])
      for name, structure in structures.items()
    }
    batch = source.read(networks, batch)
    keys = jax.random.split(key, 4)
    x0 = sample_latent(batch, keys[0]) * vae.config.scaling_factor
    if "token_mask" in batch:
      x0 = x0.reshape(*x0.shape[:2], -1, vae.config.latent_channels)
    dropped = jax.random.bernoulli(keys[1], options.drop_caption, (len(x0),))
    read = reader.read(known, batch)
    if not names.zero_empty and names.null_caption == "empty":
      read = reader.drop(known, read, dropped)
    with jax.named_scope("text"):
      conditions = row.conditions(
        networks, read, sizes(batch, vae.config.factor)
      )
    if names.zero_empty:
      conditions = families.zero(family, conditions, dropped)
    if names.null_caption == "buffer":
      null = networks[row.denoiser].drop(conditions["context"], dropped)
      conditions = {**conditions, "context": null}
    t = batch.get("timestep")
    if t is None:
      t = schedules.sample_t(keys[2], len(x0), schedule, options.stratified)
    eps = schedules.offset_noise(keys[3], x0.shape, options.offset_noise)
    places, mask = None, None
    if "token_mask" in batch:
      places = {name: batch[name] for name in ("positions", "token_mask")}
      mask = batch["token_mask"][..., None, None]
    predict = lambda xt: families.output(
      family, networks, xt, t, conditions, places
    )
    found = errors(predict, schedule, names.prediction, x0, eps, t, mask)
    weight = schedules.loss_weight(
      schedule, t, names.prediction, options.min_snr_gamma or None
    )
    if options.snr_loss:
      weight = variational.snr_weight(schedule, t, names.prediction)
    metrics = {name: jnp.mean(rows) for name, rows in found.items()}
    total = jnp.mean(weight * found["mse"])
    return total + metrics.get("vb", 0), metrics

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss, frozen, reader.known),
    features=(reader.feature, *source.features),
    transform=latent_source.chain(reader.transform, source.transform),
    weights={**source.weights, **reader.weights},
    parts=parts,
    bucketed=config.encode.buckets and not options.padded,
    start=functools.partial(starting.load, parts, config),
  )


def errors(
  predict: Any,
  schedule: schedules.Schedule,
  prediction: str,
  x0: Float[Array, "B *dims C"],
  eps: Float[Array, "B *dims C"],
  t: Int[Array, "B"],
  mask: Bool[Array, "B *dims2"] | None = None,
) -> dict[str, Float[Array, "B"]]:
  """What is wrong with a prediction, row by row.

  Args:
    predict: xt -> the network's output [B ... C], or [B ... 2 C] with a learned
      variance.
    schedule: of the noise.
    prediction: what the first C channels are.
    x0: scaled latents, as maps or as tokens.
    eps: their noise.
    t: its timesteps.
    mask: true where values count; None is everywhere.

  Returns:
    `mse`, the mean square, and where a variance is learned `vb`, the mean of
    the variational bound in bits.
  """
  xt = schedules.add_noise(schedule, x0, eps, t)
  output = predict(xt).astype(jnp.float32)
  guess, between = output[..., : x0.shape[-1]], output[..., x0.shape[-1] :]
  wanted = schedules.target(schedule, x0, eps, t, prediction)
  axes = tuple(range(1, x0.ndim))
  mean = lambda values: jnp.mean(
    values,
    axis=axes,
    where=None if mask is None else jnp.broadcast_to(mask, values.shape),
  )
  found = {"mse": mean(jnp.square(guess - wanted))}
  if between.shape[-1]:
    predicted = schedules.to_x0(schedule, guess, xt, t, prediction)
    bits = variational.bound(schedule, predicted, between, x0, xt, t)
    found["vb"] = mean(bits)
  return found


def check(options: ml_collections.ConfigDict) -> None:
  """Refuses numbers of `config.latent_diffusion` that mean nothing."""
  if not 0 <= options.drop_caption <= 1:
    raise ValueError(
      f"drop_caption={options.drop_caption}; expected a share from 0 to 1"
    )
  for name in ("offset_noise", "min_snr_gamma"):
    if options[name] < 0:
      raise ValueError(f"{name}={options[name]}; expected 0 (off) or more")
  if options.snr_loss and options.min_snr_gamma:
    raise ValueError("snr_loss and min_snr_gamma are both weights; set one")


def check_channels(name: str, denoiser: Any, channels: int) -> None:
  """Refuses a denoiser whose output is neither latents nor they and a variance.

  Raises:
    ValueError: it is not.
  """
  given = denoiser.out_channels or denoiser.in_channels
  if given not in (channels, 2 * channels):
    raise ValueError(
      f"model.{name} predicts {given} channels of latents that have "
      f"{channels}; set out_channels={channels}, or {2 * channels} to learn a "
      "variance too"
    )


def sample_latent(
  batch: Mapping[str, Array], key: PRNGKeyArray
) -> Float[Array, "B *dims C"]:
  """A latent from the mean and deviation that the encoder gave; unscaled.

  The mean itself where no deviation was kept (`encode.std`).
  """
  mean = batch["latent_mean"].astype(jnp.float32)
  if "latent_std" not in batch:
    return mean
  std = batch["latent_std"].astype(jnp.float32)
  return mean + std * jax.random.normal(key, mean.shape)


def sizes(batch: Mapping[str, Array], factor: int) -> Int[Array, "B 6"]:
  """What a family may read of an image's size, see `families.Family`.

  Zeros for the original where the family does not read it.
  """
  B = len(batch["latent_mean"])
  if "token_mask" in batch:
    target = batch["bucket"]
  else:
    map_ = jnp.array(batch["latent_mean"].shape[1:3])
    target = jnp.broadcast_to(map_ * factor, (B, 2))
  none = jnp.zeros((B, 2), jnp.int32)
  parts = [batch.get("size", none), batch.get("crop", none), target]
  return jnp.concatenate(parts, axis=-1)
