# SPDX-License-Identifier: Apache-2.0
"""The table of kinds of networks, and what makes one of a config.

A new model is a row of `KINDS` here and, where weights are published, its rows
in models/published.py.
"""

from collections.abc import Callable
import inspect
import os
import types
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from cc_jax.core import spelling, tree
from cc_jax.models import (
  autoencoder,
  blip2,
  clip,
  clip_dual,
  clip_vision,
  discriminator,
  dit,
  inception,
  layers,
  llama,
  llava,
  lm,
  lpips,
  opt,
  pixart,
  prior,
  t5,
  unet,
  vqgan,
)


class Kind(NamedTuple):
  """What serves all networks of a kind.

  Attributes:
    module: made from a config.
    config: its dataclass.
    source: the python module that has its presets, NAMES and CONFIG.
    stem: of its weights' file name.
    free: config fields that may differ from a preset: they change neither the
      weights' shapes nor what the network computes from its inputs. A field of
      a part is "part.field".
    pickles: torch files that together are the published weights; a folder of
      them needs no config.json, and is then of the default config.
    unused: how names in files begin that are of no use to the network.
    formats: in which others published weights of this kind, besides the one of
      the source's NAMES.
    complete: from a config and the tensors beside it, the config with what a
      config.json does not say.
  """

  module: type
  config: type
  source: types.ModuleType
  stem: str
  free: tuple[str, ...]
  pickles: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()
  formats: tuple[spelling.Format, ...] = ()
  complete: Callable[[Any, spelling.Tensors], Any] = lambda config, tensors: (
    config
  )


DIFFUSERS = "diffusion_pytorch_model"
TRANSFORMERS = "model"

KINDS = {
  "unet": Kind(
    unet.UNet2DCondition, unet.Config, unet, DIFFUSERS, ("sample_size",)
  ),
  "autoencoder": Kind(
    autoencoder.AutoencoderKL,
    autoencoder.Config,
    autoencoder,
    DIFFUSERS,
    ("sample_size", "scaling_factor"),
  ),
  "vqgan": Kind(
    vqgan.VQGAN,
    vqgan.Config,
    vqgan,
    DIFFUSERS,
    ("sample_size",),
    formats=(vqgan.TAMING_FORMAT, vqgan.HFAILAB_FORMAT),
  ),
  "clip_text": Kind(
    clip.Text,
    clip.TextConfig,
    clip,
    TRANSFORMERS,
    ("bos", "eos", "pad", "projection"),
  ),
  "clip_vision": Kind(
    clip_vision.Vision,
    clip_vision.VisionConfig,
    clip_vision,
    TRANSFORMERS,
    (),
  ),
  "clip": Kind(
    clip_dual.CLIP,
    clip_dual.Config,
    clip_dual,
    TRANSFORMERS,
    (
      "logit_scale",
      "text.bos",
      "text.eos",
      "text.pad",
      "text.projection",
      "vision.projection",
    ),
    formats=(clip_dual.OPENAI,),
  ),
  "discriminator": Kind(
    discriminator.Discriminator,
    discriminator.Config,
    discriminator,
    TRANSFORMERS,
    (),
    unused=discriminator.UNUSED,
  ),
  "lpips": Kind(
    lpips.LPIPS,
    lpips.Config,
    lpips,
    TRANSFORMERS,
    (),
    lpips.PICKLES,
    lpips.UNUSED,
  ),
  "inception": Kind(
    inception.InceptionV3,
    inception.Config,
    inception,
    TRANSFORMERS,
    (),
    inception.PICKLES,
  ),
  "t5": Kind(
    t5.Encoder, t5.Config, t5, TRANSFORMERS, (), t5.PICKLES, t5.UNUSED
  ),
  "dit": Kind(dit.DiT, dit.Config, dit, DIFFUSERS, (), formats=dit.FORMATS),
  "pixart": Kind(
    pixart.PixArt,
    pixart.Config,
    pixart,
    DIFFUSERS,
    ("null_tokens",),
    formats=pixart.FORMATS,
    complete=pixart.complete,
  ),
  "opt": Kind(
    lm.LM,
    opt.Config,
    opt,
    TRANSFORMERS,
    ("bos", "eos", "pad"),
    formats=(opt.WITH_HEAD,),
  ),
  "llama": Kind(
    lm.LM,
    llama.Config,
    llama,
    TRANSFORMERS,
    ("bos", "eos", "pad", "positions"),
  ),
  "blip2": Kind(
    blip2.BLIP2,
    blip2.Config,
    blip2,
    TRANSFORMERS,
    ("image_token", "text.bos", "text.eos", "text.pad"),
    formats=(blip2.WITH_HEAD,),
  ),
  "llava": Kind(
    llava.LLaVA,
    llava.Config,
    llava,
    TRANSFORMERS,
    (
      "text.bos",
      "text.eos",
      "text.pad",
      "text.positions",
      "vision.projection",
    ),
  ),
  "prior": Kind(
    prior.Prior,
    prior.Config,
    prior,
    TRANSFORMERS,
    (),
    formats=(prior.HFAILAB,),
  ),
}


def find(name: str) -> Kind:
  """The row of a kind.

  Raises:
    ValueError: there is none of that name.
  """
  if name not in KINDS:
    raise ValueError(
      f"unknown kind {name!r}; models/kinds.py has {', '.join(KINDS)}"
    )
  return KINDS[name]


def make(
  kind: str, config: Any, dtype: Any = jnp.float32, *, rngs: nnx.Rngs, **options
) -> nnx.Module:
  """The network of a config, with initial weights.

  Args:
    kind: a key of `KINDS`.
    config: of that kind.
    dtype: of the computation, also by name.
    rngs: for the initial weights.
    **options: of that kind alone, as `remat` of the U-Net.
  """
  dtype = jnp.dtype(dtype)
  return find(kind).module(config, dtype=dtype, rngs=rngs, **options)


def structure(
  kind: str, config: Any, dtype: Any = jnp.float32, **options
) -> tuple[tree.Structure, dict[str, Any]]:
  """The network of a config without weights: (structure, tree of shapes)."""
  return tree.split(
    jax.eval_shape(
      lambda: make(kind, config, dtype, rngs=layers.keys(0), **options)
    )
  )


def presets(kind: str) -> dict[str, Any]:
  """The presets of a kind, by name."""
  found = vars(find(kind).source).items()
  return {
    name: value
    for name, value in sorted(found)
    if isinstance(value, KINDS[kind].config)
  }


def preset(kind: str, name: str) -> Any:
  """The config of a preset.

  Raises:
    ValueError: there is none of that name.
  """
  found = presets(kind)
  if name not in found:
    file = os.path.basename(inspect.getfile(KINDS[kind].source))
    raise ValueError(
      f"unknown preset {name!r}; models/{file} has {', '.join(found)}"
    )
  return found[name]
