# SPDX-License-Identifier: Apache-2.0
from flax import nnx
import jax
import jax.numpy as jnp
import pytest
import tiny_models

from cc_jax.core import tree
from cc_jax.models import kinds

TINY = tiny_models.TINY


@pytest.mark.parametrize(
  ("kind", "name", "count"),
  [
    ("autoencoder", "SD", 83_653_863),
    ("clip_text", "SD2", 340_387_840),
  ],
)
def test_presets_are_as_large_as_published(kind, name, count):
  _, shapes = kinds.structure(kind, kinds.preset(kind, name), "bfloat16")
  assert tree.count(shapes) == count


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_made_network_has_the_structure_of_its_config(kind):
  made = jax.eval_shape(
    lambda: kinds.make(kind, TINY[kind], "bfloat16", rngs=nnx.Rngs(1))
  )
  expected, shapes = kinds.structure(kind, TINY[kind], dtype=jnp.bfloat16)
  assert tree.split(made)[0] == expected
  assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}


def test_options_of_a_kind_reach_its_network():
  kept, _ = kinds.structure("unet", TINY["unet"], remat="full")
  plain, _ = kinds.structure("unet", TINY["unet"])
  assert kept.paths == plain.paths
  assert kept.treedef != plain.treedef
