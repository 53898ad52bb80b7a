# SPDX-License-Identifier: Apache-2.0
"""Trees of arrays, addressed by paths such as "unet.down.0.conv.kernel".

Weights are nested dicts with string keys wherever they are stored, laid out or
optimised; a network is one of them put into the shape of its module.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def path(keys: tuple) -> str:
  """The path of a leaf, from the keys that JAX gives for it."""
  names = [jax.tree_util.keystr((key,), simple=True) for key in keys]
  # A Flax variable is a tree of its own, with one leaf called "value".
  if len(names) > 1 and names[-1] == "value":
    names = names[:-1]
  return ".".join(names)


def flatten(tree: Any) -> dict[str, Any]:
  """Leaves by path, in JAX's order.

  >>> flatten({"norm": {"scale": 1, "bias": 0}})
  {'norm.bias': 0, 'norm.scale': 1}
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path(keys): leaf for keys, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts from leaves by path.

  >>> unflatten({"norm.bias": 0, "norm.scale": 1})
  {'norm': {'bias': 0, 'scale': 1}}
  """
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def count(tree: Any) -> int:
  """Number of scalars in a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def cast(tree: Any, dtype: Any) -> Any:
  """Floating leaves in another type; integers stay as they are."""

  def one(leaf):
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(dtype) if floating else leaf

  return jax.tree.map(one, tree)


class Structure(NamedTuple):
  """What remains of a module when its arrays are taken away."""

  treedef: Any
  paths: tuple[str, ...]


def split(model: Any) -> tuple[Structure, dict[str, Any]]:
  """Takes a module apart into its structure and its weights.

  Works as well on the result of `jax.eval_shape`, whose weights are shapes.
  """
  flat = flatten(model)
  return Structure(jax.tree.structure(model), tuple(flat)), unflatten(flat)


def merge(structure: Structure, params: Mapping[str, Any]) -> Any:
  """Puts weights into the module they belong to: the inverse of `split`."""
  flat = flatten(params)
  if flat.keys() != set(structure.paths):
    wrong = sorted(flat.keys() ^ set(structure.paths))
    raise ValueError(
      f"weights of another model: {len(wrong)} paths differ, first {wrong[0]}"
    )
  leaves = [flat[name] for name in structure.paths]
  return jax.tree.unflatten(structure.treedef, leaves)
