# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules, AdamW, the average of the weights, gradients.

Everything is a pure function of trees of arrays, can be jitted, and traces in
time linear in the number of leaves. The optimiser is optax's, put together so
that it equals `torch.optim.AdamW` after `clip_grad_norm_`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree
import optax

SCHEDULES = ("constant", "cosine", "linear")
DECAYS = ("all", "matrices")

# (params, batch, key) -> (loss, metrics), and the same with gradients.
Loss = Callable[..., tuple[Array, PyTree]]
LossAndGrads = Callable[..., tuple[tuple[Array, PyTree], PyTree]]


def schedule(
  name: str,
  lr: float | int,
  warmup: int,
  steps: int,
  final: float | int = 0.0,
) -> Callable:
  """Learning rate as a function of the number of updates already made.

  It rises linearly from 0 over `warmup` updates, `lr * n / warmup`, then
  stays ("constant"), or falls to `final * lr` at `steps` along half a cosine
  ("cosine") or a straight line ("linear"), and stays there. With `final=0`
  these are the schedules of `transformers.get_scheduler`.

  Args:
    name: one of `SCHEDULES`.
    lr: the highest learning rate.
    warmup: updates of the rise; 0 for none.
    steps: updates of the whole run; "constant" does not look at it.
    final: the last learning rate as a fraction of `lr`.

  Raises:
    ValueError: unknown name, or a warm-up longer than the run.
  """
  if name not in SCHEDULES:
    raise ValueError(
      f"unknown schedule {name!r}; core/optim.py has {', '.join(SCHEDULES)}"
    )
  if warmup < 0 or (name != "constant" and warmup >= steps):
    raise ValueError(
      f"warmup={warmup} does not fit a run of steps={steps}; choose between 0"
      f" and {steps - 1}"
    )

  rest = {
    "constant": lambda: optax.constant_schedule(lr),
    "cosine": lambda: optax.cosine_decay_schedule(lr, steps - warmup, final),
    "linear": lambda: optax.linear_schedule(lr, final * lr, steps - warmup),
  }[name]()
  if not warmup:
    return rest
  rise = optax.linear_schedule(0.0, lr, warmup)
  return optax.join_schedules([rise, rest], [warmup])


def decay_mask(params: PyTree) -> PyTree:
  """True for the leaves that `decay="matrices"` decays: those named `kernel`.

  All models use the same leaf names, so this leaves out biases, the scales of
  norms, embedding tables, and free parameters such as position tables. The
  rank of an array says nothing: stacked layers give biases a first axis too.

  Raises:
    ValueError: no leaf is named `kernel`.
  """

  def is_kernel(path, leaf):
    del leaf
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return name == "kernel"

  mask = jax.tree.map_with_path(is_kernel, params)
  if not any(jax.tree.leaves(mask)):
    raise ValueError(
      "decay='matrices' found no leaf named 'kernel' to decay; use decay='all'"
    )
  return mask


def optimizer(
  schedule: Callable | float | int,
  *,
  b1: float | int = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float | int = 0.01,
  decay: str = "all",
  clip: float | int | None = 1.0,
  mu_dtype: str | None = None,
) -> optax.GradientTransformation:
  """AdamW with decoupled weight decay (arXiv:1711.05101, algorithm 2).

  The decay is multiplied by the learning rate, as torch does. The state is a
  dict by the name of each part, the same whatever the options, so that a
  checkpoint survives turning clipping or decay off.

  Args:
    schedule: from `schedule`, or a constant learning rate.
    b1: decay of the mean of the gradients.
    b2: decay of the mean of their squares.
    eps: added to the root of the mean of squares.
    weight_decay: fraction of a weight, times learning rate, taken an update.
    decay: "all" leaves, or "matrices": see `decay_mask`.
    clip: largest global L2 norm of the gradients; None for no limit.
    mu_dtype: type of the mean of the gradients, "bfloat16" to halve it; None
      for the type of the weights. The mean of squares has no such option: with
      b2 near 1 its updates are below the resolution of bfloat16.

  Raises:
    ValueError: unknown `decay`, or a `clip` that is not above zero.
  """
  if decay not in DECAYS:
    raise ValueError(f"unknown decay {decay!r}; expected {', '.join(DECAYS)}")
  if clip is not None and clip <= 0:
    raise ValueError(f"clip={clip} must be above 0; None turns clipping off")

  if not callable(schedule):
    schedule = optax.constant_schedule(schedule)
  mask = decay_mask if decay == "matrices" and weight_decay else None
  limit = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
  return optax.named_chain(
    ("clip", limit),
    ("adam", optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)),
    ("decay", optax.add_decayed_weights(weight_decay, mask)),
    ("rate", optax.scale_by_learning_rate(schedule)),
  )


def ema_update(
  ema: PyTree,
  params: PyTree,
  step: Int[Array, ""] | int,
  *,
  decay: float | int,
  start: int = 0,
  every: int = 1,
  warmup: bool = False,
) -> PyTree:
  """Exponential moving average of the weights: `ema += (1 - d)(params - ema)`.

  Up to and including step `start` the average is a copy of the weights. From
  then on it moves at every `every`-th step after `start`, and rests between.

  Args:
    ema: the average so far; keeps its types (use float32).
    params: the weights after this step's update.
    step: updates made, this one included: 1 after the first.
    decay: d.
    start: the last step that copies.
    every: steps from one move to the next.
    warmup: shortens the memory while the average is young: the n-th move
      (from 1) uses `min(decay, (1 + n) / (10 + n))`.
  """
  since = jnp.asarray(step) - start
  copies = since <= 0
  moves = since % every == 0
  # 1 - d is taken here, in double precision, and the difference form is used:
  # d and 1 - d each rounded to float32 do not sum to one, which at d = 0.9999
  # shrinks the average by 2e-4.
  rate = jnp.float32(1 - decay)
  if warmup:
    n = jnp.maximum(since // every, 0).astype(jnp.float32)
    rate = jnp.maximum(rate, 9 / (10 + n))
  rate = jnp.where(moves, rate, 0)

  def update(e, p):
    p = p.astype(e.dtype)
    return jnp.where(copies, p, e + (rate * (p - e)).astype(e.dtype))

  return jax.tree.map(update, ema, params)


def value_and_grad(loss: Loss, accumulate: int = 1) -> LossAndGrads:
  """`(params, batch, key) -> ((loss, metrics), grads)`, grads in float32.

  With `accumulate=A` the batch `[B ...]` is cut into A micro-batches, which
  run one after another, each with the key `fold_in(key, a)`; loss, metrics and
  gradients are their means. For a loss that is a mean over rows, they are
  those of the whole batch. Micro-batch a takes rows a, A + a, 2A + a …: when
  the batch is split over devices, each device finds its share among its own
  rows, and nothing moves between them (if A divides the rows of a device).

  Args:
    loss: `(params, batch, key) -> (loss, metrics)`, loss a scalar. With
      `accumulate=1` it gets `key` as it is.
    accumulate: A.

  Raises:
    ValueError: A is below 1 or, when called, does not divide B.
  """
  if accumulate < 1:
    raise ValueError(f"accumulate={accumulate} must be 1 or more")
  differentiate = jax.value_and_grad(loss, has_aux=True)

  def whole(params, batch, key):
    (value, metrics), grads = differentiate(params, batch, key)
    return (value, metrics), _float32(grads)

  def accumulated(params, batch, key):
    micro = jax.tree.map(lambda x: _interleave(x, accumulate), batch)

    def step(total, inputs):
      index, rows = inputs
      out, grads = differentiate(params, rows, jax.random.fold_in(key, index))
      return jax.tree.map(jnp.add, total, _float32(grads)), out

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
    total, outs = jax.lax.scan(step, zeros, (jnp.arange(accumulate), micro))
    grads = jax.tree.map(lambda g: g / accumulate, total)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), outs), grads

  return whole if accumulate == 1 else accumulated


def _float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _interleave(x, accumulate):
  """[B ...] -> [A B/A ...], row b of the batch at [b % A, b // A]."""
  rows = x.shape[0]
  if rows % accumulate:
    raise ValueError(
      f"a batch of {rows} does not divide into accumulate={accumulate}"
      f" micro-batches; choose a divisor of {rows}"
    )
  split = x.reshape(rows // accumulate, accumulate, *x.shape[1:])
  return split.swapaxes(0, 1)
