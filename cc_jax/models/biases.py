# SPDX-License-Identifier: Apache-2.0
"""Biases of arrays that lie in memory with channels before tokens."""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Bytes of a number up to which a device is said to be one with matrix units.
SHORT = 2


class Projection(nnx.Linear):
  """[B T D] -> [B T F], of which attention's kernels read channels first."""

  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
    if self.bias is None or jnp.dtype(self.dtype).itemsize > SHORT:
      return super().__call__(x)
    kernel, bias = (w[...].astype(self.dtype) for w in (self.kernel, self.bias))
    return add_bias(x.astype(self.dtype) @ kernel, bias)


@jax.custom_vjp
def add_bias(
  x: Float[Array, "B T F"], bias: Float[Array, "F"]
) -> Float[Array, "B T F"]:
  """x + bias, of an x that lies in memory with channels before tokens.

  The bias's gradient is a sum over what is then the last axis: a product with
  ones, since a TPU's vector units take long for sums across their lanes.
  """
  return x + bias


def _bias_gradient(_, cotangent):
  ones = jnp.ones((cotangent.shape[1], 8), cotangent.dtype)
  sums = jnp.einsum(
    "btf,tn->bfn", cotangent, ones, preferred_element_type=jnp.float32
  )
  return cotangent, sums[..., 0].sum(0).astype(cotangent.dtype)


add_bias.defvjp(lambda x, bias: (x + bias, None), _bias_gradient)
