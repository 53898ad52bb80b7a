# SPDX-License-Identifier: Apache-2.0
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parity

from cc_jax.models import biases, layers


def test_a_projection_is_a_linear_layer_with_its_gradients(monkeypatch):
  # As if float32 were short: sums of 16 bits differ by their order.
  monkeypatch.setattr(biases, "SHORT", 4)
  kinds = dict(dtype=jnp.float32, rngs=layers.keys(0))
  ours = layers.linear(24, 16, kind=biases.Projection, **kinds)
  ours.bias[...] = jnp.linspace(-1, 1, 16)
  plain = nnx.merge(
    nnx.graphdef(layers.linear(24, 16, **kinds)), nnx.state(ours)
  )
  rng = np.random.default_rng(0)
  x, towards = (
    jnp.asarray(rng.normal(size=(3, 40, n)), jnp.float32) for n in (24, 16)
  )
  found, expected = (
    jax.vjp(lambda layer, x: layer(x), layer, x) for layer in (ours, plain)
  )
  np.testing.assert_array_equal(found[0], expected[0])
  for one, other in zip(
    jax.tree.leaves(found[1](towards)),
    jax.tree.leaves(expected[1](towards)),
    strict=True,
  ):
    parity.check(one, other, parity.LAYER)


def test_a_gradient_of_16_bits_is_the_exact_sum_rounded_once():
  x, towards = jnp.asarray(
    np.random.default_rng(0).normal(size=(2, 3, 500, 16)), jnp.bfloat16
  )
  _, backward = jax.vjp(biases.add_bias, x, jnp.zeros(16, jnp.bfloat16))
  exact = np.asarray(towards, np.float64).sum((0, 1))
  found = np.asarray(backward(towards)[1], np.float64)
  np.testing.assert_allclose(found, exact, rtol=2.0**-8)
