# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a function, counted on what JAX traces.

A compiler's own count takes the body of a loop once and a custom kernel for
nothing. This one multiplies by the length of a scan, and counts what the
hardware's peak is stated for: matrix products and convolutions, two operations
for each multiplication and addition.
"""

from collections.abc import Callable, Iterator
import math
import re
from typing import Any, NamedTuple

import jax


def count(f: Callable[..., Any], *args: Any, trips: int = 1) -> int:
  """Operations of `f(*args)`; arrays may be shapes, nothing is run.

  Those of all devices together, and of a Pallas kernel at all of its grid.

  Args:
    f: a function of arrays.
    *args: its arguments.
    trips: how often a while loop runs whose length is not known.

  >>> import jax.numpy as jnp
  >>> count(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
  60
  """
  return of_jaxpr(jax.make_jaxpr(f)(*args).jaxpr, trips)


def of_jaxpr(jaxpr: Any, trips: int = 1) -> int:
  """`count` of what has been traced already."""
  return sum(_equation(equation, trips) for equation in jaxpr.eqns)


def by_scope(jaxpr: Any, trips: int = 1) -> dict[str, int]:
  """`of_jaxpr`, by the outermost named scope, "" for none.

  Forward and backward of a scope are one; a loop in none is "while", as
  compiled programs have it.
  """
  found: dict[str, int] = {}
  for equation in jaxpr.eqns:
    operations = _equation(equation, trips)
    if operations:
      scope = _scope(str(equation.source_info.name_stack))
      if not scope and equation.primitive.name in ("scan", "while"):
        scope = "while"
      found[scope] = found.get(scope, 0) + operations
  return found


def _scope(stack: str) -> str:
  """The first scope of "transpose(jvp(up_1))/resnet"."""
  return re.sub(r"^(\w+\()*|\)*$", "", stack.partition("/")[0])


class Kernel(NamedTuple):
  """A Pallas kernel as it is called.

  Attributes:
    name: of the kernel.
    shapes: of its arguments and results on one device.
  """

  name: str
  shapes: tuple[tuple[int, ...], ...]


class Work(NamedTuple):
  """What one call of a Pallas kernel does, on one device.

  Attributes:
    operations: of all steps of its grid.
    steps: of that grid; 0 where the kernel has loops of its own.
    bundles: of instructions in one step, see `schedules.of`; 0 for unknown.
  """

  operations: int
  steps: int
  bundles: int = 0


def kernels(jaxpr: Any) -> dict[Kernel, Work]:
  """The work of each Pallas kernel."""
  found: dict[Kernel, Work] = {}
  for kernel, equation in calls(jaxpr):
    grid = equation.params["grid_mapping"].grid
    steps = 0 if _loops(equation) else math.prod(grid)
    found[kernel] = Work(_equation(equation, 1), steps)
  return found


def calls(jaxpr: Any) -> Iterator[tuple[Kernel, Any]]:
  """Each call of a Pallas kernel, with its equation."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "pallas_call":
      arrays = (*equation.invars, *equation.outvars)
      shapes = tuple(tuple(one.aval.shape) for one in arrays)
      yield Kernel(equation.params["name"], shapes), equation
    else:
      for inner in _inner(equation):
        yield from calls(inner)


def _equation(equation: Any, trips: int) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2 * inner * math.prod(equation.outvars[0].aval.shape)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name.startswith("dot_product_attention_"):
    return _attention(equation)
  if name == "cond":
    return max(of_jaxpr(branch.jaxpr, trips) for branch in params["branches"])
  times = 1
  if name == "scan":
    times = params["length"]
  elif name == "while":
    times = trips
  elif name == "shard_map":
    axes = params["newly_manual_axes"]
    times = math.prod(params["mesh"].shape[axis] for axis in axes)
  elif name == "pallas_call":
    times = math.prod(params["grid_mapping"].grid)
  return times * sum(of_jaxpr(inner, trips) for inner in _inner(equation))


def _loops(equation: Any) -> bool:
  """Whether there is a loop in an equation."""
  return any(
    one.primitive.name in ("scan", "while") or _loops(one)
    for inner in _inner(equation)
    for one in inner.eqns
  )


def _inner(equation: Any) -> list[Any]:
  """The equations that an equation holds, as a loop does."""
  values = jax.tree.leaves(
    list(equation.params.values()), is_leaf=lambda x: _open(x) is not None
  )
  return [_open(value) for value in values if _open(value) is not None]


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


def _attention(equation: Any) -> int:
  """Two products of cuDNN's kernel, or the four of its gradients.

  It computes one of the former again for these; that is not counted.
  """
  q, k = (one.aval.shape for one in equation.invars[:2])  # [B T N K], [B S N K]
  products = 4 if "_bwd" in equation.primitive.name else 2
  return 2 * products * math.prod(q) * k[1]


def _open(value: Any) -> Any:
  """The equations of a value, if it has any."""
  value = getattr(value, "jaxpr", value)
  return value if hasattr(value, "eqns") else None
