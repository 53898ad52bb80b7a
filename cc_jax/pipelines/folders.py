# SPDX-License-Identifier: Apache-2.0
"""A text-to-image model as the folder that diffusers opens.

    model_index.json                     classes of all parts; written last
    unet/ or transformer/, vae/          config.json and weights
    text_encoder/, text_encoder_2/       likewise, as transformers has them
    tokenizer/, tokenizer_2/             files of transformers 4 and 5
    scheduler/scheduler_config.json      the sampler
    README.md                            the model card

What differs between families is a row of `LAYOUTS`.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from cc_jax.core import files, tree
from cc_jax.data import tokenize
from cc_jax.diffusion import scheduler_config
from cc_jax.models import families, hub, kinds
from cc_jax.pipelines import text_to_image

# The first release whose pipelines read all that is written.
DIFFUSERS = "0.42.1"


class Layout(NamedTuple):
  """What model_index.json says of a family.

  Attributes:
    pipeline: diffusers' class.
    tokenizer: transformers' class of its tokenizers.
    absent: parts of the class that the folder does not have.
    extra: further arguments of the class.
    check: refuses a denoiser's config that the class would use otherwise.
  """

  pipeline: str
  tokenizer: str
  absent: tuple[str, ...] = ()
  extra: Mapping[str, Any] = {}
  check: Callable[[Any], None] = lambda config: None


def check_pixart(config: Any) -> None:
  """Refuses micro-conditions that the pipeline would not give."""
  if config.micro_conditions and config.sample_size != 128:
    raise ValueError(
      "PixArtAlphaPipeline gives micro-conditions to a transformer of "
      f"sample_size=128 only, not {config.sample_size}; train with "
      "sample_size=128 or without micro_conditions"
    )


LAYOUTS = {
  "stable_diffusion": Layout(
    "StableDiffusionPipeline",
    "CLIPTokenizer",
    ("feature_extractor", "image_encoder", "safety_checker"),
    {"requires_safety_checker": False},
  ),
  "stable_diffusion_xl": Layout(
    "StableDiffusionXLPipeline",
    "CLIPTokenizer",
    ("feature_extractor", "image_encoder"),
  ),
  "pixart": Layout("PixArtAlphaPipeline", "T5Tokenizer", check=check_pixart),
}

# Library and class of each kind of network, from its config.
CLASSES = {
  "unet": lambda config: ["diffusers", "UNet2DConditionModel"],
  "pixart": lambda config: ["diffusers", "PixArtTransformer2DModel"],
  "autoencoder": lambda config: ["diffusers", "AutoencoderKL"],
  "clip_text": lambda config: ["transformers", config.architectures[0]],
  "t5": lambda config: ["transformers", "T5EncoderModel"],
}


def write(
  folder: str,
  model: text_to_image.Model,
  *,
  sampler: str,
  size: int,
  dtype: str,
  readme: str,
) -> dict[str, int]:
  """Writes a folder for `from_pretrained` of the family's pipeline.

  Args:
    folder: where to.
    model: what to write.
    sampler: that the pipeline is to have.
    size: pixels a side that it is to make when it is not told.
    dtype: of the weights, one of `hub.DTYPES`.
    readme: the model card.

  Returns:
    The number of parameters of each network.

  Raises:
    ValueError: what diffusers has no scheduler for, or would run otherwise.
  """
  design, family = model.design, model.family
  scheduler = scheduler_config.write(
    sampler, design.schedule, prediction=design.prediction
  )
  LAYOUTS[design.family].check(model.configs[family.denoiser])
  sizes = {"vae": size, family.denoiser: size // model.configs["vae"].factor}
  for name, kind in family.kinds.items():
    config = model.configs[name]
    if name in sizes and "sample_size" in kinds.KINDS[kind].free:
      config = dataclasses.replace(config, sample_size=sizes[name])
    inside = f"{folder}/{families.FOLDERS[name]}"
    hub.save(inside, kind, config, model.params[name], dtype=dtype)
  for name, tokenizer in model.tokenizers.items():
    tokenize.save(tokenizer, f"{folder}/{tokenizer_folder(name)}", model.length)
  files.write_json(
    f"{folder}/scheduler/scheduler_config.json",
    {**scheduler, "_diffusers_version": DIFFUSERS},
  )
  files.write_atomic(f"{folder}/README.md", readme)
  names = index(model, scheduler["_class_name"])
  files.write_json(f"{folder}/model_index.json", names)
  return {name: tree.count(model.params[name]) for name in family.kinds}


def index(model: text_to_image.Model, scheduler: str) -> dict[str, Any]:
  """The model_index.json of a model.

  Args:
    model: to be written.
    scheduler: diffusers' class of it.
  """
  layout, parts = LAYOUTS[model.design.family], {}
  for name, kind in model.family.kinds.items():
    parts[families.FOLDERS[name]] = CLASSES[kind](model.configs[name])
  for name in model.tokenizers:
    parts[tokenizer_folder(name)] = ["transformers", layout.tokenizer]
  if model.family.zeroed:
    parts["force_zeros_for_empty_prompt"] = model.design.zero_empty
  parts |= {name: [None, None] for name in layout.absent} | dict(layout.extra)
  return {
    "_class_name": layout.pipeline,
    "_diffusers_version": DIFFUSERS,
    "scheduler": ["diffusers", scheduler],
    **dict(sorted(parts.items())),
  }


def read(folder: str, model: text_to_image.Model) -> text_to_image.Model:
  """The same model with the weights that a folder has.

  Raises:
    ValueError: they are another model's.
  """
  params = {
    name: hub.load(f"{folder}/{families.FOLDERS[name]}", kind).params
    for name, kind in model.family.kinds.items()
  }
  return model._replace(params=params)


def tokenizer_folder(name: str) -> str:
  """Where a pipeline has the tokenizer of a text tower: "tokenizer_2"."""
  return name.replace("text", "tokenizer")


def check_dtype(dtype: str) -> None:
  """Refuses a type in which weights are not written."""
  if dtype not in hub.DTYPES:
    raise ValueError(
      f"export.dtype={dtype!r}; expected {', '.join(hub.DTYPES)}"
    )
