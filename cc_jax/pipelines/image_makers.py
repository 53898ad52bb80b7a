# SPDX-License-Identifier: Apache-2.0
"""What makes images of prompts: a checkpoint, an exported folder, a baseline.

    ""                       the checkpoint that the config names, or of
                             CLIP-GEN the networks of config.model
    a work folder            the run that trained there, by its own config.json
    a folder of a pipeline   with model_index.json: our networks, our sampler
    OWNER/NAME               the same, fetched from the Hugging Face hub
    diffusers:NAME           diffusers' own pipeline, of a folder or of the hub

All start from the same noise: that of image i follows from the seed and i
alone, also for diffusers, which is given it, unless a pipeline's latents are no
maps (Flux). What diffusers draws itself is of the seed plus i, as CommonCanvas
had it.
"""

from collections.abc import Callable, Sequence
import os
import re
from typing import Any, NamedTuple

import jax
from jaxtyping import Float
import ml_collections
import numpy as np

from cc_jax.core import checkpoint, files
from cc_jax.models import hub
from cc_jax.pipelines import (
  clip_to_image,
  folders,
  preview,
  reference,
  text_to_image,
)

DIFFUSERS = "diffusers:"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Maker(NamedTuple):
  """What makes images.

  Attributes:
    name: for people.
    identity: all that decides an image besides prompt, seed, number, size and
      guidance, as JSON has it.
    make: `make(prompts, indices, guidance) -> images` [N H W 3] in [0, 1].
  """

  name: str
  identity: dict[str, Any]
  make: Callable[..., Float[np.ndarray, "N H W 3"]]


def open(config: ml_collections.ConfigDict, name: str = "") -> Maker:
  """Opens what `name` names, see the top of this file.

  Args:
    config: `sample` has sampler, steps, size and batch size, `seed` the seed.
    name: of the model.

  Raises:
    ValueError: there is no such model, or it cannot make such images.
  """
  if name.startswith(DIFFUSERS):
    return baseline(config, name.removeprefix(DIFFUSERS))
  if not name:
    return _trained(config)
  place = files.path(name)
  if not place.exists() and REPOSITORY.fullmatch(name):
    place = files.path(fetched(name))
  if (place / "model_index.json").exists():
    model = folders.open(str(place), config.train.dtype, config.encode.tokens)
    return _ours(config, model, name)
  if (place / "config.json").exists():
    made = run_config(config, name)
    return _trained(made)
  raise ValueError(
    f"no model {name!r}: it has neither model_index.json (a pipeline) nor "
    f"config.json (a run of cc-jax train); for diffusers' own pipeline write "
    f"{DIFFUSERS}NAME"
  )


def fetched(name: str) -> str:
  """The folder of a pipeline that is on the hub.

  Raises:
    ValueError: it is neither here nor there, or none of ours.
  """
  try:
    return folders.fetch(name)
  except ValueError as error:
    raise ValueError(
      f"no model {name!r}: it is no folder here, and of the hub: {error} "
      f"(for diffusers' own pipeline, of any class, write {DIFFUSERS}{name})"
    ) from None


def run_config(
  config: ml_collections.ConfigDict, workdir: str
) -> ml_collections.ConfigDict:
  """The config that a run was trained with, and how to sample from this one.

  Raises:
    ValueError: nothing was trained in that folder.
  """
  noted = files.read_json(files.path(workdir) / "config.json")
  if "train" not in noted:
    raise ValueError(f"{workdir}/config.json notes no training")
  made = ml_collections.ConfigDict(config)
  with made.unlocked(), made.ignore_type():
    trained = ml_collections.ConfigDict(noted["train"]["config"])
    for group in ("model", "latent_diffusion", "encode", "train"):
      made[group] = trained[group]
    made.train.checkpoints = os.path.join(workdir, "checkpoints")
    made.train.dtype = config.train.dtype
  return made


def _trained(config: ml_collections.ConfigDict) -> Maker:
  if config.train.task == "prior":
    return clip_gen(config)
  return _ours(config, text_to_image.make(config), _checkpoint(config))


def clip_gen(config: ml_collections.ConfigDict) -> Maker:
  """CLIP-GEN, of a trained prior or of the one that `config.model` names.

  Raises:
    ValueError: no such networks, or images of another size than is asked for.
  """
  model, options = clip_to_image.make(config), config.sample
  codes = round(model.configs["prior"].positions ** 0.5)
  side = codes * model.configs["vqgan"].factor
  if side != options.size:
    raise ValueError(
      f"sample.size={options.size}, and CLIP-GEN's images have {side} pixels a "
      f"side; set sample.size={side}"
    )

  def make(prompts, indices, guidance):
    design = model.design._replace(guidance=float(guidance))
    return clip_to_image.generate(
      model._replace(design=design),
      prompts,
      seed=config.seed,
      batch_size=options.batch_size,
      indices=np.asarray(indices),
    )

  drawn = ("temperature", "top_k", "top_p", "candidates", "batch_size", "gap")
  gap = ("gap_records", "gap_nearest") if options.gap != "none" else ()
  identity = {
    "weights": hub.weights_hash(model.params),
    "clip": hub.weights_hash(model.embedder.params),
    "dtype": config.train.dtype,
    **{name: options[name] for name in (*drawn, *gap)},
  }
  trained = checkpoint.latest_step(config.train.checkpoints) is not None
  name = _checkpoint(config) if trained else str(config.model.prior)
  return Maker(f"CLIP-GEN, {name}", identity, make)


def _checkpoint(config: ml_collections.ConfigDict) -> str:
  step = config.sample.step
  if step < 0:
    step = checkpoint.latest_step(config.train.checkpoints)
  return f"step {step} of {config.train.checkpoints}, {config.sample.part}"


def _ours(
  config: ml_collections.ConfigDict, model: text_to_image.Model, name: str
) -> Maker:
  fields = preview.arguments(config)
  del fields["guidance"]

  def make(prompts, indices, guidance):
    return text_to_image.generate(
      model,
      prompts,
      seed=config.seed,
      indices=np.asarray(indices),
      guidance=float(guidance),
      **fields,
    )

  identity = {
    "weights": hub.weights_hash(model.params),
    "sampler": fields["sampler"],
    "steps": fields["steps"],
    "rescale": fields["rescale"],
    "dtype": config.train.dtype,
    "prediction": model.design.prediction,
  }
  return Maker(name, identity, make)


def baseline(config: ml_collections.ConfigDict, name: str) -> Maker:
  """diffusers' pipeline with its own scheduler, on the CPU or a GPU.

  Raises:
    ValueError: torch or diffusers is not installed, or there is no such
      pipeline.
  """
  options = config.sample
  pipe = reference.pipeline(name, config.train.dtype)
  key = jax.random.key(config.seed)

  def make(prompts, indices, guidance):
    found = []
    for start in range(0, len(prompts), options.batch_size):
      rows = np.asarray(indices)[start : start + options.batch_size]
      xt = None
      if pipe.latent_shape:
        shape = pipe.latent_shape(options.size)
        xt = np.asarray(text_to_image.noise(key, rows, shape))
      found.append(
        pipe.run(
          list(prompts[start : start + options.batch_size]),
          xt,
          config.seed + rows,
          size=options.size,
          steps=options.steps,
          guidance=float(guidance),
        )
      )
    return np.concatenate(found)

  identity = {**pipe.identity, "steps": options.steps}
  return Maker(f"diffusers' {name}", identity, make)


def batches(missing: Sequence[int], count: int, batch_size: int) -> list[range]:
  """The batches in which something is missing.

  They are cut from all images, whatever is missing, so that an image is always
  computed beside the same others and comes out the same to the last bit.
  """
  wanted = sorted({index // batch_size for index in missing})
  return [
    range(batch * batch_size, min((batch + 1) * batch_size, count))
    for batch in wanted
  ]
