# SPDX-License-Identifier: Apache-2.0
"""Image to codes and back: the bottleneck of a VQGAN.

"Taming Transformers for High-Resolution Image Synthesis", arXiv 2012.09841,
eq. 4; "Neural Discrete Representation Learning", arXiv 1711.00937, §3.2. The
rest is in tasks/reconstruction.py.

The paper weighs the commitment, |z - sg(e)|^2, by beta; the code that the
published weights were trained by, taming's and HFAiLab's alike, weighs the
other term, |sg(z) - e|^2. `vqgan.beta_on` says which.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
import ml_collections

from cc_jax.models import hub
from cc_jax.tasks import reconstruction, task

TERMS = ("codebook", "commitment")
# Below so many uses an entry stays where it is; 0 / 0 else.
FEW = 1e-5


def make(config: ml_collections.ConfigDict) -> task.Task:
  """The VQGAN of `config.model.vqgan`, trained on whole images.

  Raises:
    ValueError: a network that does not exist, options that cannot be, or what
      `reconstruction.make` refuses.
  """
  options = config.vqgan
  check(options, config.train.accumulate)
  network = hub.config(config.model.vqgan, "vqgan")
  kept = bool(options.ema_decay or options.restart)

  def bottleneck(
    vqgan: Any, x: Float[Array, "B H W C"], key: PRNGKeyArray
  ) -> tuple[Array, Array, dict[str, Any]]:
    z = vqgan.encode(x)
    entries, codes = vqgan.quantise(z)
    loss = codebook_loss(z, entries, options)
    counts = uses(codes, network.codebook_size)
    metrics = {"codebook": loss, **usage(counts)}
    if kept:
      rows = z.reshape(-1, z.shape[-1])
      chosen = jnp.zeros((network.codebook_size, z.shape[-1]))
      drawn = jax.random.randint(key, counts.shape, 0, len(rows))
      metrics["found"] = jax.lax.stop_gradient(
        {
          "counts": counts,
          "sums": chosen.at[codes.reshape(-1)].add(rows),
          "drawn": rows[drawn],
        }
      )
    # The gradient of the decoder's input is the encoder's: §3.1.
    straight = z + jax.lax.stop_gradient(entries - z)
    return straight, options.codebook_weight * loss, metrics

  def start() -> dict[str, Any]:
    # As if each entry had been chosen once.
    return {"counts": jnp.ones(network.codebook_size)}

  def after(before, params, metrics):
    metrics = dict(metrics)
    found, counted = metrics.pop("found"), before["kept"]["counts"]
    decay = options.ema_decay or 0.99
    counts = decay * counted + (1 - decay) * found["counts"]
    entries = params["vqgan"]["codebook"]["embedding"]
    if options.ema_decay:
      # Eq. 7 and 8 of arXiv 1711.00937; m of eq. 7 is an entry times its N.
      old = before["vqgan"]["codebook"]["embedding"]
      sums = decay * counted[:, None] * old + (1 - decay) * found["sums"]
      mean = sums / jnp.maximum(counts, FEW)[:, None]
      entries = jnp.where(counts[:, None] > FEW, mean, old)
    if options.restart:
      dead = counts < options.restart
      metrics["restarted"] = jnp.mean(dead)
      entries = jnp.where(dead[:, None], found["drawn"], entries)
      counts = jnp.where(dead, options.restart, counts)
    vqgan = {**params["vqgan"], "codebook": {"embedding": entries}}
    more = {**params["kept"], "counts": counts}
    return {**params, "vqgan": vqgan, "kept": more}, metrics

  return reconstruction.make(
    config,
    "vqgan",
    "vqgan",
    network,
    bottleneck,
    **(dict(start=start, after=after) if kept else {}),
  )


def check(options: ml_collections.ConfigDict, accumulate: int) -> None:
  """Refuses what `config.vqgan` cannot ask for."""
  if options.beta_on not in TERMS:
    raise ValueError(
      f"vqgan.beta_on={options.beta_on!r}; expected {' or '.join(TERMS)}"
    )
  if not 0 <= options.ema_decay < 1:
    raise ValueError(
      f"vqgan.ema_decay={options.ema_decay}; expected 0 (off) to below 1"
    )
  for field in ("beta", "codebook_weight", "restart"):
    if options[field] < 0:
      raise ValueError(f"vqgan.{field}={options[field]}; expected 0 or more")
  if options.restart and accumulate > 1:
    raise ValueError(
      f"vqgan.restart={options.restart} needs train.accumulate=1: what entries "
      "begin anew with would be a mean over micro-batches"
    )


def codebook_loss(
  z: Float[Array, "B H W Z"],
  entries: Float[Array, "B H W Z"],
  options: ml_collections.ConfigDict,
) -> Float[Array, ""]:
  """Both terms of eq. 4, as means over the batch, places and channels.

  Where entries are averages (arXiv 1711.00937, appendix A.1) only the
  commitment is left, weighed by beta.
  """
  fixed = jax.lax.stop_gradient
  commitment = jnp.mean(jnp.square(z - fixed(entries)))
  if options.ema_decay:
    return options.beta * commitment
  codebook = jnp.mean(jnp.square(fixed(z) - entries))
  if options.beta_on == "codebook":
    return commitment + options.beta * codebook
  return codebook + options.beta * commitment


def uses(codes: Int[Array, "B H W"], size: int) -> Float[Array, "{size}"]:
  """How often each code was chosen."""
  return jnp.zeros(size).at[codes.reshape(-1)].add(1)


def usage(counts: Float[Array, "V"]) -> dict[str, Float[Array, ""]]:
  """Of one batch: the share of codes in use, and exp(entropy) of their uses."""
  p = counts / jnp.sum(counts)
  entropy = -jnp.sum(jax.scipy.special.xlogy(p, p))
  return {"used": jnp.mean(counts > 0), "perplexity": jnp.exp(entropy)}
