# SPDX-License-Identifier: Apache-2.0
"""Images to latents and captions to tokens, as the train step wants them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cc_jax.core import sharding, tree
from cc_jax.data import images, passes, records, tokenize
from cc_jax.models import hub, kinds


def features(
  vae: hub.Loaded, size: int, tokens: int
) -> dict[str, records.Spec]:
  """What a record of the encoded dataset holds, as in data/records.py."""
  side = size // vae.config.factor
  latent = ("bfloat16", (side, side, vae.config.latent_channels))
  return {
    "key": "text",
    "latent_mean": latent,
    "latent_std": latent,
    "size": ("int32", (2,)),
    "crop": ("int32", (2,)),
    "bucket": ("int32", (2,)),
    "tokens": ("int32", (tokens,)),
  }


def make(
  vae: hub.Loaded,
  tokenizer: Any,
  *,
  caption: str,
  size: int,
  tokens: int,
  batch_size: int,
  dtype: Any,
  refuse: Sequence[str] = (),
) -> Callable[[Sequence[Mapping[str, Any]]], list[Any]]:
  """A function for data/passes.py: catalogue records to encoded ones.

  Args:
    vae: an autoencoder with its weights.
    tokenizer: from data/tokenize.py.
    caption: the feature that is tokenised.
    size: pixels a side of the crop.
    tokens: length T to which captions are cut or padded.
    batch_size: most records in a call, so that there is one compiled shape.
    dtype: of the encoder's computation.
    refuse: flags of captions (data/caption_quality.py), with which records are
      left out.

  Raises:
    ValueError: a size that the autoencoder cannot halve that often, or a batch
      that does not divide over this host's devices.
  """
  if size % vae.config.factor:
    raise ValueError(
      f"encode.size={size} does not divide by {vae.config.factor}, the "
      "autoencoder's reduction"
    )
  # Hosts work apart, each on its own shards and devices: none waits for
  # another, and one that is lost costs its current shard.
  mesh = sharding.make_mesh(devices=jax.local_devices())
  ways = sharding.batch_ways(mesh)
  if batch_size % ways:
    raise ValueError(
      f"encode.batch_size={batch_size} does not divide over {ways} devices"
    )
  structure, _ = kinds.structure("autoencoder", vae.config, dtype=dtype)
  params = jax.device_put(vae.params, sharding.replicated(mesh))
  layout = sharding.batch_layout(mesh)

  @jax.jit
  def moments(params, pixels):
    x = pixels.astype(jnp.float32) / 127.5 - 1
    mean, std = tree.merge(structure, params).encode(x)
    return mean.astype(jnp.bfloat16), std.astype(jnp.bfloat16)

  flags = caption.replace("caption_", "flags_", 1)

  def crop(example):
    if refuse and (bad := [f for f in example[flags] if f in refuse]):
      return passes.Reject(f"caption_{bad[0]}", detail=example[caption])
    try:
      return images.decode_cover(example["image"], size, size)
    except images.ImageError as error:
      return passes.Reject(f"image_{error.reason}", detail=str(error))

  def encode(examples):
    crops = list(pool.map(crop, examples))
    pixels = np.zeros((batch_size, size, size, 3), np.uint8)
    for row, cover in enumerate(crops):
      if isinstance(cover, images.Cover):
        pixels[row] = cover.image
    mean, std = map(np.asarray, moments(params, jax.device_put(pixels, layout)))
    ids, _ = tokenize.encode(tokenizer, [e[caption] for e in examples], tokens)
    return [
      cover
      if isinstance(cover, passes.Reject)
      else {
        "key": example["key"],
        "latent_mean": mean[row],
        "latent_std": std[row],
        "size": cover.size,
        "crop": cover.crop,
        "bucket": np.array((size, size), np.int32),
        "tokens": ids[row],
      }
      for row, (example, cover) in enumerate(zip(examples, crops, strict=True))
    ]

  pool = futures.ThreadPoolExecutor(4)
  return encode


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
