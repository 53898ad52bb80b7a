# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import flops, sharding
from cc_jax.models import layers, products


def normal(*shape, dtype=jnp.float32, seed=0):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(x, dtype)


@pytest.mark.parametrize("rows", [(5,), (2, 3), (2, 64, 2), ()])
@pytest.mark.parametrize("out", [3, 4, 6])
def test_gradients_are_those_of_the_product(rows, out):
  x, kernel = normal(*rows, 4), normal(4, out, seed=1)
  found, ours = jax.vjp(products.product, x, kernel)
  expected, theirs = jax.vjp(jnp.matmul, x, kernel)
  parity.check(found, expected, parity.LAYER)
  cotangent = normal(*rows, out, seed=2)
  for one, other in zip(ours(cotangent), theirs(cotangent), strict=True):
    parity.check(one, other, parity.LAYER)


@pytest.mark.parametrize(
  ("rows", "out", "shape"),
  [(128, 4, "[4,8]"), (128, 16, "[8,16]"), (8, 4, "[8,4]")],
)
def test_the_compiled_gradient_moves_neither_matrix(rows, out, shape):
  x, cotangent = normal(2, rows, 8), normal(2, rows, out)
  text = jax.jit(products.kernel_gradient).lower(x, cotangent).compile()
  (product,) = [line for line in text.as_text().splitlines() if " dot(" in line]
  assert "lhs_contracting_dims={0}, rhs_contracting_dims={0}" in product
  assert shape in product.split(" dot(")[0]


def slope(width, out, dtype="float32"):
  layer = layers.linear(width, out, dtype=dtype, rngs=layers.keys(0))
  # A function of its own, since JAX keeps what it has traced of one.
  return lambda x: jax.grad(lambda layer, x: layer(x).sum(), (0, 1))(layer, x)


def test_layers_do_so_on_cpus_in_float32(monkeypatch):
  def traced(width, out, dtype="float32"):
    f = slope(width, out, dtype)
    return str(jax.make_jaxpr(f)(normal(2, 3, width, dtype=dtype)))

  one_axis = "f32[6,8]"
  assert one_axis in traced(8, 4)
  assert "bf16[6,8]" not in traced(8, 4, "bfloat16")
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  assert one_axis not in traced(8, 4)


def test_operations_are_counted_as_before():
  assert flops.count(slope(4, 8), normal(3, 4)) == 3 * 2 * 3 * 4 * 8
