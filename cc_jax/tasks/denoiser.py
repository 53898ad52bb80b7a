# SPDX-License-Identifier: Apache-2.0
"""The U-Net alone on made-up arrays: what a benchmark trains where no data is.

It learns a target from what it is given, so that another library can be given
the same: nothing is random in the loss.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import ml_collections
import numpy as np

from cc_jax.core import tree
from cc_jax.models import hub, kinds, layers
from cc_jax.tasks import task


def make(config: ml_collections.ConfigDict) -> task.Task:
  """The U-Net of `config.model` with random weights.

  Raises:
    ValueError: there is none.
  """
  names, train = config.model, config.train
  if names.transformer:
    raise ValueError(
      "without data only U-Nets are measured; encode some images for "
      "model.transformer"
    )
  made = hub.config(names.unet, "unet")
  structure, _ = kinds.structure(
    "unet", made, dtype=train.dtype, remat=train.remat
  )

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    module = kinds.make("unet", made, rngs=layers.keys(key))
    return {"unet": tree.split(module)[1]}

  def loss(
    params: dict[str, Any], batch: dict[str, Array], key: PRNGKeyArray
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    del key
    given = {name: value for name, value in batch.items() if name != "target"}
    output = tree.merge(structure, params["unet"])(**given)
    return jnp.mean(jnp.square(output - batch["target"])), {}

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss),
    features=tuple(batch(config, 1)),
    transform=None,
    weights={},
    parts={"unet": ("unet", made)},
  )


def batch(
  config: ml_collections.ConfigDict, size: int
) -> dict[str, np.ndarray]:
  """So many rows of random arrays, of the shapes that training has."""
  unet = hub.config(config.model.unet, "unet")
  vae = hub.config(config.model.vae, "autoencoder")
  rng = np.random.default_rng(config.seed)
  normal = lambda *shape: rng.standard_normal((size, *shape), np.float32)
  side = config.encode.size // vae.factor
  made = {
    "xt": normal(side, side, unet.in_channels),
    "t": rng.integers(0, 1000, size, np.int32),
    "context": normal(config.encode.tokens, unet.source_width),
    "target": normal(side, side, unet.out_channels),
  }
  if unet.pooled_conditions:
    made["pooled"] = normal(unet.pooled_width)
    made["time_ids"] = np.full((size, 6), config.encode.size, np.float32)
  return made
