# SPDX-License-Identifier: Apache-2.0
"""A PixArt made of a DiT: equal at one timestep, and the paper's formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import tree
from cc_jax.models import dit, kinds, layers, patches, pixart, reparameterise

SHAPE = dict(
  sample_size=8, out_channels=8, heads=2, head_width=12, depth=3, eps=1e-6
)
DIT = dit.Config(**SHAPE, classes=5, frequency_shift=0)
PIXART = pixart.Config(**SHAPE, caption_width=10)
MICRO = dataclasses.replace(PIXART, micro_conditions=True)


def scrambled(kind, config, seed=0):
  """Weights as after some training: none of them zero."""
  return parity.scramble(kinds.structure(kind, config)[1], seed)


def network(kind, config, params):
  return tree.merge(kinds.structure(kind, config)[0], params)


def inputs(config, rows=3, tokens=4):
  rng = np.random.default_rng(0)
  xt = jnp.asarray(rng.normal(size=(rows, 8, 8, 4)), jnp.float32)
  context = rng.normal(size=(rows, tokens, config.source_width))
  more = {"context": jnp.asarray(context, jnp.float32)}
  if config.micro_conditions:
    more |= {"sizes": jnp.full((rows, 2), 300.0), "ratio": jnp.full(rows, 0.6)}
  return xt, more


def both(config, source, t, none="null", theirs=DIT):
  """Outputs of a DiT without a class, and of the PixArt made of it."""
  params = scrambled("dit", source)
  fresh = scrambled("pixart", config, seed=7)
  made = reparameterise.from_dit(params, source, fresh, none=none)
  if none == "zero":
    params["label"]["embedding"] = params["label"]["embedding"].at[-1].set(0)
  xt, more = inputs(config)
  at = jnp.full(len(xt), float(t))
  labels = jnp.full(len(xt), source.classes)
  expected = network("dit", source, params)(xt, at, labels)
  return expected, network("pixart", config, made)(xt, at, **more)


@pytest.mark.parametrize("none", reparameterise.CLASSES)
@pytest.mark.parametrize("config", [PIXART, MICRO], ids=["plain", "micro"])
def test_at_the_timestep_it_is_the_dit_whatever_the_caption(none, config):
  expected, found = both(config, DIT, reparameterise.TIMESTEP, none)
  assert float(jnp.std(expected)) > 0.01
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_it_is_so_too_for_a_dit_with_diffusers_frequencies():
  source = dataclasses.replace(DIT, frequency_shift=1)
  expected, found = both(PIXART, source, reparameterise.TIMESTEP)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_elsewhere_it_is_another_network():
  expected, found = both(PIXART, DIT, 100)
  assert float(jnp.max(jnp.abs(found - expected))) > 1e-3


def test_tables_are_the_papers_formula():
  """E_i = S_i(500) - S(500), by hand from the weights of the DiT."""
  params = scrambled("dit", DIT)
  fresh = scrambled("pixart", PIXART, seed=7)
  made = reparameterise.from_dit(params, DIT, fresh)
  arrays = jax.tree.map(np.asarray, params)
  silu = lambda x: x / (1 + np.exp(-x))
  half = np.exp(-np.log(10_000) * np.arange(128) / 128)
  x = np.concatenate([np.cos(500 * half), np.sin(500 * half)])
  time = arrays["time"]
  x = silu(x @ time["up"]["kernel"] + time["up"]["bias"])
  x = x @ time["down"]["kernel"] + time["down"]["bias"]
  condition = x + arrays["label"]["embedding"][5]
  layer = arrays["blocks"]["modulation"]
  vectors = [
    silu(condition) @ layer["kernel"][i] + layer["bias"][i] for i in range(3)
  ]
  tables = np.stack(vectors) - vectors[0]
  found = np.asarray(made["blocks"]["table"]).reshape(3, -1)
  np.testing.assert_allclose(found, tables, atol=1e-5)
  # Of the block whose layer is the shared one it is nothing at all.
  assert np.abs(found[0]).max() < 1e-6
  layer = arrays["final_modulation"]
  final = silu(condition) @ layer["kernel"] + layer["bias"]
  expected = final.reshape(2, -1) - condition
  np.testing.assert_allclose(made["final_table"], expected, atol=1e-5)
  for name in ("kernel", "bias"):
    assert not np.any(made["blocks"]["attn2"]["out"][name])
    kept = fresh["blocks"]["attn2"]["q"][name]
    np.testing.assert_array_equal(made["blocks"]["attn2"]["q"][name], kept)


def test_all_arrays_of_a_pixart_are_made_in_their_shapes():
  fresh = jax.eval_shape(
    lambda: tree.split(kinds.make("pixart", MICRO, rngs=layers.keys(0)))[1]
  )
  made = jax.eval_shape(
    lambda source, fresh: reparameterise.from_dit(source, DIT, fresh),
    kinds.structure("dit", DIT)[1],
    fresh,
  )
  assert jax.tree.structure(made) == jax.tree.structure(fresh)
  shapes = lambda x: jax.tree.map(lambda leaf: leaf.shape, x)
  assert shapes(made) == shapes(fresh)


def test_the_xl_models_go_together():
  reparameterise.check(dit.DIT_XL_2, pixart.XL_256)
  assert patches.SINUSOIDS == 256


@pytest.mark.parametrize(
  "field", [{"depth": 4}, {"heads": 4}, {"out_channels": 4}, {"patch": 4}]
)
def test_networks_of_other_shapes_are_refused(field):
  (name,) = field
  other = dataclasses.replace(PIXART, **field)
  with pytest.raises(ValueError, match=f"cannot become a PixArt of {name}="):
    reparameterise.check(DIT, other)


def test_a_class_of_none_is_one_of_two():
  with pytest.raises(ValueError, match="null or zero"):
    reparameterise.from_dit({}, DIT, {}, none="first")
