# SPDX-License-Identifier: Apache-2.0
"""Cheap functions of maps, which a backward pass computes again."""

from collections.abc import Callable, Iterator
import contextlib
import contextvars

import jax
from jax import ad_checkpoint

# The name of what `kept` says, for a policy of what the backward pass keeps.
KEPT = "gated"

_recompute = contextvars.ContextVar("recompute", default=True)


@contextlib.contextmanager
def recomputing(whether: bool) -> Iterator[None]:
  """What is traced inside has `recomputed` do so, or be the function itself.

  To measure what it is worth.
  """
  token = _recompute.set(whether)
  try:
    yield
  finally:
    _recompute.reset(token)


def recomputes() -> bool:
  """Whether `recomputed` does so here."""
  return _recompute.get()


def kept(x: jax.Array) -> jax.Array:
  """x, which the backward pass is better off keeping than computing again.

  Of a product whose result a gate multiplies: the gate's gradient asks for it,
  and nothing else does.
  """
  return ad_checkpoint.checkpoint_name(x, KEPT)


def recomputed(f: Callable) -> Callable:
  """`f(x, *args)`, of which the backward pass of a 16-bit x keeps the inputs.

  For cheap functions of maps: of norms and activations JAX would keep what is
  between their steps, in float32, which costs a device more to write and read
  than to compute again. In float32 it is `f` as it is.
  """

  @jax.custom_vjp
  def again(*args):
    # Written once: XLA would compute it again inside what reads it; inside the
    # gradients of two convolutions, that took a seventh of SD2's step.
    return jax.lax.optimization_barrier(f(*args))

  def forward(*args):
    return again(*args), args

  def backward(args, cotangent):
    # Without a barrier the compiler would find the forward pass's values.
    args = jax.lax.optimization_barrier(args)
    return jax.vjp(f, *args)[1](cotangent)

  again.defvjp(forward, backward)

  def run(x, *args):
    short = x.dtype.itemsize < 4 and recomputes()
    return (again if short else f)(x, *args)

  return run
