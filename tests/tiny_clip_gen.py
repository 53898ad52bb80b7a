# SPDX-License-Identifier: Apache-2.0
"""CLIP-GEN in small, for tests: its networks, its data, its config."""

import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np
import parity
import tiny

from cc_jax.core import checkpoint
from cc_jax.models import families, hub, kinds, vqgan
from cc_jax.stages import encode

VQGAN = vqgan.Config(
  channels=(4, 8, 8),
  attention=(False, False, False),
  groups=4,
  latent_channels=5,
  codebook_width=5,
  codebook_size=12,
)
CLIP = hub.config(
  dict(
    projection=10,
    text=dict(
      vocabulary=514,
      width=16,
      mlp=32,
      depth=1,
      heads=2,
      positions=8,
      bos=512,
      eos=513,
      pad=513,
    ),
    vision=dict(width=16, mlp=32, depth=2, heads=2, image_size=12, patch=4),
  ),
  "clip",
)
PRIOR = ConfigDict(dict(width=24, depth=2, heads=3, positions=16))


def shared(factory) -> tuple[str, str]:
  """(tiny's data, a folder with networks and codes), made once a session."""
  data, folder = tiny.shared(factory), factory.getbasetemp() / "clip_gen"
  if not folder.exists():
    save(folder)
    made = tiny.config(
      data,
      folder,
      encode__folder=f"{folder}/codes",
      encode__captions="",
      encode__latents=False,
      encode__vqgan=f"{folder}/vqgan",
      encode__clip=f"{folder}/clip",
    )
    encode.main(made, str(folder))
  return data, str(folder)


def save(folder: pathlib.Path) -> None:
  """A VQGAN and a CLIP of random weights."""
  for seed, (kind, made) in enumerate((("vqgan", VQGAN), ("clip", CLIP))):
    params = parity.scramble(kinds.structure(kind, made)[1], seed)
    hub.save(f"{folder}/{kind}", kind, made, params)


def config(data: str, folder: str, workdir: str, **fields) -> ConfigDict:
  """The config of the prior."""
  fields = {
    "model__vqgan": f"{folder}/vqgan",
    "model__clip": f"{folder}/clip",
    "model__prior": PRIOR,
    "train__task": "prior",
    "train__folders": (f"{folder}/codes",),
    "encode__captions": "",
    "sample__gap_captions": f"{data}/captions",
    "sample__top_k": 0,
    "sample__guidance": 1.0,
    **fields,
  }
  return tiny.config(data, workdir, **fields)


def write_checkpoint(made: ConfigDict) -> dict:
  """Random weights of a prior as a train state; the weights."""
  found = families.prior(made.model.prior, VQGAN, CLIP)
  params = parity.scramble(kinds.structure("prior", found)[1], 7)
  params["condition"] = jax.tree.map(lambda x: 60 * x, params["condition"])
  params = {"prior": params}
  opened = checkpoint.manager(made.train.checkpoints, async_=False)
  state = {"ema": params, "params": params, "step": np.int32(1)}
  checkpoint.save(opened, 1, state, {"next_index": 0}, {})
  checkpoint.close(opened)
  return params
