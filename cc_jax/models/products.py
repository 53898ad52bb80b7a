# SPDX-License-Identifier: Apache-2.0
"""The one entry to products with the kernel of a layer, by device.

The gradient of a kernel sums over all rows, the first axes of both matrices. Of
several such axes XLA on CPUs first writes one matrix in another order, and then
takes an order that is half as fast: 7.1 ms for 8 x 256 rows, 128 and 512
columns on one core with AVX-512, 2.8 where the rows are one axis, which is what
its operations take. With the wider matrix first one axis is slow as well: 5.3
and 2.7 ms.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cc_jax.core import sharding

# Of fewer rows the other order of a product costs more than it saves.
FEW = 256


def dot_general(
  x: Float[Array, "*B D"],
  kernel: Float[Array, "D F"],
  dimensions: Any,
  **options: Any,
) -> Float[Array, "*B F"]:
  """`jax.lax.dot_general` of a linear layer, in the way fast on the device."""
  if sharding.platform() == "cpu" and x.dtype == kernel.dtype == jnp.float32:
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


def _backward(saved, cotangent):
  x, kernel = saved
  return cotangent @ kernel.T, kernel_gradient(x, cotangent)


product.defvjp(_forward, _backward)


def kernel_gradient(
  x: Float[Array, "*B D"], cotangent: Float[Array, "*B F"]
) -> Float[Array, "D F"]:
  """Of `product`: the rows are one axis, the narrower matrix is the first."""
  rows, slopes = (one.reshape(-1, one.shape[-1]) for one in (x, cotangent))
  if rows.shape[1] <= slopes.shape[1] or len(rows) < FEW:
    return jnp.einsum("nd,nf->df", rows, slopes)
  turned = jnp.einsum("nf,nd->fd", slopes, rows)
  # Without a barrier the compiler exchanges the two again.
  return jax.lax.optimization_barrier(turned).T
