# SPDX-License-Identifier: Apache-2.0
"""Products of matrices, for devices that do some slowly.

On CPUs XLA has quick ones where the sum is over the last axis of the first
matrix. The gradient of weights is a sum over rows, the first axis of both: by
Eigen, at half the rate where widths are powers of two. So what a layer reads is
written in the other order beforehand, where it is no wider than what it gives;
of wider maps that costs more than it saves.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import sharding


def dot_general(
  x: Float[Array, "*B D"],
  kernel: Float[Array, "D F"],
  dimensions: Any,
  **options: Any,
) -> Float[Array, "*B F"]:
  """`jax.lax.dot_general` of a linear layer, so that its gradients are fast."""
  narrow = kernel.shape[0] <= kernel.shape[1] and x.dtype == jnp.float32
  if narrow and sharding.platform() == "cpu":
    return product(x, kernel)
  return jax.lax.dot_general(x, kernel, dimensions, **options)


@jax.custom_vjp
def product(
  x: Float[Array, "*B D"], kernel: Float[Array, "D F"]
) -> Float[Array, "*B F"]:
  """x @ kernel; derivatives are by reverse mode only."""
  return x @ kernel


def _forward(x, kernel):
  return x @ kernel, (x, kernel)


def _backward(saved, dy):
  x, kernel = saved
  rows, slopes = (one.reshape(-1, one.shape[-1]) for one in (x, dy))
  # Without a barrier the compiler would read the columns of x again.
  columns = jax.lax.optimization_barrier(rows.T)
  return dy @ kernel.T, columns @ slopes


product.defvjp(_forward, _backward)
