# SPDX-License-Identifier: Apache-2.0
"""A task is what is trained: two pure functions and what they read."""

from collections.abc import Callable, Sequence
import importlib
from typing import Any, NamedTuple

import jax
import ml_collections

from cc_jax.core import checkpoint, files, sharding
from cc_jax.data import aligned, shards
from cc_jax.models import families, hub

TASKS = ("autoencoder", "contrastive", "latent_diffusion", "prior", "vqgan")

# Of the computation. float16 would need the loss to be scaled.
DTYPES = ("float32", "bfloat16")


class Task(NamedTuple):
  """What the train loop needs to know of a model.

  Attributes:
    init: `init(key) -> params`, nested dicts of float32 arrays.
    loss: `loss(params, batch, key) -> (loss, metrics)`, the mean over the
      batch. A pytree too (`jax.tree_util.Partial`): its leaves are the weights
      that stay as they are, which the loop places like all others.
    features: of a record, those that a batch is made of.
    transform: record -> record, on the host, or None.
    weights: the hash of the weights that must have made a feature.
    parts: for each group of params that is a network, (kind in models/hub.py,
      its config).
    bucketed: batches are of one aspect bucket each.
    start: `start(name, params) -> params`, where not only weights of the same
      networks can be started from; `params` are the initial ones.
    after: `after(before, params, metrics) -> (params, metrics)` or None: what
      changes weights besides the gradient. It sees those before and after the
      optimiser, and all that the loss put into its metrics; what it returns of
      these is logged.
  """

  init: Callable[..., Any]
  loss: Callable[..., Any]
  features: tuple[str, ...]
  transform: Callable[[dict[str, Any]], dict[str, Any]] | None
  weights: dict[str, str]
  parts: dict[str, tuple[str, Any]]
  bucketed: bool = False
  start: Callable[[str, Any], dict[str, Any]] | None = None
  after: Callable[..., tuple[Any, dict[str, Any]]] | None = None


def make(config: ml_collections.ConfigDict) -> Task:
  """The task that `config.train.task` names.

  Raises:
    ValueError: there is no such task, or it does not compute in that type.
  """
  name, dtype = config.train.task, config.train.dtype
  if name not in TASKS:
    raise ValueError(f"unknown task {name!r}; tasks/ has {', '.join(TASKS)}")
  if dtype not in DTYPES:
    raise ValueError(f"train.dtype={dtype!r}; expected {' or '.join(DTYPES)}")
  return importlib.import_module(f"cc_jax.tasks.{name}").make(config)


def source(task: Task, folders: Sequence[str], split: str) -> aligned.Source:
  """The features that a task reads, from aligned dataset folders.

  Raises:
    ValueError: no such data, or some that other weights than the config's
      have made.
  """
  datasets = [shards.open(folder) for folder in folders]
  for dataset in datasets:
    names = {field.name for field in dataset.fields}
    made = {name: h for name, h in task.weights.items() if name in names}
    shards.expect(dataset, made)
  return aligned.source(datasets, split, task.features)


def load(task: Task, folder: str, initial: Any = None) -> dict[str, Any]:
  """The params of a task from an exported folder.

  On the devices of the mesh that is set, else in arrays of NumPy.

  Args:
    task: whose architecture the weights must have.
    folder: of a diffusers pipeline, or of the one network that is trained.
    initial: params, for a task that starts from other networks, too.

  Raises:
    ValueError: no weights there, or those of another architecture.
  """
  if task.start is not None and initial is not None:
    return task.start(folder, initial)
  params = {}
  for name, (kind, config) in task.parts.items():
    inside = f"{folder}/{families.FOLDERS.get(name, name)}"
    where = inside if files.listing(inside) else folder
    if where == folder and kind == "discriminator":
      # Published autoencoders come without; it begins anew.
      continue
    params[name] = hub.load(
      where, kind, expect=config, mesh=sharding.current_mesh()
    ).params
  return params


def trained(
  config: ml_collections.ConfigDict, task: Task, part: str
) -> dict[str, Any]:
  """The params of a task from a checkpoint, that of `config.sample.step`.

  Args:
    config: of the run.
    task: of the same config.
    part: "ema" or "params".

  Raises:
    ValueError: no checkpoint, or one of another task.
  """
  return checkpoint.load(
    config.train.checkpoints,
    part,
    jax.eval_shape(task.init, jax.random.key(0)),
    None if config.sample.step < 0 else config.sample.step,
  )
