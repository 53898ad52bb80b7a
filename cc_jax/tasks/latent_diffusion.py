# SPDX-License-Identifier: Apache-2.0
"""Text to latent by diffusion: the loss of Stable Diffusion.

"High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, eq. 3, with latents that were encoded before and text that is
encoded here: its encoder costs 8 % of a step at 256 pixels, its states twenty
times the storage of the latents.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
import ml_collections

from cc_jax.core import sharding, tree
from cc_jax.data import tokenize
from cc_jax.diffusion import schedule as schedules
from cc_jax.models import hub, kinds, layers
from cc_jax.tasks import task


def make(config: ml_collections.ConfigDict) -> task.Task:
  """U-Net and, with `train_text`, the text tower; else that is frozen.

  Raises:
    ValueError: a network, schedule or objective that does not exist.
  """
  options, train = config.latent_diffusion, config.train
  schedule = schedules.Schedule(**config.model.schedule)
  schedules.check_prediction(schedule, config.model.prediction)
  check(options)
  unet_config = hub.config(config.model.unet, "unet")
  tokenizer = tokenize.load(config.model.tokenizer)
  vae = hub.load(config.model.vae, "autoencoder")
  text = hub.open(
    config.model.text,
    "clip_text",
    tokenize.ids(tokenizer),
    dtype=train.dtype,
    mesh=sharding.current_mesh(),
  )
  unet, _ = kinds.structure(
    "unet", unet_config, dtype=train.dtype, remat=train.remat
  )
  text_module, _ = kinds.structure("clip_text", text.config, dtype=train.dtype)
  empty = tokenize.encode(tokenizer, [""], config.encode.tokens)[0][0]
  frozen = {}
  if not options.train_text:
    if text.params is None:
      raise ValueError(
        f"model.text={config.model.text!r} has no weights; name a row of "
        "models/published.py or a folder, or set latent_diffusion.train_text"
      )
    frozen["text"] = text.params

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    key_unet, key_text = jax.random.split(key)
    make_unet = kinds.make("unet", unet_config, rngs=layers.keys(key_unet))
    params = {"unet": tree.split(make_unet)[1]}
    if options.train_text:
      made = kinds.make("clip_text", text.config, rngs=layers.keys(key_text))
      params["text"] = tree.split(made)[1]
    return params

  def loss(
    frozen: dict[str, Any],
    params: dict[str, Any],
    batch: dict[str, Array],
    key: PRNGKeyArray,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    weights = {**frozen, **params}
    keys = jax.random.split(key, 4)
    x0 = sample_latent(batch, keys[0]) * vae.config.scaling_factor
    tokens = drop(batch["tokens"], empty, options.drop_caption, keys[1])
    with jax.named_scope("text"):
      context = tree.merge(text_module, weights["text"])(tokens).hidden
    t = schedules.sample_t(keys[2], len(x0), schedule, options.stratified)
    eps = schedules.offset_noise(keys[3], x0.shape, options.offset_noise)
    xt = schedules.add_noise(schedule, x0, eps, t)
    output = tree.merge(unet, weights["unet"])(xt, t, context)
    wanted = schedules.target(schedule, x0, eps, t, config.model.prediction)
    errors = jnp.mean(
      jnp.square(output.astype(jnp.float32) - wanted), axis=(1, 2, 3)
    )
    weight = schedules.loss_weight(
      schedule, t, config.model.prediction, options.min_snr_gamma or None
    )
    return jnp.mean(weight * errors), {"mse": jnp.mean(errors)}

  parts = {"unet": ("unet", unet_config)}
  if options.train_text:
    parts["text"] = ("clip_text", text.config)
  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss, frozen),
    features=("latent_mean", "latent_std", "tokens"),
    transform=None,
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
  """A latent from the mean and deviation that the encoder gave; unscaled."""
  mean = batch["latent_mean"].astype(jnp.float32)
  std = batch["latent_std"].astype(jnp.float32)
  return mean + std * jax.random.normal(key, mean.shape)


def drop(
  tokens: Int[Array, "B T"],
  empty: Int[Any, "T"],
  rate: float,
  key: PRNGKeyArray,
) -> Int[Array, "B T"]:
  """Puts the empty caption in place of a share of captions.

  So that one network learns both sides of guidance (arXiv 2207.12598, §3.2).
  """
  dropped = jax.random.bernoulli(key, rate, (len(tokens), 1))
  return jnp.where(dropped, jnp.asarray(empty), tokens)
