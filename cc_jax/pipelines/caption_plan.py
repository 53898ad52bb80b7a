# SPDX-License-Identifier: Apache-2.0
"""A captioner compiled for devices that are not there, and what it costs.

What one host's devices do with one batch is what pipelines/image_captioner.py
does, on shapes of weights and images in place of values.
"""

from collections.abc import Callable
import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cc_jax.core import (
  estimate,
  files,
  flops,
  hardware,
  hlo_cost,
  log,
  planned,
  schedules,
  sharding,
  tree,
)
from cc_jax.models import hub, kinds, unread
from cc_jax.pipelines import caption_recipe, image_captioner

# Tokens of a word of an English prompt, about.
TOKENS_A_WORD = 1.3


class Work(NamedTuple):
  """A captioner of one host.

  Attributes:
    write: `write(params, pixels, key)` -> token ids.
    params: shapes of the weights, with layouts.
    pixels: of the images, with a layout.
    key: of a random key.
    prompt: tokens before the caption, with those that stand for the image.
    length: tokens of a caption, the longest that is written.
  """

  write: Callable[..., Any]
  params: Any
  pixels: jax.ShapeDtypeStruct
  key: jax.ShapeDtypeStruct
  prompt: int
  length: int


def abstract(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> Work:
  """The captioner of `config.caption` on a mesh; nothing is read.

  Raises:
    ValueError: a captioner that is no network, or a batch that does not divide.
  """
  options = config.caption
  if options.captioner not in caption_recipe.KINDS:
    raise ValueError(
      f"caption.captioner={options.captioner!r} is no network to plan for; "
      f"expected {' or '.join(caption_recipe.KINDS)}"
    )
  ways = sharding.batch_ways(mesh)
  if options.batch_size % ways:
    raise ValueError(
      f"caption.batch_size={options.batch_size} does not divide over {ways} "
      "devices of a host"
    )
  chosen = {
    field.name: options[field.name]
    for field in dataclasses.fields(caption_recipe.Recipe)
    if field.name in options
  }
  recipe = caption_recipe.Recipe(options.captioner, seed=config.seed, **chosen)
  model = options.model or caption_recipe.KINDS[recipe.kind].model
  with unread.weights():
    loaded = hub.load(model, recipe.kind, mesh=mesh, dtype=recipe.dtype)
  structure, _ = kinds.structure(recipe.kind, loaded.config, dtype=recipe.dtype)
  prompt = prompt_of(loaded.config, recipe)
  size = loaded.config.vision.image_size
  pixels = jax.ShapeDtypeStruct(
    (options.batch_size, size, size, 3),
    jnp.uint8,
    sharding=sharding.batch_layout(mesh),
  )
  image = loaded.config.queries if recipe.kind == "blip2" else 0
  return Work(
    image_captioner.writer(structure, loaded.config, prompt, recipe),
    loaded.params,
    pixels,
    jax.eval_shape(lambda: jax.random.key(config.seed)),
    image + prompt.shape[1],
    recipe.length,
  )


def prompt_of(config: Any, recipe: caption_recipe.Recipe) -> np.ndarray:
  """Ids of about as many tokens as the prompt has, [1 T]: any words do."""
  words = recipe.text.replace(caption_recipe.IMAGE, "").split()
  ids = np.full(round(TOKENS_A_WORD * len(words)), 10)
  image = [] if recipe.kind == "blip2" else [config.image_token] * config.places
  tokens = np.concatenate([[config.text.bos], image, ids])
  return tokens[None].astype(np.int32)


def plan(
  config: ml_collections.ConfigDict,
  target: hardware.Target,
  devices: list[Any],
) -> dict[str, Any]:
  """A plan of captioning: hosts work apart, so that one of them is compiled.

  A caption costs its longest length: rows that have ended wait for others.
  """
  hosts = target.count * target.slice.hosts
  mine = [one for one in devices if one.process_index == 0]
  mesh = sharding.make_mesh(**config.caption.mesh, devices=mine)
  work = abstract(config, mesh)
  log.announce(
    "plan",
    f"{config.caption.captioner} on {target.name}: {hosts} hosts of "
    f"{len(mine)} chips, {config.caption.batch_size} images each",
  )
  started = time.perf_counter()
  with jax.set_mesh(mesh):
    traced = jax.jit(work.write).trace(work.params, work.pixels, work.key)
    lowered = traced.lower()
    log.announce("plan", "compiling, which may take some minutes")
    program = estimate.compile(lowered, target.slice.hardware.name)
  jaxpr, size = traced.jaxpr.jaxpr, config.caption.batch_size
  made = planned.Compiled(
    program,
    lowered,
    mesh,
    {"weights": work.params, "batch": work.pixels},
    # All tokens but the first are written in the loop.
    flops.of_jaxpr(jaxpr, work.length - 1),
    jaxpr,
    time.perf_counter() - started,
  )
  found = {
    "captioner": config.caption.captioner,
    "slice": target.name,
    "chips": target.chips,
    "hosts": hosts,
    "mesh": {name: int(size) for name, size in mesh.shape.items()},
    "batch_size": size,
    "prompt_tokens": work.prompt,
    "caption_tokens": work.length,
    "parameters": tree.count(work.params),
    "compile_seconds": made.seconds,
    "flops": made.operations,
    "images": config.plan.images,
  } | planned.memory(target, made)
  if not found["fits"]:
    return found
  text = program.as_text()
  if config.plan.text:
    files.write_atomic(config.plan.text, text)
  cost = hlo_cost.cost(
    text,
    devices=mesh.size,
    kernels=schedules.of(jaxpr, target.slice),
    trips=work.length - 1,
  )
  parts = estimate.seconds(cost, target)
  seconds, chip = sum(parts.values()), target.slice.hardware
  price = config.plan.price or chip.price
  hours = config.plan.images / (hosts * size) * seconds / 3600
  total = max(sum(cost.cycles.values()), 1)
  scopes = {
    {"lm": "prompt", "while": "caption"}.get(name, name): cycles / total
    for name, cycles in cost.scopes.items()
  }
  return found | {
    "cycles": total,
    "cycles_parts": cost.cycles,
    "cycles_share_of_scopes": scopes,
    "batch_s": seconds,
    "batch_s_parts": parts,
    "mfu": made.operations / seconds / (chip.flops * mesh.size),
    "images_per_s_per_chip": size / seconds / mesh.size,
    "hours": hours,
    "chip_hours": hours * target.chips,
    "dollars": hours * target.chips * price if price else None,
    "energy": planned.power(config.plan, target, hours),
    **planned.traffic(made, cost),
    "assumptions": planned.assumptions(config.plan, target),
  }
