# SPDX-License-Identifier: Apache-2.0
"""A VQGAN and a CLIP from training to what their libraries open."""

import pathlib
import shutil

import diffusers
import jax
import pytest
import tiny
import transformers

from cc_jax.core import checkpoint, tree
from cc_jax.models import hub
from cc_jax.stages import evaluate, export, train

pytestmark = pytest.mark.slow

VQGAN = dict(
  channels=(4, 8),
  attention=(False, False),
  groups=4,
  latent_channels=4,
  codebook_size=8,
  mid_attention=False,
)
CLIP = dict(
  projection=12,
  text=dict(width=16, mlp=32, depth=1, heads=2, positions=8),
  vision=dict(width=16, mlp=32, depth=1, heads=2, image_size=16, patch=8),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tiny.shared(tmp_path_factory)
  with tiny.compiled_once(folder):
    yield folder


def vqgan(data, workdir, **fields):
  fields = {
    "model__vqgan": VQGAN,
    "model__discriminator": dict(channels=4, depth=1),
    "train__task": "vqgan",
    "train__folders": (f"{data}/catalogue",),
    "train__steps": 4,
    "train__checkpoint_every": 2,
    "train__preview_every": 4,
    "autoencoder__gan_weight": 0.5,
    "vqgan__ema_decay": 0.9,
    "vqgan__restart": 0.1,
    **fields,
  }
  return tiny.config(data, workdir, **fields)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp("vqgan")
  made = vqgan(data, folder)
  train.main(made, str(folder))
  numbers = evaluate.main(made, str(folder))
  return folder, numbers, export.main(made, str(folder))


def test_a_trained_vqgan_opens_in_diffusers(trained):
  folder, numbers, exported = trained
  assert {"used", "perplexity", "psnr", "validation_loss"} <= set(numbers)
  assert (folder / "previews/0000004.png").exists()
  model = diffusers.VQModel.from_pretrained(exported)
  assert model.config.sample_size == tiny.SIZE
  ema = checkpoint.load(folder / "checkpoints", "ema")
  loaded = hub.load(exported, "vqgan").params
  assert tiny.largest_difference(loaded, ema["vqgan"]) == 0


def test_training_resumes_with_the_steps_of_the_discriminator(
  data, trained, tmp_path
):
  """Stopped after 2 of 4 steps and gone on with: the same weights."""
  folder = shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
  shutil.rmtree(next(path for path in folder.iterdir() if "4" in path.name))
  made = vqgan(data, tmp_path)
  state = train.main(made, str(tmp_path))
  before = checkpoint.load(trained[0] / "checkpoints", "params")
  assert tiny.largest_difference(jax.device_get(state.params), before) == 0
  assert state.params["kept"]["steps"] == 4


def test_training_goes_on_from_an_export_with_or_without_its_judge(
  data, trained, tmp_path
):
  exported = hub.load(f"{trained[2]}/discriminator", "discriminator").params
  alone = shutil.copytree(trained[2], tmp_path / "alone")
  shutil.rmtree(alone / "discriminator")
  for place, same in ((trained[2], True), (str(alone), False)):
    folder = tmp_path / str(same)
    made = vqgan(
      data,
      folder,
      train__init=place,
      train__steps=1,
      train__warmup=1,
      train__preview_every=0,
    )
    state = train.main(made, str(folder))
    # The rate of the first step is 0.
    found = tree.flatten(jax.device_get(state.params["discriminator"]))
    differ = tiny.largest_difference(tree.unflatten(found), exported)
    assert (differ == 0) == same


def test_a_trained_clip_opens_in_transformers(data, tmp_path):
  made = tiny.config(
    data,
    tmp_path,
    model__clip=CLIP,
    train__task="contrastive",
    train__folders=(f"{data}/catalogue", f"{data}/captions"),
    train__steps=2,
    sample__gap_captions=f"{data}/captions",
  )
  train.main(made, str(tmp_path))
  numbers = evaluate.main(made, str(tmp_path))
  assert numbers["zero_shot_of"] == tiny.VALIDATION
  assert 0 <= numbers["zero_shot"] <= 1
  assert 0 < numbers["modality_gap"] <= 2
  exported = pathlib.Path(export.main(made, str(tmp_path)))
  model = transformers.CLIPModel.from_pretrained(exported)
  assert model.config.projection_dim == 12
  assert transformers.CLIPTokenizer.from_pretrained(exported)("red")
  ema = checkpoint.load(tmp_path / "checkpoints", "ema")
  loaded = hub.load(str(exported), "clip").params
  assert tiny.largest_difference(loaded, ema["clip"]) == 0
