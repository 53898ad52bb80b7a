# SPDX-License-Identifier: Apache-2.0
"""Sums of the bits of arrays, by which a damaged one is found out.

The sum of an array is over its elements, each taken as an unsigned whole number
b and weighed by its place i in row-major order: b (2 i + 1) modulo 2^32. The
factors are odd, so a change of any one element changes the sum. It does not
depend on how an array is split over devices, which compute it where it lies.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def sums(arrays: Mapping[str, Any]) -> dict[str, int]:
  """The sum of each array, of JAX or NumPy, by its name.

  Every process of a run must call this if arrays lie on devices of several.

  Raises:
    jax.errors.JaxRuntimeError: what made an array failed, on any device here.
  """
  there = {k: x for k, x in arrays.items() if isinstance(x, jax.Array)}
  # All at once: there may be thousands. Of each one copy is read; that others
  # failed, as when a host is lost, is to be known before hosts save together.
  made = jax.block_until_ready(_on_devices(list(there.values())))
  found = dict(zip(there, jax.device_get(made), strict=True))
  return {
    name: int(found[name]) if name in found else _here(array)
    for name, array in arrays.items()
  }


@jax.jit
def _on_devices(arrays: list[jax.Array]) -> list[jax.Array]:
  with jax.named_scope("sums"):
    return [_sum(array, jnp) for array in arrays]


def _here(array: Any) -> int:
  # Products are meant to wrap around.
  with np.errstate(over="ignore"):
    return int(_sum(np.asarray(array), np))


def _sum(array, numpy):
  """With NumPy, or with JAX's."""
  if array.dtype == bool:
    array = array.astype("uint8")
  bits = array.view(f"uint{8 * array.dtype.itemsize}").astype("uint32")
  place, stride = numpy.zeros((1,) * array.ndim, "uint32"), 1
  for axis in reversed(range(array.ndim)):
    along = numpy.arange(array.shape[axis], dtype="uint32")
    shape = [-1 if other == axis else 1 for other in range(array.ndim)]
    place = place + along.reshape(shape) * np.uint32(stride % 2**32)
    stride *= array.shape[axis]
  return numpy.sum(bits * (2 * place + 1), dtype="uint32")
