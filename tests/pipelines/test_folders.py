# SPDX-License-Identifier: Apache-2.0
"""Folders of SDXL pipelines, as diffusers opens and runs them.

tests/stages/test_export.py does the same with Stable Diffusion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors
import theirs
import tiny
import torch
import toys

from cc_jax.core import files, tree
from cc_jax.models import families
from cc_jax.pipelines import folders, text_to_image

# The last is longer than the towers' eight tokens.
PROMPTS = ("a red hat!", "", "a very long photo of green and of red and more")

# diffusers 0.42.1 calls np.array on a tensor, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation:DeprecationWarning"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  data, workdir = tiny.shared(tmp_path_factory), tmp_path_factory.mktemp("xl")
  made = toys.sdxl(data, workdir, model__zero_empty=True)
  toys.write_checkpoint(made)
  return text_to_image.make(made)


def write(folder, model, sampler="dpm_solver_pp", dtype="float32"):
  folders.write(
    str(folder),
    model,
    sampler=sampler,
    size=tiny.SIZE,
    dtype=dtype,
    readme="# A model\n",
  )
  return str(folder)


def with_zeros(model, zero_empty):
  return model._replace(design=model.design._replace(zero_empty=zero_empty))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
  return write(tmp_path_factory.mktemp("folder"), model)


@pytest.mark.parametrize(
  ("sampler", "zero_empty", "size"),
  [
    ("dpm_solver_pp", True, tiny.SIZE),
    ("euler", False, tiny.SIZE),
    ("ddim", True, (16, 24)),
  ],
)
def test_diffusers_makes_our_images(sampler, zero_empty, size, model, tmp_path):
  model = with_zeros(model, zero_empty)
  folder = write(tmp_path, model, sampler)
  options = dict(sampler=sampler, steps=10, guidance=3.0)
  difference = theirs.compare(model, folder, PROMPTS, size, **options)
  assert difference < theirs.TOLERANCE


@pytest.mark.parametrize(
  ("sampler", "micro", "size"),
  [("dpm_solver_pp", False, tiny.SIZE), ("ddim", True, (16, 24))],
)
def test_diffusers_makes_our_images_of_pixart(
  sampler, micro, size, tmp_path_factory, tmp_path
):
  data = tiny.shared(tmp_path_factory)
  made = toys.pixart(data, tmp_path, micro=micro)
  toys.write_checkpoint(made)
  model = text_to_image.make(made)
  assert model.configs["transformer"].micro_conditions == micro
  folder = write(tmp_path / "folder", model, sampler)
  options = dict(sampler=sampler, steps=10, guidance=4.5)
  # Prompts are cleaned alike: lower case, no blanks at the ends.
  prompts = (" A Red Hat! ", "", "a photo of green and of red and of more")
  difference = theirs.compare(
    model, folder, prompts, size, {"max_sequence_length": 8}, **options
  )
  assert difference < theirs.TOLERANCE


def test_the_folder_has_what_the_pipeline_wants(folder, model):
  index = files.read_json(f"{folder}/model_index.json")
  pipe = theirs.opened(folder)
  assert type(pipe).__name__ == index["_class_name"]
  for name, value in pipe.config.items():
    if not name.startswith("_"):
      value = list(value) if isinstance(value, tuple) else value
      assert index[name] == value, name
  assert index["force_zeros_for_empty_prompt"] is True
  assert pipe.tokenizer.pad_token == "<|endoftext|>"
  assert pipe.tokenizer_2.pad_token == "!"
  assert pipe.tokenizer_2.model_max_length == model.length
  assert pipe.default_sample_size == tiny.SIZE // 2


@pytest.mark.parametrize("zero_empty", [True, False])
def test_diffusers_reads_the_same_conditions(zero_empty, model, folder):
  pipe = theirs.opened(folder)
  pipe.register_to_config(force_zeros_for_empty_prompt=zero_empty)
  heard = []
  pipe.unet.register_forward_pre_hook(
    lambda _, args, given: heard.append(given), with_kwargs=True
  )
  size = (16, 24)
  theirs.images(
    pipe,
    PROMPTS,
    np.zeros((len(PROMPTS), 8, 12, 4), np.float32),
    1,
    3.0,
    height=size[0],
    width=size[1],
  )
  other = heard[0]["added_cond_kwargs"]
  other = {
    "context": heard[0]["encoder_hidden_states"],
    "pooled": other["text_embeds"],
    "time_ids": other["time_ids"],
  }
  networks = {
    name: tree.merge(structure, model.params[name])
    for name, structure in model.design.networks
  }
  sizes = jnp.tile(jnp.array([*size, 0, 0, *size]), (len(PROMPTS), 1))
  read = jax.jit(
    lambda captions: model.family.conditions(networks, captions, sizes)
  )
  cond = read(text_to_image.encode(model, PROMPTS))
  uncond = read(text_to_image.encode(model, [""] * len(PROMPTS)))
  if zero_empty:
    every = jnp.ones(len(PROMPTS), bool)
    uncond = families.zero(model.design.family, cond, every)
    assert not np.any(uncond["context"])
    assert not np.any(uncond["pooled"])
  for name, value in other.items():
    with torch.no_grad():
      expected = value.numpy()
    ours = np.concatenate([uncond[name], cond[name]])
    parity.check(ours, expected, parity.MODEL)


@pytest.mark.parametrize(
  ("dtype", "close"), [("bfloat16", 2**-8), ("float16", 2**-10)]
)
def test_weights_are_written_in_the_type_that_is_asked_for(
  dtype, close, model, tmp_path
):
  folder = write(tmp_path, model, dtype=dtype)
  for part, stem in (
    ("unet", "diffusion_pytorch_model"),
    ("text_encoder_2", "model"),
  ):
    file = f"{folder}/{part}/{stem}.safetensors"
    with safetensors.safe_open(file, "pt") as tensors:
      types = {tensors.get_tensor(name).dtype for name in tensors.keys()}
    assert types == {getattr(torch, dtype)}
  read = tree.flatten(folders.read(folder, model).params)
  for path, leaf in tree.flatten(model.params).items():
    assert read[path].dtype == np.float32
    np.testing.assert_allclose(read[path], leaf, rtol=close, atol=1e-6)
  # diffusers widens them, and makes the image of the rounded weights.
  rounded = folders.read(folder, model)
  options = dict(sampler="dpm_solver_pp", steps=4, guidance=3.0)
  difference = theirs.compare(rounded, folder, PROMPTS, tiny.SIZE, **options)
  assert difference < theirs.TOLERANCE


def test_a_type_that_is_not_written_is_refused():
  with pytest.raises(
    ValueError, match=r"export\.dtype='int8'; expected float32"
  ):
    folders.check_dtype("int8")
