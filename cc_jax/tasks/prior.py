# SPDX-License-Identifier: Apache-2.0
"""CLIP's embedding of an image to its codes: CLIP-GEN's prior, without text.

"CLIP-GEN: Language-Free Training of a Text-to-Image Generator with CLIP",
arXiv 2203.00386: each code's cross-entropy by those before it and the image's
embedding; beside it, if asked for, how far the embedding of the decoded image
is from the one that was given. Codes and embeddings were stored by
`cc-jax encode`; nothing else of a record is read, and no caption is among what
that stage stores for this task.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
import ml_collections
import optax

from cc_jax.core import sharding, tree
from cc_jax.models import (
  clip_dual,
  clip_vision,
  families,
  hub,
  kinds,
  layers,
)
from cc_jax.tasks import task

FEATURES = ("codes", "clip_image")


def make(config: ml_collections.ConfigDict) -> task.Task:
  """The prior of `config.model.prior`, for the codes of `config.model.vqgan`.

  Raises:
    ValueError: a network that does not exist or does not fit the others, or
      an option that cannot be.
  """
  options, names, dtype = config.prior, config.model, config.train.dtype
  check(options)
  vqgan = hub.load(names.vqgan, "vqgan", mesh=sharding.current_mesh())
  clip = hub.load(names.clip, "clip", mesh=sharding.current_mesh())
  prior_config = families.prior(names.prior, vqgan.config, clip.config)
  structure, _ = kinds.structure(
    "prior", prior_config, dtype, remat=config.train.remat
  )
  frozen, decoder, tower = {}, None, None
  if options.clip_weight:
    decoder, _ = kinds.structure("vqgan", vqgan.config, dtype)
    tower, _ = kinds.structure("clip", clip.config, dtype)
    frozen = {"vqgan": vqgan.params, "clip": clip.params}
  image_size = clip.config.vision.image_size

  def init(key: PRNGKeyArray) -> dict[str, Any]:
    made = kinds.make("prior", prior_config, rngs=layers.keys(key))
    return {"prior": tree.split(made)[1]}

  def loss(
    frozen: dict[str, Any],
    params: dict[str, Any],
    batch: dict[str, Array],
    key: PRNGKeyArray,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    keys = jax.random.split(key, 4)
    codes = batch["codes"].astype(jnp.int32)
    given = clip_dual.unit(batch["clip_image"])
    condition = perturb(keys[0], given, options.noise)
    left = jax.random.bernoulli(keys[1], options.drop_condition, (len(given),))
    condition = jnp.where(left[:, None], 0, condition)
    read = corrupt(
      keys[2], codes[:, :-1], options.corrupt, prior_config.vocabulary
    )
    logits = tree.merge(structure, params["prior"])(
      condition, read, dropout=options.dropout, key=keys[3]
    )
    logits = logits.astype(jnp.float32)
    entropy = jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    )
    right = jnp.mean(jnp.argmax(logits, axis=-1) == codes)
    metrics = {"cross_entropy": entropy, "accuracy": right}
    if decoder is None:
      return entropy, metrics
    with jax.named_scope("clip_loss"):
      decoded = straight_through(tree.merge(decoder, frozen["vqgan"]), logits)
      seen = embed(tree.merge(tower, frozen["clip"]), decoded, image_size)
    far = jnp.mean(jnp.square(seen - given))
    return entropy + options.clip_weight * far, {**metrics, "clip": far}

  return task.Task(
    init=init,
    loss=jax.tree_util.Partial(loss, frozen),
    features=FEATURES,
    transform=None,
    weights={"codes": vqgan.hash, "clip_image": clip.hash},
    parts={"prior": ("prior", prior_config)},
  )


def check(options: ml_collections.ConfigDict) -> None:
  """Refuses numbers of `config.prior` that mean nothing."""
  if not 0 <= options.dropout < 1:
    raise ValueError(
      f"prior.dropout={options.dropout}; expected a share from 0 to below 1"
    )
  for name in ("drop_condition", "corrupt"):
    if not 0 <= options[name] <= 1:
      raise ValueError(
        f"prior.{name}={options[name]}; expected a share from 0 to 1"
      )
  for name in ("noise", "clip_weight"):
    if options[name] < 0:
      raise ValueError(f"prior.{name}={options[name]}; expected 0 or more")


def perturb(
  key: PRNGKeyArray, unit: Float[Array, "B E"], size: float
) -> Float[Array, "B E"]:
  """Embeddings near others, of length 1 again: (e + size d) / |.|, d random.

  "LAFITE", arXiv 2111.13792, eq. 2 for embeddings of length 1: captions lie in
  other directions than images, and a prior that has seen only exact ones is
  not prepared for that.
  """
  if not size:
    return unit
  direction = clip_dual.unit(jax.random.normal(key, unit.shape))
  return clip_dual.unit(unit + size * direction)


def corrupt(
  key: PRNGKeyArray, codes: Int[Array, "B T"], share: float, size: int
) -> Int[Array, "B T"]:
  """A share of the codes, drawn anew: taming's `pkeep` is 1 - share."""
  if not share:
    return codes
  where, what = jax.random.split(key)
  drawn = jax.random.randint(what, codes.shape, 0, size, codes.dtype)
  return jnp.where(
    jax.random.bernoulli(where, share, codes.shape), drawn, codes
  )


def straight_through(
  vqgan: Any, logits: Float[Array, "B T V"]
) -> Float[Array, "B H W 3"]:
  """The image of the likeliest codes, with the gradient of their softmax.

  arXiv 1308.3432, §4: of one-hot vectors times the codebook.
  """
  p = jax.nn.softmax(logits)
  hot = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
  hot = hot + p - jax.lax.stop_gradient(p)
  entries = jnp.einsum("btv,vd->btd", hot, vqgan.codebook.embedding[...])
  side = round(entries.shape[1] ** 0.5)
  return vqgan.decode(entries.reshape(-1, side, side, entries.shape[-1]))


def embed(
  clip: Any, images: Float[Array, "B H W 3"], size: int
) -> Float[Array, "B E"]:
  """CLIP's embeddings, of length 1, of images in [-1, 1], by its own mean.

  HFAiLab's code leaves the normalisation out.
  """
  shape = (len(images), size, size, 3)
  x = jax.image.resize(images, shape, "cubic")
  return clip_dual.unit(clip.image_embedding(clip_vision.normalise(x)))
