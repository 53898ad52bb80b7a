# SPDX-License-Identifier: Apache-2.0
"""Images of prompts, and how they compare with real ones, over guidance.

    evaluation/
      guidance-3/          the images, by number: data/generated.py
      table.md             all numbers
      curve.svg            FID over CLIP score, a point a guidance
    features/              of real and generated images, by what made them

Killed and run again, it makes what is missing and nothing else.
"""

from collections.abc import Mapping, Sequence
import contextlib
import io
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from cc_jax.core import files, log, sharding
from cc_jax.data import (
  benchmark_folders,
  generated,
  images,
  prompt_sets,
)
from cc_jax.metrics import frechet, numbers
from cc_jax.pipelines import (
  caption_likelihood,
  evaluation_tables,
  image_features,
  image_makers,
  memorisation,
)

TABLE, CURVE = "table.md", "curve.svg"


class Eyes(NamedTuple):
  """The networks that look at images, by what they are for.

  Attributes:
    inception: InceptionV3 by (resize, blur).
    clip: CLIPs by their name.
    captioner: that is asked how likely a prompt is.
  """

  inception: dict[tuple[str, float], image_features.Network]
  clip: dict[str, image_features.Network]
  captioner: caption_likelihood.Captioner | None = None

  @property
  def all(self) -> list[image_features.Network]:
    """Each once of those that look at images alone."""
    return [*self.inception.values(), *self.clip.values()]


def run(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Makes and measures the images that `config.evaluate` asks for.

  Returns:
    What they were, and the numbers of each guidance, as JSON has it.

  Raises:
    ValueError: prompts, model, networks or real images that are not there;
      another run that writes to the folder.
  """
  options = config.evaluate
  check(options)
  whole = prompt_sets.prompts(prompt_sets.open(options.prompts, options.split))
  prompts = prompt_sets.first(whole, options.count)
  if options.layout:
    benchmark_folders.check(options.layout, prompts, options.each)
  texts = [text for text in prompts.texts for _ in range(options.each)]
  # Everything that may be refused comes before the first image.
  eyes = open_eyes(config)
  real = reference(options, prompts)
  guidance = options.guidance or (config.sample.guidance,)
  if log.is_first():
    files.path(options.folder).mkdir(parents=True, exist_ok=True)
  with _held(options.folder):
    made = {}
    with sharding.use_all_devices(config.sample.batch_size):
      maker = image_makers.open(config, options.model)
      recipe = {
        "model": maker.identity,
        "prompts": whole.hash,
        "each": options.each,
        "seed": config.seed,
        "size": config.sample.size,
      }
      for one in guidance:
        folder = os.path.join(options.folder, f"guidance-{one:g}")
        make(folder, maker, texts, one, recipe, config.sample.batch_size)
        made[one] = folder
        if options.layout and log.is_first():
          target = f"{folder}-{options.layout}"
          count = benchmark_folders.write(
            options.layout, folder, target, prompts, options.each
          )
          log.announce("evaluate", f"{count:,} files -> {target}")
    held = _real_features(config, eyes, real)
    clip = eyes.clip.get(options.clip_fid)
    training = None
    if options.training:
      training = memorisation.open_training(config, clip)
    found: dict[str, Any] = {
      "model": maker.name,
      "prompts": {"name": prompts.name, "hash": whole.hash, "of": len(prompts)},
      "real": real.name if real else "",
      "recipe": recipe,
    }
    for one, folder in made.items():
      row = measure(
        config, eyes, folder, texts, {**recipe, "guidance": one}, held
      )
      if training:
        chosen = generated.indices(folder, len(texts))
        row["memorisation"] = memorisation.look(
          config,
          training,
          clip,
          folder,
          chosen,
          texts,
          made_by(recipe, one, chosen),
        )
      found[f"guidance_{one:g}"] = row
    if log.is_first():
      table = evaluation_tables.table(found)
      files.write_atomic(os.path.join(options.folder, TABLE), table)
      if drawn := evaluation_tables.curve(found):
        files.write_atomic(os.path.join(options.folder, CURVE), drawn)
      log.say(table)
  return found


def check(options: ml_collections.ConfigDict) -> None:
  """Refuses fields of `config.evaluate` that mean nothing."""
  for name in ("each", "batch_size", "kid_subsets"):
    if options[name] < 1:
      raise ValueError(f"evaluate.{name}={options[name]}; expected 1 or more")
  if options.draws < 2:
    raise ValueError(f"evaluate.draws={options.draws}; expected 2 or more")
  if len(set(options.guidance)) < len(options.guidance):
    raise ValueError(f"evaluate.guidance={options.guidance} names one twice")


def _held(folder: str) -> Any:
  return (
    generated.locked(folder) if log.is_first() else contextlib.nullcontext()
  )


def _wait(name: str) -> None:
  """All hosts have come so far."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def make(
  folder: str,
  maker: image_makers.Maker,
  texts: Sequence[str],
  guidance: float,
  recipe: Mapping[str, Any],
  batch_size: int,
) -> None:
  """Makes the images of a folder that are not there."""
  recipe = {**recipe, "guidance": float(guidance)}
  if log.is_first():
    generated.begin(folder, recipe)
  _wait(f"{folder} begun")
  absent, refused = generated.missing(folder, len(texts))
  if jax.process_count() > 1:
    # Hosts may see a folder differently for a while.
    lacks = np.isin(np.arange(len(texts)), absent)
    lacks = multihost_utils.broadcast_one_to_all(lacks)
    absent = np.flatnonzero(lacks).tolist()
  wanted, done = set(absent), len(texts) - len(absent)
  written = 0
  with log.progress(len(texts), "evaluate", "images", start=done) as progress:
    for batch in image_makers.batches(absent, len(texts), batch_size):
      prompts = [texts[index] for index in batch]
      images_ = maker.make(prompts, list(batch), guidance)
      for index, image in zip(batch, images_, strict=True):
        if index in wanted and index % jax.process_count() == (
          jax.process_index()
        ):
          good = generated.write(folder, index, np.asarray(image))
          refused += not good
          written += 1
      progress(len(wanted & set(batch)))
  _wait(f"{folder} made")
  log.summary(
    "evaluate",
    {"images": len(absent), "done before": done, "not finite": refused},
    output=folder,
  )


def open_eyes(config: ml_collections.ConfigDict) -> Eyes:
  """The networks that `config.evaluate` names.

  Raises:
    ValueError: weights that are not there.
  """
  options, inception = config.evaluate, {}
  if options.inception:
    for mode in options.resize:
      for radius in options.blur:
        inception[mode, float(radius)] = image_features.inception(
          options.inception, mode, radius
        )
  names = [options.clip_fid, *options.clip_score, options.cmmd]
  clips = {
    name: image_features.clip(name) for name in dict.fromkeys(names) if name
  }
  captioner = None
  if options.caption_score:
    captioner = caption_likelihood.load(
      options.caption_score, options.captioner, config.caption.dtype
    )
  return Eyes(inception, clips, captioner)


class Real(NamedTuple):
  """What images are compared with: real images, or statistics of them."""

  name: str
  images: prompt_sets.Set | None
  statistics: frechet.Gaussian | None = None


def reference(
  options: ml_collections.ConfigDict, prompts: prompt_sets.Set
) -> Real | None:
  """The real images of `config.evaluate`; None for none.

  Raises:
    ValueError: they are not there.
  """
  name = options.real
  if not name:
    if prompts.image is None:
      return None
    return Real(prompts.name, prompts)
  if name.endswith(".npz"):
    try:
      found = np.load(io.BytesIO(files.path(name).read_bytes()))
      statistics = frechet.Gaussian(found["mu"], found["sigma"])
    except (FileNotFoundError, ValueError, KeyError, OSError) as error:
      raise ValueError(f"{name} has no mu and sigma: {error}") from None
    return Real(name, None, statistics)
  return Real(name, prompt_sets.pictures(prompt_sets.open(name, options.split)))


def _real_features(
  config: ml_collections.ConfigDict, eyes: Eyes, real: Real | None
) -> dict[Any, Any]:
  """Features of real images as CommonCanvas has them: their middle square."""
  if real is None or real.images is None:
    statistics = real.statistics if real else None
    return {"statistics": statistics} if statistics else {}
  size, found = config.sample.size, real.images

  def read(row: int) -> np.ndarray:
    try:
      return images.decode_cover(found.image(row), size, size).image
    except images.ImageError as error:
      raise ValueError(
        f"real image {found.names[row]} of {found.name}: {error}"
      ) from None

  rows = image_features.cached(
    config.evaluate.cache,
    eyes.all,
    {"real": found.identity, "count": len(found), "size": size},
    read,
    len(found),
    batch_size=config.evaluate.batch_size,
    what="real images",
  )
  # Once, and not for each guidance.
  names = [(one.name, "pooled") for one in eyes.inception.values()]
  names.append((config.evaluate.clip_fid, "image"))
  gaussians = {
    (name, "gaussian"): numbers.statistics(rows[name, output])
    for name, output in names
    if name
  }
  return {**rows, **gaussians}


def made_by(
  recipe: Mapping[str, Any], guidance: float, chosen: Sequence[int]
) -> dict[str, Any]:
  """What decides the images of a folder, for the cache of their features."""
  there = files.sha256(np.asarray(chosen, np.int64).tobytes())
  return {"generated": {**recipe, "guidance": guidance}, "images": there}


def measure(
  config: ml_collections.ConfigDict,
  eyes: Eyes,
  folder: str,
  texts: Sequence[str],
  recipe: Mapping[str, Any],
  real: Mapping[Any, Any],
) -> dict[str, Any]:
  """All numbers of one folder of images."""
  options = config.evaluate
  chosen = generated.indices(folder, len(texts))
  asked = [texts[index] for index in chosen]
  networks = list(eyes.all)
  if eyes.captioner:
    judge, mask = caption_likelihood.network(eyes.captioner, asked)
    networks.append(judge)
  ours = image_features.cached(
    options.cache,
    networks,
    made_by(recipe, recipe["guidance"], chosen),
    generated.reader(folder, chosen),
    len(chosen),
    batch_size=options.batch_size,
    what=f"images of {folder}",
  )
  found: dict[str, Any] = {
    "images": len(chosen),
    "not_finite": len(texts) - len(chosen),
  }
  draws = options.draws
  statistics = real.get("statistics")
  for (mode, radius), one in eyes.inception.items():
    label = "" if mode == "clean" else f"_{mode}"
    label += f"_blur_{radius:g}" if len(options.blur) > 1 else ""
    rows = ours[one.name, "pooled"]
    if (one.name, "pooled") in real:
      theirs = real[one.name, "pooled"]
      against = real[one.name, "gaussian"]
      found[f"fid{label}"] = numbers.fid(against, rows, draws)
      if not radius:
        found[f"kid{label}"] = numbers.kid(
          theirs,
          rows,
          draws,
          subsets=options.kid_subsets,
          size=options.kid_size,
        )
        shares = numbers.shares(theirs, rows, draws)
        found |= {f"{name}{label}": value for name, value in shares.items()}
    elif statistics is not None and not radius:
      found[f"fid{label}"] = numbers.fid(statistics, rows, draws)
    if not radius:
      logits = ours[one.name, "logits"]
      found[f"inception_score{label}"] = numbers.inception(logits, draws)
  image = lambda rows, name: rows.get((name, "image"))
  if options.clip_fid and image(real, options.clip_fid) is not None:
    against = real[options.clip_fid, "gaussian"]
    rows = image(ours, options.clip_fid)
    found["clip_fid"] = numbers.fid(against, rows, draws)
  if options.cmmd and image(real, options.cmmd) is not None:
    found["cmmd"] = numbers.cmmd(
      image(real, options.cmmd), image(ours, options.cmmd), draws
    )
  for name in options.clip_score:
    captions = image_features.captions(eyes.clip[name], asked)
    label = f"clip_score_{os.path.basename(name.rstrip('/'))}"
    found[label] = numbers.agreement(image(ours, name), captions, draws)
  if eyes.captioner:
    log_p = ours[judge.name, "log_p"]
    label = os.path.basename(judge.name.rstrip("/"))
    found[f"caption_score_{label}"] = numbers.captioned(log_p, mask, draws)
  return found
