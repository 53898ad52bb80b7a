# SPDX-License-Identifier: Apache-2.0
"""Where a step of diffusion has its latents from.

stored   by `cc-jax encode`, as maps or, in aspect buckets, padded tokens
images   of a catalogue, which the autoencoder encodes in the step: what
         encoding them before is measured against, half of a step of SD2 at
         256 pixels, and what needs no disk for latents
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
from jaxtyping import Array
import ml_collections

from cc_jax.data import images, latents
from cc_jax.models import hub
from cc_jax.tasks import padded


class Source(NamedTuple):
  """One way to come by latents.

  Attributes:
    features: of a record.
    weights: the hash of what must have made them.
    networks: that `read` needs, frozen.
    read: networks by name and a batch -> the batch with `latent_mean` and, if
      `encode.std`, `latent_std`.
    transform: of a record, on the host, or None.
  """

  features: tuple[str, ...]
  weights: dict[str, str]
  networks: dict[str, hub.Loaded]
  read: Callable[[Mapping[str, Any], dict[str, Array]], dict[str, Array]]
  transform: Callable[[dict[str, Any]], dict[str, Any]] | None


def make(
  config: ml_collections.ConfigDict,
  vae: hub.Loaded,
  denoiser: Any,
  sizes: tuple[str, ...],
) -> Source:
  """The source of a config's latents.

  Args:
    config: of which `encode` and `latent_diffusion` are read.
    vae: that encodes, or has encoded.
    denoiser: the config of the network that reads them.
    sizes: which of `size` and `crop` it reads, too.

  Raises:
    ValueError: fields that cannot be together.
  """
  if config.latent_diffusion.from_images:
    check(config, vae)
    return of_images(config.encode, vae, sizes)
  layout = layout_of(config, denoiser, vae.config.factor)
  features = ("latent_mean", *(("latent_std",) if config.encode.std else ()))
  return Source(
    features=(
      *features,
      *sizes,
      *(("bucket",) if config.encode.buckets else ()),
    ),
    weights={"latent_mean": vae.hash, "latent_std": vae.hash},
    networks={},
    read=lambda networks, batch: batch,
    transform=layout,
  )


def of_images(
  options: ml_collections.ConfigDict,
  vae: hub.Loaded,
  sizes: tuple[str, ...],
) -> Source:
  """Latents of images' middle squares, as `cc-jax encode` would make them.

  Images that are smaller are enlarged: a record is not left out here.

  Args:
    options: `config.encode`, of which `size` and `std` are read.
    vae: that encodes.
    sizes: which of `size` and `crop` are read, too.
  """

  def transform(record: dict[str, Any]) -> dict[str, Any]:
    cover = images.decode_cover(record["image"], options.size, options.size)
    known = {"size": cover.size, "crop": cover.crop}
    return {
      **record,
      "image": cover.image,
      **{name: known[name] for name in sizes},
    }

  def read(
    networks: Mapping[str, Any], batch: dict[str, Array]
  ) -> dict[str, Array]:
    with jax.named_scope("vae"):
      found = jax.lax.stop_gradient(networks["vae"].latents(batch["image"]))
    made = dict(zip(latents.FEATURES, found, strict=True))
    if not options.std:
      del made["latent_std"]
    rest = {name: x for name, x in batch.items() if name != "image"}
    return {**rest, **made}

  return Source(("image",), {}, {"vae": vae}, read, transform)


def check(config: ml_collections.ConfigDict, vae: hub.Loaded) -> None:
  """Refuses what only images that were encoded before can have.

  Raises:
    ValueError: buckets, padding, random crops, stored states, classes or
      refusals, or a size that the autoencoder cannot halve.
  """
  options = config.encode
  for name, there in (
    ("encode.buckets", options.buckets),
    ("latent_diffusion.padded", config.latent_diffusion.padded),
    ("encode.crop='random'", options.crop != "centre"),
    ("encode.text_states", options.text_states),
    ("encode.refuse", options.refuse),
    ("a model of classes", config.model.transformer and not config.model.text),
  ):
    if there:
      raise ValueError(
        f"{name} needs latents that were encoded before; set "
        "latent_diffusion.from_images=false"
      )
  if options.size % vae.config.factor:
    raise ValueError(
      f"encode.size={options.size} does not divide by {vae.config.factor}, the "
      "autoencoder's reduction"
    )


def layout_of(
  config: ml_collections.ConfigDict, denoiser: Any, factor: int
) -> Any:
  """What makes a record's latents maps, or tokens of one number; or None.

  Raises:
    ValueError: `padded` without buckets, or for another than a transformer.
  """
  if not config.latent_diffusion.padded:
    return latents.shaped if config.encode.buckets else None
  if not config.encode.buckets or not hasattr(denoiser, "patch"):
    raise ValueError(
      "latent_diffusion.padded is for transformers over patches, on images of "
      "encode.buckets"
    )
  return padded.make(
    denoiser, (config.encode.size // factor // denoiser.patch) ** 2
  )


def chain(*transforms: Any) -> Any:
  """One transform after another; None for none at all."""
  found = [one for one in transforms if one is not None]
  if not found:
    return None
  return lambda record: functools.reduce(lambda x, one: one(x), found, record)
