# SPDX-License-Identifier: Apache-2.0
"""Images and captions to what train steps read, each network where it is asked.

  latent_mean latent_std  an autoencoder's, bfloat16, unscaled
  codes                   a VQGAN's, uint16 [T], row by row (CLIP-GEN)
  clip_image              CLIP's embedding of the crop, float16 [P], not of
                          length 1: the task sees to that (CLIP-GEN)
  tokens                  int32 [T], of the caption
  text_states             T5's, bfloat16 [S D], of valid tokens only (PixArt)
  label                   int32, of a class, by data/classes.py (DiT)
  size crop bucket        int32 [2]: of the original, of the crop in the resized
                          one (top, left; SDXL), and of the frame; with latents

Latents are [H W C]; in aspect buckets they are [T C], row by row, since TFDS
knows one unknown dimension, and `bucket` gives the shape: (H, W) pixels.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cc_jax.core import sharding, tree
from cc_jax.data import (
  classes,
  clean_caption,
  frames,
  images,
  passes,
  records,
  squares,
  tokenize,
)
from cc_jax.models import clip_vision, hub, kinds
from cc_jax.pipelines import overlap


class Networks(NamedTuple):
  """What images and captions are read by; None for what is not asked for."""

  vae: hub.Loaded | None = None
  vqgan: hub.Loaded | None = None
  clip: hub.Loaded | None = None
  tokenizer: Any | None = None
  t5: hub.Loaded | None = None
  labels: classes.Classes | None = None


@dataclasses.dataclass(frozen=True)
class Options:
  """How they are.

  Attributes:
    frames: of the images, all multiples of the networks' reductions.
    batch_size: of each call of a network, over this host's devices.
    std: whether the latents' deviation is kept; the mean alone is half the
      bytes, and what is trained on it never sees noise of the encoder.
    caption: the feature that is tokenised.
    tokens: length T to which captions are cut or padded.
    dtype: of the computation, but for a VQGAN's: float32, since a code is a
      choice between entries that lie close together.
    refuse: flags of captions (data/caption_quality.py), with which records are
      left out.
    clean: captions are cleaned by T5's rules before they are tokenised.
    label: the feature of an image whose value is its class.
  """

  frames: frames.Frames
  batch_size: int
  std: bool = True
  caption: str = ""
  tokens: int = 77
  dtype: Any = jnp.float32
  refuse: tuple[str, ...] = ()
  clean: bool = False
  label: str = ""

  @property
  def flags(self) -> str:
    """The feature that has the flags of the caption."""
    return self.caption.replace("caption_", "flags_", 1)


class _Image(NamedTuple):
  """An image on the host, ready for the networks."""

  example: Mapping[str, Any]
  cover: images.Cover
  clip: np.ndarray | None


def features(networks: Networks, options: Options) -> dict[str, records.Spec]:
  """What a record of the encoded dataset holds, as in data/records.py.

  Raises:
    ValueError: see `check`.
  """
  check(networks, options)
  (height, width), *others = options.frames.table
  made: dict[str, records.Spec] = {"key": "text"}
  made |= {name: ("int32", (2,)) for name in _places(networks, options)}
  if networks.vae:
    factor = networks.vae.config.factor
    shape = (height // factor, width // factor) if not others else (None,)
    latent = ("bfloat16", (*shape, networks.vae.config.latent_channels))
    made["latent_mean"] = latent
    if options.std:
      made["latent_std"] = latent
  if networks.vqgan:
    codes = height * width // networks.vqgan.config.factor**2
    made["codes"] = ("uint16", (None if others else codes,))
  if networks.clip:
    made["clip_image"] = ("float16", (networks.clip.config.projection,))
  if networks.tokenizer:
    made["tokens"] = ("int32", (options.tokens,))
  if networks.t5:
    made["text_states"] = ("bfloat16", (None, networks.t5.config.width))
  if networks.labels:
    made["label"] = "int32"
  return made


def _places(networks: Networks, options: Options) -> tuple[str, ...]:
  """Which of an image's sizes are kept; a record of CLIP-GEN needs none."""
  if networks.vae:
    return ("size", "crop", "bucket")
  return ("bucket",) if options.frames.bucketed else ()


def hashes(networks: Networks, options: Options) -> dict[str, str]:
  """Of the weights that make each feature."""
  made = {}
  if networks.vae:
    made["latent_mean"] = networks.vae.hash
    if options.std:
      made["latent_std"] = networks.vae.hash
  for feature, network in (
    ("codes", networks.vqgan),
    ("clip_image", networks.clip),
    ("text_states", networks.t5),
  ):
    if network:
      made[feature] = network.hash
  if networks.tokenizer:
    made["tokens"] = tokenize.digest(networks.tokenizer)
  if networks.labels:
    made["label"] = classes.digest(networks.labels)
  return made


def check(networks: Networks, options: Options) -> None:
  """Refuses what cannot be encoded.

  Raises:
    ValueError: nothing to do, T5 without captions, a frame that a network
      cannot halve that often, codes that 16 bits do not hold.
  """
  if not any((networks.vae, networks.vqgan, networks.clip)):
    raise ValueError(
      "nothing to encode; set encode.latents, or name encode.vqgan or "
      "encode.clip"
    )
  if networks.t5 and not networks.tokenizer:
    raise ValueError("encode.text_states needs encode.captions")
  for network, what in (
    (networks.vae, "autoencoder"),
    (networks.vqgan, "VQGAN"),
  ):
    for side in {n for frame in options.frames.table for n in frame}:
      if network and side % network.config.factor:
        name = (
          "a bucket of encode.size"
          if options.frames.bucketed
          else "encode.size"
        )
        raise ValueError(
          f"{name}={side} does not divide by {network.config.factor}, the "
          f"{what}'s reduction"
        )
  if networks.vqgan and networks.vqgan.config.codebook_size > 2**16:
    raise ValueError(
      f"a codebook of {networks.vqgan.config.codebook_size}; codes are stored "
      "in 16 bits, which hold 65,536"
    )


def make(
  networks: Networks,
  sizes: Sequence[Options],
  seconds: overlap.Seconds | None = None,
) -> Callable[[Iterator[Mapping[str, Any]]], Iterator[tuple[Any, ...]]]:
  """A stream for `overlap.piece`: records of a catalogue to one a size.

  An image is decoded once for all sizes, a JPEG that is far larger than a size
  once more at the fraction of its size that does for it (`images.decode`): so a
  record is the same whatever other sizes there are. Each frame is a program to
  compile, 40 for PixArt's buckets.

  Args:
    networks: those asked for, with weights.
    sizes: how, for each size; they differ in `frames` alone.
    seconds: see `overlap.run`.

  Raises:
    ValueError: what `check` refuses, or a batch that does not divide over this
      host's devices.
  """
  for one in sizes:
    check(networks, one)
  options = sizes[0]
  batch_size = options.batch_size
  seconds = collections.Counter() if seconds is None else seconds
  # Hosts work apart, each on its own shards and devices: none waits for
  # another, and one that is lost costs its current shard.
  mesh = sharding.make_mesh(devices=jax.local_devices())
  ways = sharding.batch_ways(mesh)
  if batch_size < 1 or batch_size % ways:
    raise ValueError(
      f"encode.batch_size={batch_size} does not divide over {ways} devices"
    )
  layout = sharding.batch_layout(mesh)
  on_images, on_clip, on_text = _functions(networks, options, mesh)
  clip_size = networks.clip and networks.clip.config.vision.image_size
  places = _places(networks, options)
  known_classes = set(networks.labels.names) if networks.labels else set()
  compiled = {}

  def call(function, *inputs):
    """Dispatches a batch filled up to its full size; does not wait."""
    full = [np.zeros((batch_size, *x.shape[1:]), x.dtype) for x in inputs]
    for whole, x in zip(full, inputs, strict=True):
      whole[: len(x)] = x
    placed = jax.device_put(full, layout)
    shape = (function, *(x.shape for x in full))
    if shape not in compiled:
      with overlap.clock(seconds, "compile"):
        lowered = function.program.lower(function.params, *placed)
        compiled[shape] = lowered.compile()
    return compiled[shape](function.params, *placed)

  def prepare(example):
    flags = example[options.flags] if options.refuse else ()
    if bad := [flag for flag in flags if flag in options.refuse]:
      detail = example[options.caption]
      return [passes.Reject(f"caption_{bad[0]}", detail=detail)] * len(sizes)
    if networks.labels and example[options.label] not in known_classes:
      return [passes.Reject("no_class", detail=example[options.label])] * len(
        sizes
      )
    decoded: images.Decoded = {}
    return [cut(example, one.frames, decoded) for one in sizes]

  def cut(example, among, decoded):
    cover = frames.cut(example, among, decoded)
    if isinstance(cover, passes.Reject):
      return cover
    clip = networks.clip and squares.square(
      cover.image, clip_size, squares.CROP
    )
    value = _Image(example, cover, clip)
    return overlap.Prepared(cover.image.shape[:2], value)

  def start(frame, values: Sequence[_Image]):
    made = {}
    if on_images:
      made |= call(on_images, np.stack([x.cover.image for x in values]))
    if on_clip:
      made |= call(on_clip, np.stack([x.clip for x in values]))
    if networks.tokenizer:
      captions = [x.example[options.caption] for x in values]
      if options.clean:
        captions = [clean_caption.clean(caption) for caption in captions]
      ids, mask = tokenize.encode(networks.tokenizer, captions, options.tokens)
      if on_text:
        made |= call(on_text, ids, mask)
      made["tokens"] = ids
    if networks.labels:
      titles = [x.example[options.label] for x in values]
      made["label"] = classes.encode(networks.labels, titles)[:, 0]

    def finish():
      # A copy of each row: a view would keep its batch in memory.
      arrays = {name: np.asarray(x) for name, x in made.items()}
      rows = []
      for row, value in enumerate(values):
        record = {name: x[row].copy() for name, x in arrays.items()}
        if on_text:
          record["text_states"] = record["text_states"][mask[row]]
        known = {
          "size": value.cover.size,
          "crop": value.cover.crop,
          "bucket": np.array(frame, np.int32),
        }
        record |= {name: known[name] for name in places}
        rows.append({"key": value.example["key"], **record})
      return rows

    return finish

  def encode(examples):
    return overlap.run(
      examples,
      prepare,
      start,
      batch_size=batch_size,
      seconds=seconds,
      parts=len(sizes),
    )

  return encode


@dataclasses.dataclass(frozen=True, eq=False)
class _Function:
  """A jitted function of weights and inputs, and the weights."""

  program: Any
  params: Any


def _functions(
  networks: Networks, options: Options, mesh: jax.sharding.Mesh
) -> tuple[_Function | None, _Function | None, _Function | None]:
  """Of uint8 images at their frame, at CLIP's size, and of token ids."""
  place = lambda loaded: jax.device_put(
    loaded.params, sharding.replicated(mesh)
  )
  structure = lambda kind, loaded, dtype=options.dtype: kinds.structure(
    kind, loaded.config, dtype=dtype
  )[0]
  vae = networks.vae and structure("autoencoder", networks.vae)
  vqgan = networks.vqgan and structure("vqgan", networks.vqgan, "float32")
  clip = networks.clip and structure("clip", networks.clip)
  t5 = networks.t5 and structure("t5", networks.t5)

  def flat(x):
    """[B H W C] -> [B T C] where shapes differ."""
    return x.reshape(len(x), -1, x.shape[-1]) if options.frames.bucketed else x

  @jax.jit
  def on_images(params, pixels):
    made = {}
    if vae:
      mean, std = tree.merge(vae, params["vae"]).latents(pixels)
      made["latent_mean"] = flat(mean)
      if options.std:
        made["latent_std"] = flat(std)
    if vqgan:
      network = tree.merge(vqgan, params["vqgan"])
      x = pixels.astype(jnp.float32) / 127.5 - 1
      _, codes = network.quantise(network.encode(x))
      made["codes"] = codes.reshape(len(x), -1).astype(jnp.uint16)
    return made

  @jax.jit
  def on_clip(params, pixels):
    x = clip_vision.normalise(pixels.astype(jnp.float32) / 127.5 - 1)
    found = tree.merge(clip, params).image_embedding(x)
    return {"clip_image": found.astype(jnp.float16)}

  @jax.jit
  def on_text(params, ids, mask):
    states = tree.merge(t5, params)(ids, mask)
    return {"text_states": states.astype(jnp.bfloat16)}

  both = {
    name: place(loaded)
    for name, loaded in (("vae", networks.vae), ("vqgan", networks.vqgan))
    if loaded
  }
  return (
    _Function(on_images, both) if both else None,
    _Function(on_clip, place(networks.clip)) if clip else None,
    _Function(on_text, place(networks.t5)) if t5 else None,
  )


def empty_states(networks: Networks, options: Options) -> np.ndarray:
  """T5's states [S D] of the empty caption, of its valid tokens."""
  mesh = sharding.make_mesh(devices=jax.local_devices())
  function = _functions(networks, options, mesh)[2]
  ids, mask = tokenize.encode(networks.tokenizer, [""], options.tokens)
  found = function.program(function.params, ids, mask)["text_states"]
  return np.asarray(found[0], np.float32)[mask[0]]
