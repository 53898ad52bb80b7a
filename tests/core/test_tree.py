# SPDX-License-Identifier: Apache-2.0
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.core import tree


class Pair(nnx.Module):
  """A list of layers and a branch that may be absent."""

  def __init__(self, rngs, third=False):
    self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])
    self.third = nnx.Linear(2, 3, rngs=rngs) if third else None

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return x


PATHS = ["layers.0.bias", "layers.0.kernel", "layers.1.bias", "layers.1.kernel"]


def test_paths_of_a_module_are_its_attributes():
  assert sorted(tree.flatten(Pair(nnx.Rngs(0)))) == PATHS


def test_unflatten_inverts_flatten():
  nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
  assert tree.flatten(nested) == {"a.b": 1, "a.c.d": 2, "e": 3}
  assert tree.unflatten(tree.flatten(nested)) == nested


def test_merge_inverts_split():
  model = Pair(nnx.Rngs(0))
  structure, params = tree.split(model)
  assert type(params) is dict
  x = jnp.arange(4.0).reshape(2, 2)
  np.testing.assert_array_equal(tree.merge(structure, params)(x), model(x))


def test_more_than_ten_layers_keep_their_places():
  structure, _ = tree.split([jnp.zeros(1)] * 12)
  params = {str(place): jnp.array([place]) for place in reversed(range(12))}
  merged = tree.merge(structure, params)
  assert [int(leaf[0]) for leaf in merged] == list(range(12))


def test_shapes_split_without_memory():
  shapes = jax.eval_shape(lambda: Pair(nnx.Rngs(0)))
  structure, abstract = tree.split(shapes)
  assert sorted(tree.flatten(abstract)) == PATHS
  assert tree.count(abstract) == 12
  weights = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract)
  assert tree.merge(structure, weights)(jnp.ones((1, 2))).shape == (1, 2)


def test_weights_of_another_module_are_refused():
  structure, _ = tree.split(Pair(nnx.Rngs(0)))
  _, other = tree.split(Pair(nnx.Rngs(0), third=True))
  with pytest.raises(ValueError, match=r"2 paths differ, first third\.bias"):
    tree.merge(structure, other)


def test_cast_leaves_integers_alone():
  cast = tree.cast({"a": jnp.ones(2), "n": jnp.ones(2, int)}, jnp.bfloat16)
  assert cast["a"].dtype == jnp.bfloat16
  assert cast["n"].dtype == jnp.int32
