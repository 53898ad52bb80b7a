# SPDX-License-Identifier: Apache-2.0
"""A text-to-image model as the folder that diffusers opens.

    model_index.json                     classes of all parts; written last
    unet/ or transformer/, vae/          config.json and weights
    text_encoder/, text_encoder_2/       likewise, as transformers has them
    tokenizer/, tokenizer_2/             files of transformers 4 and 5; a model
                                         of classes has their names in the index
    scheduler/scheduler_config.json      the sampler
    README.md                            the model card

What differs between families is a row of `LAYOUTS`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any, NamedTuple

from cc_jax.core import files, sharding, tree
from cc_jax.data import classes, tokenize
from cc_jax.diffusion import scheduler_config
from cc_jax.models import download, families, hub, kinds
from cc_jax.pipelines import text_to_image

# In tokens; a tokenizer that states more states nothing.
LONGEST = 512

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
    length: in tokens, to which the class cuts captions, if its tokenizers do
      not; 0 for none.
  """

  pipeline: str
  tokenizer: str
  absent: tuple[str, ...] = ()
  extra: Mapping[str, Any] = {}
  check: Callable[[Any], None] = lambda config: None
  length: int = 0


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
  "pixart": Layout(
    "PixArtAlphaPipeline", "T5Tokenizer", check=check_pixart, length=120
  ),
  "dit": Layout("DiTPipeline", ""),
}

# Library and class of each kind of network, from its config.
CLASSES = {
  "unet": lambda config: ["diffusers", "UNet2DConditionModel"],
  "pixart": lambda config: ["diffusers", "PixArtTransformer2DModel"],
  "dit": lambda config: ["diffusers", "DiTTransformer2DModel"],
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
    if isinstance(tokenizer, classes.Classes):
      continue
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
  for name, tokenizer in model.tokenizers.items():
    if isinstance(tokenizer, classes.Classes):
      numbered = enumerate(tokenizer.names)
      parts["id2label"] = {str(number): label for number, label in numbered}
      continue
    # A T5 of ours may read what `cc-jax caption` trained, which is CLIP's.
    trained = tokenize.SUFFIX in tokenizer.backend_tokenizer.to_str()
    opener = "CLIPTokenizer" if trained else layout.tokenizer
    parts[tokenizer_folder(name)] = ["transformers", opener]
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


def family_of(told: Mapping[str, Any], name: str) -> str:
  """The family of a pipeline.

  Args:
    told: what its model_index.json says.
    name: of the pipeline, for the refusal.

  Raises:
    ValueError: it is of a class that is not one of ours.
  """
  for family, row in LAYOUTS.items():
    if row.pipeline == told.get("_class_name"):
      return family
  known = ", ".join(row.pipeline for row in LAYOUTS.values())
  raise ValueError(
    f"{name} is a {told.get('_class_name')}; expected one of {known}"
  )


def fetch(repository: str) -> str:
  """The folder of a pipeline of the hub on this machine, all of one revision.

  Weights of each network are fetched once, in the first form that is there,
  and nothing that is not read, as a safety checker.

  Raises:
    ValueError: it cannot be fetched, or is of a class that is not one of ours,
      of which no weights are fetched.
  """
  folder = download.snapshot(repository, ["model_index.json"])
  if not os.path.exists(f"{folder}/model_index.json"):
    raise ValueError(f"{repository} has no model_index.json: no pipeline")
  told = files.read_json(f"{folder}/model_index.json")
  family = families.FAMILIES[family_of(told, repository)]
  revision = os.path.basename(folder)
  tokenizers = [f"{tokenizer_folder(name)}/*" for name in family.text]
  download.snapshot(repository, ["scheduler/*", *tokenizers], revision)
  for part, kind in family.kinds.items():
    inside, stem = families.FOLDERS[part], kinds.KINDS[kind].stem
    try:
      download.network(repository, inside, stem, revision=revision)
    except ValueError as error:
      raise ValueError(f"{repository}/{inside}: {error}") from None
  return folder


def open(
  folder: str, dtype: str = "float32", length: int = 77
) -> text_to_image.Model:
  """The model of a diffusers folder, of any family of ours.

  Arrays are on the devices of the mesh that is set, else of NumPy.

  Args:
    folder: with a model_index.json.
    dtype: of the computation.
    length: of captions in tokens, where the tokenizer states none.

  Raises:
    ValueError: it is no such folder, or of a class that is not one of ours.
  """
  told = files.read_json(f"{folder}/model_index.json")
  name = family_of(told, folder)
  family = families.FAMILIES[name]
  found = {
    part: hub.load(
      f"{folder}/{families.FOLDERS[part]}", kind, mesh=sharding.current_mesh()
    )
    for part, kind in family.kinds.items()
  }
  tokenizers = {
    part: tokenize.load(f"{folder}/{tokenizer_folder(part)}")
    for part in family.text
  }
  longest = min(
    [
      length if one.model_max_length > LONGEST else one.model_max_length
      for one in tokenizers.values()
    ]
    or [length]
  )
  if not tokenizers:
    named = sorted(told.get("id2label", {}).items(), key=lambda x: int(x[0]))
    tokenizers = {"label": classes.Classes(tuple(label for _, label in named))}
  schedule, prediction = scheduler_config.read_training(
    files.read_json(f"{folder}/scheduler/scheduler_config.json")
  )
  design = text_to_image.Design(
    family=name,
    networks=tuple(
      (part, kinds.structure(family.kinds[part], one.config, dtype=dtype)[0])
      for part, one in found.items()
    ),
    scaling_factor=found["vae"].config.scaling_factor,
    schedule=schedule,
    prediction=prediction,
    # Of an old file that does not say it, the default of diffusers' class.
    zero_empty=bool(
      family.zeroed and told.get("force_zeros_for_empty_prompt", True)
    ),
  )
  return text_to_image.Model(
    design,
    {part: one.params for part, one in found.items()},
    {part: one.config for part, one in found.items()},
    tokenizers,
    min(longest, LAYOUTS[name].length or LONGEST),
  )


def tokenizer_folder(name: str) -> str:
  """Where a pipeline has the tokenizer of a text tower: "tokenizer_2"."""
  return name.replace("text", "tokenizer")


def check_dtype(dtype: str) -> None:
  """Refuses a type in which weights are not written."""
  if dtype not in hub.DTYPES:
    raise ValueError(
      f"export.dtype={dtype!r}; expected {', '.join(hub.DTYPES)}"
    )
