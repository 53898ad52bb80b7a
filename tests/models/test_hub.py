# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import pathlib

import huggingface_hub
import jax
import ml_collections
import numpy as np
import parity
import pytest
import tiny_models

from cc_jax.core import tree
from cc_jax.models import clip, clip_vision, hub, kinds, published, unet

TINY = tiny_models.TINY
FILES = {
  "unet": "diffusion_pytorch_model.safetensors",
  "autoencoder": "diffusion_pytorch_model.safetensors",
  "vqgan": "diffusion_pytorch_model.safetensors",
  "clip_text": "model.safetensors",
  "clip_vision": "model.safetensors",
  "clip": "model.safetensors",
  "discriminator": "model.safetensors",
  "dit": "diffusion_pytorch_model.safetensors",
  "pixart": "diffusion_pytorch_model.safetensors",
  "lpips": "model.safetensors",
  "inception": "model.safetensors",
  "t5": "model.safetensors",
  "opt": "model.safetensors",
  "llama": "model.safetensors",
  "blip2": "model.safetensors",
  "llava": "model.safetensors",
  "prior": "model.safetensors",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder of each kind, and its weights."""
  result = {}
  for kind, config in TINY.items():
    folder = str(tmp_path_factory.mktemp(kind))
    params = parity.scramble(kinds.structure(kind, config)[1])
    hub.save(folder, kind, config, params)
    result[kind] = folder, params
  return result


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_weights_come_back_from_a_folder_as_they_were(saved, kind, tmp_path):
  folder, params = saved[kind]
  names = sorted(path.name for path in pathlib.Path(folder).iterdir())
  assert names == sorted(["config.json", FILES[kind]])
  loaded = hub.load(folder, kind, expect=TINY[kind])
  assert loaded.config == hub.config(folder, kind) == TINY[kind]
  expected = tree.flatten(params)
  for path, leaf in tree.flatten(loaded.params).items():
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, expected.pop(path))
  assert not expected
  assert loaded.hash == hub.weights_hash(params)
  hub.save(str(tmp_path), kind, loaded.config, loaded.params)
  again = (tmp_path / FILES[kind]).read_bytes()
  assert again == (pathlib.Path(folder) / FILES[kind]).read_bytes()


def test_a_hash_tells_weights_apart_and_not_how_they_are_kept(saved):
  _, params = saved["clip_text"]
  expected = hub.weights_hash(params)
  assert expected.startswith("sha256:")
  assert len(expected) == 71
  host = jax.tree.map(np.asarray, params)
  assert hub.weights_hash(host) == expected
  backwards = dict(reversed(tree.flatten(params).items()))
  assert hub.weights_hash(tree.unflatten(backwards)) == expected
  made, _ = kinds.structure("clip_text", TINY["clip_text"])
  assert hub.weights_hash(tree.merge(made, params)) == expected
  host["norm"]["bias"] = host["norm"]["bias"] + np.float32(1e-6)
  assert hub.weights_hash(host) != expected
  moved = {**params, "more": params["norm"]}
  assert hub.weights_hash(moved) != expected


def test_a_network_is_named_by_preset_row_folder_or_fields(saved):
  folder, _ = saved["unet"]
  assert hub.config("SD2", "unet") is unet.SD2
  assert hub.config("sdxl/unet", "unet") is unet.SDXL
  assert hub.config(folder, "unet") == TINY["unet"]
  fields = ml_collections.ConfigDict(
    dict(channels=[8, 16], attention=(False, True), heads=2, groups=4)
  )
  found = hub.config(fields, "unet")
  assert found.channels == (8, 16)
  assert hub.config(found.__dict__, "unet") == found
  assert hub.open("SD2", "clip_text") == hub.Loaded(clip.SD2, None)
  assert hub.open(fields, "unet").params is None
  assert hub.open(folder, "unet").params is not None


def test_a_network_of_parts_is_named_by_groups_of_fields():
  parts = dict(text=dict(width=16, heads=2), vision=clip_vision.VIT_B32)
  found = hub.config(
    ml_collections.ConfigDict(dict(text=parts["text"])), "clip"
  )
  assert found.text == clip.TextConfig(width=16, heads=2)
  assert found.vision == hub.config(parts, "clip").vision
  with pytest.raises(
    ValueError, match="unknown field 'widht' of kind clip; did"
  ):
    hub.config({"text": {"widht": 16}}, "clip")


def test_parts_of_a_network_are_compared_field_by_field(saved):
  folder, _ = saved["clip"]
  config = TINY["clip"]
  text = dataclasses.replace(config.text, pad=7, projection=9)
  hub.load(folder, "clip", expect=dataclasses.replace(config, text=text))
  text = dataclasses.replace(config.text, act="gelu")
  with pytest.raises(
    ValueError, match=r"another clip: text\.act='quick_gelu' \(expected 'gelu"
  ):
    hub.load(folder, "clip", expect=dataclasses.replace(config, text=text))


def test_every_row_names_a_preset_of_its_kind():
  assert {
    "sd2/unet",
    "sd2/vae",
    "sd2/text",
    "sdxl/text_2",
  } <= published.TABLE.keys()
  for name, entry in published.TABLE.items():
    assert isinstance(
      hub.config(name, entry.kind), kinds.KINDS[entry.kind].config
    )


def test_a_row_is_fetched_once_by_its_folder(saved, tmp_path, monkeypatch):
  _, params = saved["clip_text"]
  calls = []

  def fetch(repository, allow_patterns):
    calls.append((repository, *allow_patterns))
    hub.save(
      str(tmp_path / "text_encoder"), "clip_text", TINY["clip_text"], params
    )
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  entry = published.TABLE["sd2/text"]
  with pytest.raises(
    ValueError, match=r"sd2/text is another clip_text: .*width=16 "
  ):
    hub.load("sd2/text", "clip_text")
  loaded = hub.load("sd2/text", "clip_text", expect=TINY["clip_text"])
  assert loaded.hash == hub.weights_hash(params)
  names = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
  )
  wanted = [f"text_encoder/{name}" for name in names]
  assert calls == [(entry.repository, *wanted)] * 2


@pytest.mark.parametrize(
  "stem",
  ["diffusion_pytorch_model.fp16", "diffusion_pytorch_model-00001-of-00001"],
)
def test_weights_in_other_files_of_diffusers_are_found(saved, tmp_path, stem):
  folder, params = saved["unet"]
  path = pathlib.Path(folder)
  for name in ("config.json", FILES["unet"]):
    new = name.replace("diffusion_pytorch_model", stem)
    (tmp_path / new).write_bytes((path / name).read_bytes())
  assert hub.load(str(tmp_path), "unet").hash == hub.weights_hash(params)


def test_errors_are_one_line_with_a_remedy(saved, tmp_path):
  folder, _ = saved["unet"]
  other = dataclasses.replace(TINY["unet"], heads=4, sample_size=9)
  empty, broken = tmp_path / "empty", tmp_path / "broken"
  for path in (empty, broken):
    path.mkdir()
  (broken / "config.json").write_text("{")
  cases = [
    (lambda: hub.config("SD3", "unet"), "no unet 'SD3'; .*SDXL.*sd2/unet"),
    (
      lambda: kinds.preset("unet", "SD3"),
      "unknown preset 'SD3'; models/unet.py has COMMON_CANVAS_L, SD2, SDXL$",
    ),
    (lambda: hub.config("SD2", "gan"), "unknown kind 'gan'; .* has unet, "),
    (lambda: hub.load("sd2/vae", "unet"), "'sd2/vae' is of kind autoencoder"),
    (lambda: hub.load("SD2", "unet"), "unet 'SD2' has no weights; name a row"),
    (lambda: hub.load("nowhere", "unet"), "no unet 'nowhere'; expected"),
    (lambda: hub.load("sd2/unet", "unet"), "cannot fetch sd2/unet .*Copy that"),
    (lambda: hub.load(str(empty), "unet"), "no config.json in .*empty; exp"),
    (lambda: hub.load(str(broken), "unet"), "broken/config.json as unet: "),
    (lambda: hub.load(folder, "autoencoder"), "config.json has _class_name"),
    (
      lambda: hub.load(folder, "unet", expect=other),
      r"is another unet: heads=2 \(expected 4\)$",
    ),
    (
      lambda: hub.config({"chanels": (8,)}, "unet"),
      "unknown field 'chanels' of kind unet; did you mean 'channels'",
    ),
  ]
  for call, message in cases:
    with pytest.raises(ValueError, match=message) as caught:
      call()
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_or_of_another_network_are_named(
  saved, tmp_path
):
  folder, _ = saved["clip_text"]
  settings = json.loads((pathlib.Path(folder) / "config.json").read_text())
  settings["num_hidden_layers"] = 3
  (tmp_path / "config.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=r"no model\.safetensors in"):
    hub.load(str(tmp_path), "clip_text")
  data = (pathlib.Path(folder) / "model.safetensors").read_bytes()
  (tmp_path / "model.safetensors").write_bytes(data)
  with pytest.raises(
    ValueError, match=r"missing text_model\.encoder\.layers\.2"
  ):
    hub.load(str(tmp_path), "clip_text")
