# SPDX-License-Identifier: Apache-2.0
"""Tolerances of parity, written once, and the way there and back by files."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cc_jax.core import config_json, convert, tree, weight_files

LAYER = 2e-5
MODEL = 1e-4


def check(ours, theirs, tolerance):
  """Largest difference, against the largest value of the reference."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
  error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6)
  assert error < tolerance, f"{error:.1e} of {tolerance:.0e}"


def scramble(params, seed=0):
  """Random weights in place of initial ones, which may hide what is unused."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    fan = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
    noise = rng.standard_normal(leaf.shape) / max(fan, 1) ** 0.5
    small = 0.1 if len(leaf.shape) == 1 else 1.0
    one = 1.0 if path.endswith("scale") else 0.0
    return jnp.asarray(one + small * noise, jnp.float32)

  flat = tree.flatten(params)
  return tree.unflatten({path: one(path, leaf) for path, leaf in flat.items()})


def abstract(make):
  """Structure and shapes of the module that `make()` returns, no memory."""
  return tree.split(jax.eval_shape(make))


def random(make):
  """(module, weights): what `make()` returns, with random weights."""
  structure, shapes = abstract(make)
  params = scramble(shapes)
  return tree.merge(structure, params), params


def save(folder, params, config, names, table, stem):
  """Writes weights and config as the reference library reads them."""
  weight_files.save_folder(
    str(folder),
    convert.export_weights(params, names),
    config_json.export_config(config, table),
    stem=stem,
  )


def load(folder, make, config_type, names, table):
  """Reads a folder that the reference library wrote: (config, module)."""
  theirs = json.loads((pathlib.Path(folder) / "config.json").read_text())
  config = config_json.import_config(theirs, config_type, table)
  structure, shapes = abstract(lambda: make(config))
  tensors = weight_files.open_tensors(str(folder))
  return config, tree.merge(
    structure, convert.import_weights(tensors, shapes, names)
  )


def adopt(module, shapes, names):
  """The weights of a torch module as ours, by a file in between."""
  state = {name: array.numpy() for name, array in module.state_dict().items()}
  with tempfile.TemporaryDirectory() as folder:
    weight_files.save_folder(folder, state, {}, stem="model")
    return convert.import_weights(
      weight_files.open_tensors(folder), shapes, names
    )


def meta_shapes(make):
  """Names and shapes of a torch module's weights; `make()` needs no memory."""
  with torch.device("meta"):
    state = make().state_dict()
  return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_config(written, theirs):
  """What we write is what the reference library would write, key by key."""
  plain = json.loads(json.dumps(dict(written)))
  theirs = json.loads(json.dumps(dict(theirs)))
  differ = {
    key: (plain[key], theirs.get(key, "absent"))
    for key in plain
    if not key.startswith("_") and plain[key] != theirs.get(key, "absent")
  }
  assert not differ, differ
