# SPDX-License-Identifier: Apache-2.0
"""Image to latent and back: the loss of a KL autoencoder.

"High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, §3.1 and appendix G, without its discriminator: absolute
error, a small KL divergence to a standard normal, and LPIPS if asked for.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import ml_collections

from cc_jax.core import tree
from cc_jax.data import images
from cc_jax.models import hub
from cc_jax.tasks import task


def make(config: ml_collections.ConfigDict) -> task.Task:
  """The autoencoder of `config.model.vae`, trained on whole images."""
  options = config.autoencoder
  vae_config = hub.config(config.model.vae, "autoencoder")
  vae, _ = hub.structure("autoencoder", vae_config, dtype=config.train.dtype)

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    made = hub.make("autoencoder", vae_config, rngs=nnx.Rngs(key))
    return {"vae": tree.split(made)[1]}

  def loss(
    params: dict[str, Any], batch: dict[str, Array], key: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    x = batch["image"].astype(jnp.float32) / 127.5 - 1
    module = tree.merge(vae, params["vae"])
    mean, std = (a.astype(jnp.float32) for a in module.encode(x))
    z = mean + std * jax.random.normal(key, mean.shape)
    error = jnp.mean(jnp.abs(module.decode(z).astype(jnp.float32) - x))
    # Summed over the latent and divided over the pixels, so that the two
    # parts weigh as in the original, which sums both.
    divergence = jnp.sum(kl(mean, std)) / x.size
    metrics = {"l1": error, "kl": divergence, "latent_std": jnp.std(z)}
    return error + options.kl_weight * divergence, metrics

  def transform(record: dict[str, Any]) -> dict[str, Any]:
    size = options.size
    return {"image": images.decode_cover(record["image"], size, size).image}

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss),
    features=("image",),
    transform=transform,
    weights={},
    parts={"vae": ("autoencoder", vae_config)},
  )


def kl(
  mean: Float[Array, "B *dims"], std: Float[Array, "B *dims"]
) -> Float[Array, "B *dims"]:
  """Divergence of N(mean, std^2) from N(0, 1), element by element, in nats.

  "Auto-Encoding Variational Bayes", arXiv 1312.6114, appendix B.
  """
  return 0.5 * (mean**2 + std**2 - 1) - jnp.log(std)
