# SPDX-License-Identifier: Apache-2.0
"""Plans of tiny networks, made in a process of their own; see test_plan.py.

A process that has loaded libtpu keeps it, so that tests do not.
"""

import json
import sys

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import tiny

from cc_jax.core import config as configs
from cc_jax.core import estimate, hardware, hlo_cost, schedules, sharding
from cc_jax.models import attention_kernel
from cc_jax.stages import plan

# What a run is said to have cost others.
PAPER = dict(
  what="a paper",
  chip="NVIDIA A100-SXM4-40GB",
  days=10.0,
  dollars=480.0,
  watts=400.0,
)


def config(folder, **fields):
  """A tiny U-Net, of which nothing is on the disk."""
  made = tiny.get_config(folder)
  values = {
    "slice": "v4-8",
    "model__vae": tiny.VAE,
    "model__unet__channels": (8,),
    "model__unet__attention": (False,),
    "train__batch_size": 32,
    # So that what a chip holds is told from the number of weights.
    "train__spread": False,
  } | fields
  for name, value in values.items():
    *groups, field = name.split("__")
    node = made
    for group in groups:
      node = node[group]
    with node.ignore_type():
      node[field] = value
  configs.resolve(made, folder)
  return made.lock()


def kernels():
  """What is found in a program with a custom kernel: B, N = 2, T 256, K 64."""
  mesh = sharding.make_mesh(
    devices=hardware.aot_devices(hardware.slice_of("v4-8"))[:1]
  )
  shape = jax.ShapeDtypeStruct(
    (2, 128, 256), jnp.bfloat16, sharding=sharding.replicated(mesh)
  )
  run = lambda q, k, v: attention_kernel.attention(
    q, k, v, None, 2, causal=False, scale=0.125
  )
  traced = jax.jit(run).trace(shape, shape, shape)
  program = estimate.compile(traced.lower(), "v4")
  known = schedules.of(traced.jaxpr.jaxpr, hardware.slice_of("v4-8"))
  cost = hlo_cost.cost(program.as_text(), kernels=known)
  return [one._asdict() for one in cost.kernels]


def main(folder):
  """Writes plans.json: some that fit, one on two slices that does not."""
  plans = {
    "fits": config(
      folder,
      plan__text=f"{folder}/step.hlo",
      plan__program=f"{folder}/step.program",
      plan__published=ConfigDict(PAPER),
    ),
    "images": config(
      folder,
      encode__size=64,
      latent_diffusion__from_images=True,
    ),
    "large": config(
      folder,
      slice="2xv5e-4",
      train__batch_size=2**17,
      encode__size=256,
      latent_diffusion__train_text=False,
    ),
  }
  found = {name: plan.main(made, folder) for name, made in plans.items()}
  found["kernels"] = kernels()
  with open(f"{folder}/plans.json", "w") as file:
    json.dump(found, file)


if __name__ == "__main__":
  main(sys.argv[1])
