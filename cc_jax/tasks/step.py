# SPDX-License-Identifier: Apache-2.0
"""The train step: a task and an optimiser made into two pure functions.

The train loop runs them; a plan or a benchmark compiles them without one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from cc_jax.core import optim, programs, sharding
from cc_jax.models import attention, convolution, layers, recompute
from cc_jax.tasks import task as tasks

# Types of the mean of the gradients. That of their squares is float32.
MOMENTS = ("float32", "bfloat16")


class State(NamedTuple):
  """All that training changes.

  Attributes:
    step: updates made, int32.
    params: weights, float32.
    ema: their exponential moving average.
    opt: the optimiser's state.
  """

  step: Any
  params: Any
  ema: Any
  opt: Any


class Step(NamedTuple):
  """`init(key) -> state`, `update(state, loss, batch) -> (state, metrics)`."""

  init: Callable[..., State]
  update: Callable[..., tuple[State, dict[str, Any]]]


def make(config: ml_collections.ConfigDict, task: tasks.Task) -> Step:
  """The step of a task with the optimiser, average and seed of `config.train`.

  The loss is an argument of `update` since it holds the frozen weights, which
  are arrays on devices like the rest. The key of a step is that of the seed
  with the step's number folded in, so nothing random is stored.

  Raises:
    ValueError: a learning rate, schedule, decay or type that cannot be.
  """
  options = config.train
  attention.check(options.attention)
  if options.moments not in MOMENTS:
    raise ValueError(
      f"unknown train.moments {options.moments!r}; expected one of "
      + ", ".join(MOMENTS)
    )
  lr = options.lr
  if options.lr_batch:
    # PixArt-alpha's `auto_lr`: after arXiv 1404.5997, §3.2.
    lr *= (options.batch_size / options.lr_batch) ** 0.5
  rate = optim.schedule(options.schedule, lr, options.warmup, options.steps)
  optimizer = optim.optimizer(
    rate,
    b1=options.b1,
    b2=options.b2,
    eps=options.eps,
    weight_decay=options.weight_decay,
    decay=options.decay,
    clip=options.clip or None,
    mu_dtype=options.moments,
  )

  def init(key):
    params = task.init(key)
    # A copy, since a donated buffer may stand in a state only once.
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.int32(0), params, ema, optimizer.init(params))

  def update(state, loss, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    gradient = optim.value_and_grad(loss, options.accumulate)
    with (
      attention.using(options.attention),
      convolution.own(options.own_convolutions),
      recompute.recomputing(options.recompute),
    ):
      (value, metrics), grads = gradient(state.params, batch, key)
    with jax.named_scope("optimizer"):
      params = state.params
      if options.spread:
        grads, params = sharding.spread(grads), sharding.spread(params)
      changes, opt = optimizer.update(grads, state.opt, params)
      params = optax.apply_updates(params, changes)
      if task.after is not None:
        params, metrics = task.after(state.params, params, metrics)
      ema = optim.ema_update(
        state.ema,
        params,
        state.step + 1,
        decay=options.ema_decay,
        start=options.ema_start,
        warmup=options.ema_warmup,
      )
    metrics = {
      "loss": value,
      **metrics,
      "grad_norm": optax.tree.norm(grads),
      # Of the new weights: the only sign of an update that ruined them while
      # the loss before it was fine.
      "param_norm": optax.tree.norm(params),
      "lr": rate(state.step),
    }
    return State(state.step + 1, params, ema, opt), metrics

  return Step(init, update)


def trace_update(
  update: Callable[..., Any], state: Any, loss: Any, batch: Any
) -> Any:
  """`update` traced for arrays, or shapes with layouts, such as these.

  The state is donated, and comes out laid out as it went in.
  """
  layouts = jax.tree.map(lambda leaf: leaf.sharding, state)
  jitted = jax.jit(update, donate_argnums=0, out_shardings=(layouts, None))
  return jitted.trace(state, loss, batch)


def compile_update(
  update: Callable[..., Any], state: Any, loss: Any, batch: Any
) -> Any:
  """`update` compiled for what `trace_update` is given."""
  return trace_update(update, state, loss, batch).lower().compile()


def load_update(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  update: Callable[..., Any],
  state: Any,
  loss: Any,
  batch: Any,
) -> Any:
  """The same, compiled by `cc-jax plan`: the file `config.train.program`.

  Raises:
    ValueError: no such file, or one of another step.
  """
  lowered = trace_update(update, state, loss, batch).lower()
  return programs.load(config.train.program, lowered, mesh, decides(config))


def decides(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of a config that may change a step, for refusals to name."""
  names = ("model", "latent_diffusion", "autoencoder", "train", "seed")
  made = {name: config[name] for name in names}
  made = {
    name: value.to_dict()
    if isinstance(value, ml_collections.ConfigDict)
    else value
    for name, value in made.items()
  }
  # How a run goes and where its files are.
  for name in ("program", "folders", "checkpoints", "init", "split", "steps"):
    made["train"].pop(name, None)
  return made


def check(options: Any, mesh: jax.sharding.Mesh) -> None:
  """Refuses numbers that no run can have, before anything is written.

  Args:
    options: `config.train`.
    mesh: that the batch is split over.

  Raises:
    ValueError: a batch that does not divide over devices and micro-batches, a
      number of steps, checkpoints or micro-batches below one, an unknown
      `remat`, or another number of devices than was announced.
  """
  if options.devices not in (0, mesh.size):
    raise ValueError(
      f"train.devices={options.devices}, but there are {mesh.size} on "
      f"{jax.process_count()} hosts; 0 for any number"
    )
  names = ("steps", "accumulate", "log_every", "checkpoint_every", "keep")
  for name in names:
    if options[name] < 1:
      raise ValueError(f"train.{name}={options[name]}; expected 1 or more")
  if options.keep_every < 0:
    raise ValueError(
      f"train.keep_every={options.keep_every}; expected 0 (none) or more"
    )
  layers.checkpointed(jnp.sum, options.remat)
  size, ways = options.batch_size, sharding.batch_ways(mesh)
  if size < 1 or size % ways:
    raise ValueError(f"batch_size={size} does not divide over {ways} devices")
  if size % (ways * options.accumulate):
    raise ValueError(
      f"batch_size={size} does not divide over {ways} devices times "
      f"accumulate={options.accumulate}"
    )
