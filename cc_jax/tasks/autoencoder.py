# SPDX-License-Identifier: Apache-2.0
"""Image to latent and back: the loss of a KL autoencoder.

"High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, §3.1 and appendix G, without its discriminator: absolute
error, a small KL divergence to a standard normal, and LPIPS if asked for.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import ml_collections

from cc_jax.core import sharding, tree
from cc_jax.data import images
from cc_jax.models import hub, kinds, layers, lpips
from cc_jax.tasks import task


def make(config: ml_collections.ConfigDict) -> task.Task:
  """The autoencoder of `config.model.vae`, trained on whole images.

  Raises:
    ValueError: a network that does not exist, a size that it cannot halve, or
      LPIPS without weights.
  """
  options = config.autoencoder
  vae_config = hub.config(config.model.vae, "autoencoder")
  if options.size % vae_config.factor:
    raise ValueError(
      f"autoencoder.size={options.size} does not divide by "
      f"{vae_config.factor}, the autoencoder's reduction"
    )
  vae, _ = kinds.structure("autoencoder", vae_config, dtype=config.train.dtype)
  frozen, distance = {}, None
  if options.lpips_weight:
    loaded = load_lpips(options)
    distance, _ = kinds.structure("lpips", loaded.config, config.train.dtype)
    frozen["lpips"] = loaded.params

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    made = kinds.make("autoencoder", vae_config, rngs=layers.keys(key))
    return {"vae": tree.split(made)[1]}

  def loss(
    frozen: dict[str, Any],
    params: dict[str, Any],
    batch: dict[str, Array],
    key: PRNGKeyArray,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    x = batch["image"].astype(jnp.float32) / 127.5 - 1
    module = tree.merge(vae, params["vae"])
    mean, std = (a.astype(jnp.float32) for a in module.encode(x))
    z = mean + std * jax.random.normal(key, mean.shape)
    decoded = module.decode(z).astype(jnp.float32)
    error = jnp.mean(jnp.abs(decoded - x))
    # Summed over the latent and divided over the pixels, so that the parts
    # weigh as in the original, which sums all of them over the pixels.
    divergence = jnp.sum(kl(mean, std)) / x.size
    metrics = {"l1": error, "kl": divergence, "latent_std": jnp.std(z)}
    total = error + options.kl_weight * divergence
    if distance is not None:
      with jax.named_scope("lpips"):
        network = tree.merge(distance, frozen["lpips"])
        metrics["lpips"] = jnp.mean(network(decoded, x))
      total += options.lpips_weight * metrics["lpips"]
    return total, metrics

  def transform(record: dict[str, Any]) -> dict[str, Any]:
    size = options.size
    return {"image": images.decode_cover(record["image"], size, size).image}

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss, frozen),
    features=("image",),
    transform=transform,
    weights={},
    parts={"vae": ("autoencoder", vae_config)},
  )


def load_lpips(options: ml_collections.ConfigDict) -> hub.Loaded:
  """The network and weights of `options.lpips`.

  Raises:
    ValueError: a negative weight, none to read, or images that are too small.
  """
  if options.lpips_weight < 0:
    raise ValueError(
      f"autoencoder.lpips_weight={options.lpips_weight}; expected 0 or more"
    )
  if not options.lpips:
    files = " and ".join(lpips.PICKLES)
    raise ValueError(
      f"autoencoder.lpips_weight={options.lpips_weight} needs weights; set "
      f"autoencoder.lpips to a folder with {files} (from where is in "
      "models/lpips.py)"
    )
  lpips.check_size(options.size, options.size)
  return hub.load(options.lpips, "lpips", mesh=sharding.current_mesh())


def kl(
  mean: Float[Array, "B *dims"], std: Float[Array, "B *dims"]
) -> Float[Array, "B *dims"]:
  """Divergence of N(mean, std^2) from N(0, 1), element by element, in nats.

  "Auto-Encoding Variational Bayes", arXiv 1312.6114, appendix B.
  """
  return 0.5 * (mean**2 + std**2 - 1) - jnp.log(std)
