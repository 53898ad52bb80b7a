# SPDX-License-Identifier: Apache-2.0
"""Networks split over devices have the loss and gradients of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny_models

from cc_jax.core import sharding, tree
from cc_jax.models import kinds

TOLERANCE = 5e-6
# Sums in the order that users have, and not in that of tests: conftest.py.
USERS = {"xla_cpu_use_fusion_emitters": True}
MESHES = {
  "one": {"data": 1},
  "data": {"data": 8},
  "fsdp": {"data": 1, "fsdp": 8},
  "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}
RNG = np.random.default_rng(0)


def random(*shape):
  return RNG.standard_normal((8, *shape)).astype(np.float32)


def unet(network, batch):
  made = network(batch["x"], batch["t"], batch["source"])
  return jnp.square(made - batch["wanted"])


def pixart(network, batch):
  made = network(batch["x"], batch["t"], batch["source"], batch["mask"])
  # The variance that it learns too is behind the prediction.
  mean, variance = jnp.split(made, 2, axis=-1)
  return jnp.square(mean - batch["wanted"]) + jnp.square(variance)


def prior(network, batch):
  codes = batch["codes"]
  logits = network(batch["source"], codes[:, :-1])
  return -jnp.take_along_axis(
    jax.nn.log_softmax(logits), codes[..., None], axis=-1
  )


LOSSES = {"unet": unet, "pixart": pixart, "prior": prior}
MASK = np.arange(5) < RNG.integers(1, 6, (8, 1))
BATCH = {
  "x": random(8, 8, 4),
  "wanted": random(8, 8, 4),
  "t": RNG.integers(0, 1000, 8).astype(np.int32),
  "mask": MASK,
  "codes": RNG.integers(0, 50, (8, 9)).astype(np.int32),
}
SOURCE = {"unet": random(5, 12), "pixart": random(5, 10), "prior": random(12)}


@functools.cache
def gradients(kind, mesh):
  """(loss, gradients, share of weights on a device) on a mesh of its own."""
  axes = MESHES[mesh]
  devices = jax.devices()[: 1 if mesh == "one" else 8]
  made = sharding.make_mesh(devices=devices, **axes)
  structure, shapes = kinds.structure(kind, tiny_models.TINY[kind])
  params = parity.scramble(shapes)
  layouts = sharding.layouts(params, made)
  batch = sharding.put_batch(BATCH | {"source": SOURCE[kind]}, made)

  def loss(params, batch):
    network = tree.merge(structure, params)
    return jnp.mean(LOSSES[kind](network, batch))

  with jax.set_mesh(made):
    params = jax.device_put(params, layouts)
    step = jax.jit(
      jax.value_and_grad(loss),
      out_shardings=(None, layouts),
      compiler_options=USERS,
    )
    value, grads = step(params, batch)
  part = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(grads))
  return float(value), jax.device_get(grads), part / tree.count(params)


# "tensor" splits in all ways.
@pytest.mark.parametrize(
  "mesh",
  [
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("data", "fsdp")),
    "tensor",
  ],
)
@pytest.mark.parametrize("kind", LOSSES)
def test_loss_and_gradients_are_those_of_one_device(kind, mesh, monkeypatch):
  # So that arrays as small as these are split.
  monkeypatch.setattr(sharding, "SMALL", 64)
  expected, whole, _ = gradients(kind, "one")
  value, grads, share = gradients(kind, mesh)
  assert value == pytest.approx(expected, rel=TOLERANCE)
  if mesh == "data":
    assert share == 1
  else:
    assert share < (0.3 if mesh == "fsdp" else 0.6)
  grads, whole = tree.flatten(grads), tree.flatten(whole)
  largest = max(np.abs(leaf).max() for leaf in whole.values())
  for path, leaf in whole.items():
    # Those that are zero but for rounding, as of keys' biases, are compared
    # with the largest of all.
    scale = max(np.abs(leaf).max(), 0.01 * largest)
    error = np.abs(grads[path] - leaf).max() / scale
    assert error < TOLERANCE, f"{path}: {error:.1e}"
