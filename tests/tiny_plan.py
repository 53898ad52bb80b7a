# SPDX-License-Identifier: Apache-2.0
"""Plans of tiny networks, made in a process of their own; see test_plan.py.

A process that has loaded libtpu keeps it, so that tests do not.
"""

import json
import sys

import tiny

from cc_jax.core import config as configs
from cc_jax.stages import plan


def config(folder, **fields):
  """A tiny U-Net, of which nothing is on the disk."""
  made = tiny.get_config(folder)
  values = {
    "slice": "v4-8",
    "model__vae": tiny.VAE,
    "model__unet__channels": (8,),
    "model__unet__attention": (False,),
    "train__batch_size": 32,
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


def main(folder):
  """Writes plans.json: one that fits, and one on two slices that does not."""
  plans = {
    "fits": config(
      folder,
      plan__text=f"{folder}/step.hlo",
      plan__program=f"{folder}/step.program",
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
  with open(f"{folder}/plans.json", "w") as file:
    json.dump(found, file)


if __name__ == "__main__":
  main(sys.argv[1])
