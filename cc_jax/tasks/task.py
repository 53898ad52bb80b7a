# SPDX-License-Identifier: Apache-2.0
"""A task is what is trained: two pure functions and what they read."""

from collections.abc import Callable
import importlib
from typing import Any, NamedTuple

import ml_collections

TASKS = ("autoencoder", "latent_diffusion")


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
    parts: for each group of params, (kind in models/hub.py, its config).
  """

  init: Callable[..., Any]
  loss: Callable[..., Any]
  features: tuple[str, ...]
  transform: Callable[[dict[str, Any]], dict[str, Any]] | None
  weights: dict[str, str]
  parts: dict[str, tuple[str, Any]]


def make(config: ml_collections.ConfigDict) -> Task:
  """The task that `config.train.task` names.

  Raises:
    ValueError: there is no such task.
  """
  name = config.train.task
  if name not in TASKS:
    raise ValueError(f"unknown task {name!r}; tasks/ has {', '.join(TASKS)}")
  return importlib.import_module(f"cc_jax.tasks.{name}").make(config)
