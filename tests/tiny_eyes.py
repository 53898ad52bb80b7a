# SPDX-License-Identifier: Apache-2.0
"""Small networks that look at images, of random weights, for tests."""

import dataclasses
import pathlib

from flax import nnx
import tiny_models

from cc_jax.core import tree
from cc_jax.data import tokenize
from cc_jax.models import clip_vision, hub, kinds

VISION = clip_vision.VisionConfig(
  width=16, mlp=24, depth=2, heads=2, image_size=16, patch=8
)


def save(folder, data):
  """An InceptionV3 of 128 features, and a CLIP of 12 with its tokenizer.

  Args:
    folder: gets `inception` and `clip`.
    data: where tests/tiny.py has a tokenizer.

  Returns:
    The fields of `config.evaluate` that name them.
  """
  folder = pathlib.Path(folder)
  tokenizer = tokenize.load(f"{data}/tokenizer")
  text = dataclasses.replace(tiny_models.CLIP_TEXT, **tokenize.ids(tokenizer))
  made = {
    "inception": ("inception", tiny_models.TINY["inception"]),
    "clip": (
      "clip",
      dataclasses.replace(tiny_models.TINY["clip"], text=text, vision=VISION),
    ),
  }
  for name, (kind, config) in made.items():
    if not (folder / name).exists():
      network = kinds.make(kind, config, rngs=nnx.Rngs(3))
      params = tree.split(network)[1]
      hub.save(str(folder / name), kind, config, params)
  tokenize.save(tokenizer, str(folder / "clip"), 8)
  return {
    "evaluate__inception": str(folder / "inception"),
    "evaluate__clip_fid": str(folder / "clip"),
    "evaluate__clip_score": (str(folder / "clip"),),
    "evaluate__cmmd": str(folder / "clip"),
  }
