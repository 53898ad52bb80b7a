# SPDX-License-Identifier: Apache-2.0
"""The weights that a text-to-image model starts from (`train.init`).

Those of the same networks; and for PixArt-alpha, whose training has stages,
those of a DiT (models/reparameterise.py) or of a PixArt of another size, which
may know no micro-conditions yet. What is new then keeps its initial weights,
with no effect at first.

Weights have licences. Of a model for commercial use none may be of weights
that are not.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from cc_jax.core import files, log, sharding
from cc_jax.data import licences
from cc_jax.models import (
  dit,
  families,
  hub,
  published,
  reparameterise,
)

# What weights do not depend on: positions are computed, and what is new is new.
FREE = (
  "sample_size",
  "interpolation_scale",
  "micro_conditions",
  "null_tokens",
)
NEW = ("size", "ratio", "null_caption")


def load(
  parts: Mapping[str, tuple[str, Any]],
  config: ml_collections.ConfigDict,
  name: str,
  params: Mapping[str, Any],
) -> dict[str, Any]:
  """The params of a task to start from.

  Args:
    parts: of the task.
    config: of the run.
    name: an exported folder, the one network in it that is trained, a file of
      its weights, or a row of models/published.py.
    params: initial ones, for what the weights there do not have.

  Raises:
    ValueError: no weights there, those of another architecture, or of a licence
      that the model's data do not have.
  """
  check_licence(name, config.catalogue.collection)
  return {
    part: one(
      place(name, part), kind, wanted, params[part], config.latent_diffusion
    )
    for part, (kind, wanted) in parts.items()
  }


def place(name: str, part: str) -> str:
  """Where a network is: in its folder of a pipeline, or there itself."""
  if name in published.TABLE:
    return name
  inside = f"{name}/{families.FOLDERS[part]}"
  if files.listing(inside):
    return inside
  # Of a pipeline that does not have the network, as DiT's has no text tower.
  whole = files.path(f"{name}/model_index.json").exists()
  return "" if whole else name


def one(
  where: str,
  kind: str,
  wanted: Any,
  fresh: Any,
  options: ml_collections.ConfigDict,
) -> Any:
  """The weights of one network; the initial ones where there are none."""
  mesh = sharding.current_mesh()
  if not where:
    log.announce("train", f"no {kind} to start from; random weights")
    return fresh
  if kind != "pixart":
    return hub.load(where, kind, expect=wanted, mesh=mesh).params
  if is_dit(where):
    loaded = hub.load(where, "dit", mesh=mesh)
    reparameterise.check(loaded.config, wanted)
    convert = lambda source, fresh: reparameterise.from_dit(
      source, loaded.config, fresh, none=options.init_class
    )
    log.announce("train", f"{where}, a DiT, becomes a PixArt")
    return jax.jit(convert)(loaded.params, fresh)
  found = hub.config(where, kind)
  same = {field: getattr(found, field) for field in FREE}
  expect = dataclasses.replace(wanted, **same)
  loaded = hub.load(where, kind, expect=expect, mesh=mesh).params
  return resized(loaded, fresh)


def resized(
  loaded: Mapping[str, Any], fresh: Mapping[str, Any]
) -> dict[str, Any]:
  """A PixArt's weights for another size, with what that has besides."""
  made = {name: x for name, x in loaded.items() if name not in NEW}
  for name in NEW:
    if name not in fresh:
      continue
    new = loaded.get(name, fresh[name])
    if name == "null_caption" and new.shape != fresh[name].shape:
      new = fresh[name]
    if name not in loaded and isinstance(new, Mapping):
      new = {**new, "down": jax.tree.map(jnp.zeros_like, new["down"])}
    made[name] = new
  return made


def is_dit(where: str) -> bool:
  """Whether the weights there are of a DiT.

  Raises:
    ValueError: there are none.
  """
  if where in published.TABLE:
    return published.TABLE[where].kind == "dit"
  folder = files.path(where)
  described = folder / "config.json"
  if described.exists():
    fields = json.loads(described.read_text())
    names = (dit.CONFIG.fixed["_class_name"], "DiTTransformer2DModel")
    return (
      fields.get("_class_name") in names
      or fields.get("norm_type") == dit.CONFIG.fixed["norm_type"]
    )
  try:
    hub.config(where, "dit")
  except ValueError:
    return False
  return True


def check_licence(name: str, collection: str) -> None:
  """Refuses weights that a model of a collection may not be made of.

  The licence is that of the row, or what the card (README.md) of the folder
  states. A DiT in the published shape that states none is taken for the
  published one, which is CC-BY-NC.

  Args:
    name: as of `load`.
    collection: "commercial" or "non-commercial", of the images.

  Raises:
    ValueError: they are not for commercial use, and the model is.
  """
  stated = licence_of(name)
  guess = ""
  if not stated and looks_published(name):
    stated = published.TABLE["dit-xl-2/transformer"].licence
    guess = (
      " (its shape is that of facebook/DiT-XL-2; where it is your own, state "
      "its licence in its README.md)"
    )
  found = licences.parse(stated)
  if found and not found.commercial and collection == "commercial":
    raise ValueError(
      f"train.init={name!r} is {found.id}{guess}: not for a model whose "
      "catalogue.collection is 'commercial'; train the first stage on images "
      "that are, or set catalogue.collection='non-commercial'"
    )


def licence_of(name: str) -> str:
  """The licence that a row or a model card states; "" for none."""
  if name in published.TABLE:
    return published.TABLE[name].licence
  folder = os.path.normpath(name)
  for where in (folder, os.path.dirname(folder)):
    card = files.path(f"{where}/README.md")
    if card.exists():
      head = re.match(r"---\n(.*?)\n---", card.read_text(), re.DOTALL)
      line = head and re.search(r"^license: *(.+)$", head[1], re.MULTILINE)
      return line[1].strip("'\" ") if line else ""
  return ""


def looks_published(name: str) -> bool:
  """Whether a network is a DiT of the published shape, and no export of ours.

  An export of ours has a card, with our tag.
  """
  where = place(name, "transformer")
  if not where or not files.path(where).exists() or not is_dit(where):
    return False
  card = files.path(f"{name}/README.md")
  if card.exists() and "\n- cc_jax\n" in card.read_text():
    return False
  found, shape = hub.config(where, "dit"), dit.DIT_XL_2
  names = (*reparameterise.SAME, "classes")
  return all(getattr(found, n) == getattr(shape, n) for n in names)
