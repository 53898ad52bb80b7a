# SPDX-License-Identifier: Apache-2.0
"""What a backward pass computes again, and what it does not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
import contextvars

import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from cc_jax.core import scoped, sharding

# The name of what `kept` says, for a policy of what the backward pass keeps.
KEPT = "gated"

_recompute = contextvars.ContextVar("recompute", default=True)


def recomputing(whether: bool) -> AbstractContextManager[None]:
  """What is traced inside has `recomputed` do so, or be the function itself.

  To measure what it is worth.
  """
  return scoped.holding(_recompute, whether)


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


def summed_once(x: jax.Array) -> jax.Array:
  """x, whose gradient is written before it is read, on CPUs.

  Of what several read, as blocks that are residual do: a compiler for CPUs puts
  the sum of their gradients into all that reads it, and those of earlier blocks
  into that. Four blocks of 64 channels, 32 x 32 maps, take 181 ms forward and
  backward instead of 188; of 128 and more, whose convolutions write what they
  read, 1 to 2 % less.
  """
  return _summed(x) if sharding.platform() == "cpu" else x


@jax.custom_vjp
def _summed(x):
  return x


_summed.defvjp(
  lambda x: (x, None),
  lambda _, cotangent: (written(cotangent),),
)


def written(x: jax.Array) -> jax.Array:
  """x, which is written before it is read, in programs for CPUs.

  XLA puts the last of what computes an array into everything that reads it,
  which then reads all that it is computed from: up to 22 arrays for each number
  of a tiled convolution. A barrier does not stop that, for it is gone by then.
  A loop does, and one that never runs costs nothing.
  """
  never = jax.lax.optimization_barrier(jnp.int32(0))
  runs = lambda state: state[0] < never
  # What a loop leaves as it was would be passed by it.
  step = lambda state: (state[0] + 1, -state[1])
  return jax.lax.while_loop(runs, step, (jnp.int32(0), x))[1]
