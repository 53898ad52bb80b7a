# SPDX-License-Identifier: Apache-2.0
"""Images through a bottleneck and back: what all autoencoders are trained by.

"Taming Transformers for High-Resolution Image Synthesis", arXiv 2012.09841,
§3.1, and "High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752, appendix G: absolute error, LPIPS, and a discriminator of
patches with a hinge loss, which joins later. What an autoencoder puts between
encoder and decoder is its own task's: tasks/autoencoder.py, tasks/vqgan.py.

Both players are trained in one step, by one loss: the decoder's part of it
does not reach the discriminator's weights, nor the other way round. (taming
updates the decoder first and judges its images of after that.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
import ml_collections

from cc_jax.core import sharding, tree
from cc_jax.data import images
from cc_jax.models import discriminator, hub, kinds, layers, lpips
from cc_jax.tasks import task

# (network, x, key) -> what is decoded, its own loss, metrics.
Bottleneck = Callable[..., tuple[Array, Array, dict[str, Any]]]

# Of the adaptive weight, as published.
LAST = "decoder.conv_out.kernel"
EPS, LARGEST = 1e-4, 1e4


def make(
  config: ml_collections.ConfigDict,
  name: str,
  kind: str,
  network: Any,
  bottleneck: Bottleneck,
  start: Callable[[], dict[str, Any]] = dict,
  after: Callable[..., tuple[Any, dict[str, Any]]] | None = None,
) -> task.Task:
  """The task of an autoencoder, on whole images.

  Args:
    config: of which `autoencoder` and `train` are read here.
    name: of the network's group of params.
    kind: of the network, in models/kinds.py.
    network: its config.
    bottleneck: what is between its encoder and its decoder.
    start: what training keeps besides weights, at its start.
    after: of `task.Task`, for what `start` made.

  Raises:
    ValueError: a size that the network cannot halve or the discriminator
      cannot judge, or LPIPS without weights.
  """
  options = config.autoencoder
  size, dtype = options.size, config.train.dtype
  check(options)
  if size % network.factor:
    raise ValueError(
      f"autoencoder.size={size} does not divide by {network.factor}, the "
      f"{kind}'s reduction"
    )
  structure, _ = kinds.structure(kind, network, dtype=dtype)
  parts = {name: (kind, network)}
  frozen, distance, judge = {}, None, None
  if options.lpips_weight:
    loaded = load_lpips(options)
    distance, _ = kinds.structure("lpips", loaded.config, dtype)
    frozen["lpips"] = loaded.params
  if options.gan_weight:
    patches = hub.config(config.model.discriminator, "discriminator")
    discriminator.check_size(patches, size, size)
    judge, _ = kinds.structure("discriminator", patches, dtype)
    parts["discriminator"] = "discriminator", patches

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    keys = dict(zip(parts, (key, jax.random.fold_in(key, 1)), strict=False))
    params = {
      name: tree.split(kinds.make(*part, rngs=layers.keys(keys[name])))[1]
      for name, part in parts.items()
    }
    kept = start()
    if judge is not None:
      kept = {**kept, "steps": jnp.zeros(())}
    return {**params, "kept": kept} if kept else params

  def loss(
    frozen: dict[str, Any],
    params: dict[str, Any],
    batch: dict[str, Array],
    key: PRNGKeyArray,
  ) -> tuple[Float[Array, ""], dict[str, Any]]:
    x = batch["image"].astype(jnp.float32) / 127.5 - 1
    z, own, metrics = bottleneck(tree.merge(structure, params[name]), x, key)

    def decode(kernel):
      weights = {**tree.flatten(params[name]), LAST: kernel}
      module = tree.merge(structure, tree.unflatten(weights))
      return module.decode(z).astype(jnp.float32)

    def compare(decoded):
      error = jnp.mean(jnp.abs(decoded - x))
      if distance is None:
        return error, {"l1": error}
      with jax.named_scope("lpips"):
        network = tree.merge(distance, frozen["lpips"])
        far = jnp.mean(network(decoded, x))
      return error + options.lpips_weight * far, {"l1": error, "lpips": far}

    kernel = tree.flatten(params[name])[LAST]
    if judge is None:
      total, more = compare(decode(kernel))
      return total + own, {**metrics, **more}

    def persuade(decoded):
      fixed = jax.lax.stop_gradient(params["discriminator"])
      return -jnp.mean(tree.merge(judge, fixed)(decoded))

    decoded, pull = jax.vjp(decode, kernel)
    made = jax.lax.stop_gradient(decoded)
    (total, more), by_error = jax.value_and_grad(compare, has_aux=True)(made)
    doubt, by_doubt = jax.value_and_grad(persuade)(made)
    there = params["kept"]["steps"] >= options.gan_start
    ratio = jax.lax.stop_gradient(balance(pull(by_error)[0], pull(by_doubt)[0]))
    weight = jnp.where(there, options.gan_weight * ratio, 0)
    gradient = by_error + weight * by_doubt
    total = with_gradient(total + weight * doubt, decoded, gradient)
    with jax.named_scope("judge"):
      network = tree.merge(judge, params["discriminator"])
      real, fake = network(x), network(made)
      judged = jnp.where(there, hinge(real, fake), 0)
    metrics |= more | {
      "gan": doubt,
      "gan_ratio": ratio,
      "discriminator": judged,
      "logits_real": jnp.mean(real),
      "logits_made": jnp.mean(fake),
    }
    return total + own + judged, metrics

  def advance(before, params, metrics):
    if after is not None:
      params, metrics = after(before, params, metrics)
    if judge is not None:
      steps = before["kept"]["steps"] + 1
      params = {**params, "kept": {**params["kept"], "steps": steps}}
    return params, metrics

  def transform(record: dict[str, Any]) -> dict[str, Any]:
    return {"image": images.decode_cover(record["image"], size, size).image}

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss, frozen),
    features=("image",),
    transform=transform,
    weights={},
    parts=parts,
    after=advance if judge is not None or after is not None else None,
  )


def balance(
  by_error: Float[Array, "..."], by_doubt: Float[Array, "..."]
) -> Float[Array, ""]:
  """How much the discriminator counts beside the error: eq. 7 of VQGAN.

  Args:
    by_error: gradient of the error by the last kernel of the decoder.
    by_doubt: the same of what the discriminator says.
  """
  ratio = jnp.linalg.norm(by_error) / (jnp.linalg.norm(by_doubt) + EPS)
  return jnp.clip(ratio, 0, LARGEST)


def hinge(
  real: Float[Array, "B H W 1"], made: Float[Array, "B H W 1"]
) -> Float[Array, ""]:
  """The discriminator's loss: "Geometric GAN", arXiv 1705.02894, §4."""
  miss = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made))
  return miss / 2


def with_gradient(
  value: Float[Array, ""], x: Float[Array, "..."], gradient: Float[Array, "..."]
) -> Float[Array, ""]:
  """`value`, with a gradient by x that is known: it is not computed twice."""
  fixed = jax.lax.stop_gradient
  return fixed(value) + jnp.sum((x - fixed(x)) * fixed(gradient))


def check(options: ml_collections.ConfigDict) -> None:
  """Refuses weights of `config.autoencoder` below 0."""
  for field in ("kl_weight", "lpips_weight", "gan_weight", "gan_start"):
    if options[field] < 0:
      raise ValueError(
        f"autoencoder.{field}={options[field]}; expected 0 or more"
      )


def load_lpips(options: ml_collections.ConfigDict) -> hub.Loaded:
  """The network and weights of `options.lpips`.

  Raises:
    ValueError: none to read, or images that are too small.
  """
  if not options.lpips:
    files = " and ".join(lpips.PICKLES)
    raise ValueError(
      f"autoencoder.lpips_weight={options.lpips_weight} needs weights; set "
      f"autoencoder.lpips to a folder with {files} (from where is in "
      "models/lpips.py)"
    )
  lpips.check_size(options.size, options.size)
  return hub.load(options.lpips, "lpips", mesh=sharding.current_mesh())
