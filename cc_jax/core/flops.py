# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a function, counted on what JAX traces.

A compiler's own count takes the body of a loop once and a custom kernel for
nothing. This one multiplies by the length of a scan, and counts what the
hardware's peak is stated for: matrix products and convolutions, two operations
for each multiplication and addition.
"""

from collections.abc import Callable
import math
from typing import Any

import jax


def count(f: Callable[..., Any], *args: Any) -> int:
  """Operations of `f(*args)`; arrays may be shapes, nothing is run.

  A while loop counts once, since its length is not known.

  >>> import jax.numpy as jnp
  >>> count(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
  60
  """
  return _jaxpr(jax.make_jaxpr(f)(*args).jaxpr)


def _jaxpr(jaxpr: Any) -> int:
  return sum(map(_equation, jaxpr.eqns))


def _equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2 * inner * math.prod(equation.outvars[0].aval.shape)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name == "cond":
    return max(_jaxpr(branch.jaxpr) for branch in params["branches"])
  times = params["length"] if name == "scan" else 1
  inner = jax.tree.leaves(
    list(params.values()), is_leaf=lambda x: _open(x) is not None
  )
  return times * sum(_jaxpr(_open(x)) for x in inner if _open(x) is not None)


def _convolution(equation: Any) -> int:
  """Each output is a sum over a window of the kernel and input channels.

  Of a kernel dilated with zeros, or over an input that is, as in gradients of
  convolutions with a stride, only products that are not zero by construction
  are counted.
  """
  params = equation.params
  kernel = equation.invars[1].aval.shape
  numbers = params["dimension_numbers"]
  output = math.prod(equation.outvars[0].aval.shape)
  window = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
  return 2 * output * window // math.prod(params["lhs_dilation"])


def _open(value: Any) -> Any:
  """The equations of a value, if it has any."""
  value = getattr(value, "jaxpr", value)
  return value if hasattr(value, "eqns") else None
