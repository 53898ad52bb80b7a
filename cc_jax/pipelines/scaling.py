# SPDX-License-Identifier: Apache-2.0
"""The factor by which an autoencoder's latents are scaled for diffusion."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cc_jax.core import tree
from cc_jax.data import images
from cc_jax.models import hub, kinds


def scaling_factor(
  vae: hub.Loaded, pictures: Sequence[bytes], size: int
) -> float:
  """One over the standard deviation of the latents of some images.

  Times which they have the unit variance that a noise schedule is made for
  (arXiv 2112.10752, appendix G).
  """
  structure, _ = kinds.structure("autoencoder", vae.config, dtype="float32")
  encode = jax.jit(lambda params, x: tree.merge(structure, params).encode(x))
  pixels = np.stack(
    [images.decode_cover(picture, size, size).image for picture in pictures]
  )
  # With the deviation of each latent, since it is sampled in training.
  mean, std = encode(vae.params, pixels.astype(np.float32) / 127.5 - 1)
  return float(1 / jnp.sqrt(jnp.var(mean) + jnp.mean(std**2)))
