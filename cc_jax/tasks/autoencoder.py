# SPDX-License-Identifier: Apache-2.0
"""Image to latent and back: the bottleneck of a KL autoencoder.

"High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, §3.1 and appendix G: a latent is drawn from a Gaussian that
is held near a standard normal. The rest is in tasks/reconstruction.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import ml_collections

from cc_jax.models import hub
from cc_jax.tasks import reconstruction, task


def make(config: ml_collections.ConfigDict) -> task.Task:
  """The autoencoder of `config.model.vae`, trained on whole images.

  Raises:
    ValueError: a network that does not exist, or what `reconstruction.make`
      refuses.
  """
  weight = config.autoencoder.kl_weight

  def bottleneck(
    vae: Any, x: Float[Array, "B H W C"], key: PRNGKeyArray
  ) -> tuple[Array, Array, dict[str, Any]]:
    mean, std = (a.astype(jnp.float32) for a in vae.encode(x))
    z = mean + std * jax.random.normal(key, mean.shape)
    # Summed over the latent and divided over the pixels, so that the parts
    # weigh as in the original, which sums all of them over the pixels.
    divergence = jnp.sum(kl(mean, std)) / x.size
    return z, weight * divergence, {"kl": divergence, "latent_std": jnp.std(z)}

  network = hub.config(config.model.vae, "autoencoder")
  return reconstruction.make(config, "vae", "autoencoder", network, bottleneck)


def kl(
  mean: Float[Array, "B *dims"], std: Float[Array, "B *dims"]
) -> Float[Array, "B *dims"]:
  """Divergence of N(mean, std^2) from N(0, 1), element by element, in nats.

  "Auto-Encoding Variational Bayes", arXiv 1312.6114, appendix B.
  """
  return 0.5 * (mean**2 + std**2 - 1) - jnp.log(std)
