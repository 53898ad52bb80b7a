# SPDX-License-Identifier: Apache-2.0
"""What diffusers makes of an exported folder, against our own sampler.

With a tiny model of random weights; and, when CC_JAX_QUICKSTART names the
work folder of a finished quickstart, with the model trained there.
"""

import dataclasses
import json
import os
import pathlib
import sys

import diffusers
from huggingface_hub import errors
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import theirs
import tiny
import tiny_models
import torch
import toys

from cc_jax.core import checkpoint, convert, tree, versions
from cc_jax.data import aligned, images, shards
from cc_jax.models import hub, kinds, pixart
from cc_jax.pipelines import text_to_image
from cc_jax.stages import export

QUICKSTART = os.environ.get("CC_JAX_QUICKSTART", "")

# diffusers 0.42.1 calls np.array on a tensor, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation:DeprecationWarning"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  return toys.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def model(shared):
  return text_to_image.make(tiny.config(*shared))


@pytest.mark.parametrize(
  ("sampler", "prediction", "steps"),
  [("dpm_solver_pp", "eps", 20), ("ddim", "eps", 20), ("ddim", "v", 7)],
)
def test_diffusers_makes_our_images(
  sampler, prediction, steps, shared, model, tmp_path
):
  data, workdir = shared
  flags = {"sample.sampler": sampler, "model.prediction": prediction}
  status = toys.run(
    "export",
    data,
    tmp_path,
    f"--config.train.checkpoints={workdir}/checkpoints",
    *(f"--config.{name}={value}" for name, value in flags.items()),
  )
  assert status == 0
  model = model._replace(design=model.design._replace(prediction=prediction))
  # The last is longer than the tower's eight tokens.
  prompts = ("a red hat", "", "a very long photo of green and of red and more")
  difference = theirs.compare(
    model,
    f"{tmp_path}/export",
    prompts,
    tiny.SIZE,
    sampler=sampler,
    steps=steps,
    guidance=3.0,
  )
  assert difference < theirs.TOLERANCE


@pytest.mark.skipif(not QUICKSTART, reason="CC_JAX_QUICKSTART is not set")
@pytest.mark.parametrize("sampler", ["dpm_solver_pp", "ddim"])
def test_diffusers_makes_the_quickstarts_images(sampler, tmp_path, monkeypatch):
  monkeypatch.chdir(pathlib.Path(__file__).parents[2])
  where = [
    "--config=configs/quickstart.py:unet",
    f"--workdir={QUICKSTART}",
    f"--config.sample.sampler={sampler}",
    f"--config.export.folder={tmp_path}/export",
  ]
  made = toys.cli.arguments(["export", *where])[1]
  model = text_to_image.make(made)
  export.pipeline(made, QUICKSTART)
  difference = theirs.compare(
    model,
    made.export.folder,
    [*made.sample.prompts[:4], "a picture of a nine"],
    made.sample.size,
    sampler=sampler,
    steps=made.sample.steps,
    guidance=made.sample.guidance,
  )
  assert difference < theirs.TOLERANCE


def test_a_pipeline_says_what_it_is_and_what_it_learned_from(shared, tmp_path):
  data, workdir = shared
  flag = f"--config.train.checkpoints={workdir}/checkpoints"
  assert toys.run("export", data, tmp_path, flag) == 0
  folder = tmp_path / "export"
  names = {path.name for path in folder.iterdir()}
  assert names == {
    "README.md",
    "model_index.json",
    "scheduler",
    "text_encoder",
    "tokenizer",
    "unet",
    "vae",
  }
  card = (folder / "README.md").read_text()
  assert f"| CC-BY-4.0 | {tiny.RECORDS + tiny.VALIDATION} |" in card
  unet = json.loads((folder / "unet/config.json").read_text())
  assert unet["sample_size"] == tiny.SIZE // 2
  # The weights are those of the checkpoint, and the average by default.
  expected = tree.flatten(checkpoint.load(f"{workdir}/checkpoints", "ema"))
  for part, kind in (("unet", "unet"), ("text", "clip_text")):
    inside = "text_encoder" if part == "text" else part
    loaded = hub.load(str(folder / inside), kind)
    for path, leaf in tree.flatten(loaded.params).items():
      np.testing.assert_array_equal(leaf, expected[f"{part}.{path}"])
  assert (tmp_path / "config.json").exists()


@pytest.fixture(scope="module")
def exported_vae(shared, tmp_path_factory):
  """An autoencoder of random weights through the stage: (folder, params)."""
  data, _ = shared
  place = tmp_path_factory.mktemp("autoencoder")
  loaded = hub.load(f"{data}/vae", "autoencoder")
  params = {"vae": parity.scramble(loaded.params, 3)}
  opened = checkpoint.manager(place / "checkpoints", async_=False)
  state = {"ema": params, "params": params, "step": np.int32(1)}
  checkpoint.save(opened, 1, state, {"next_index": 0}, {})
  checkpoint.close(opened)
  flags = [
    "--config.train.task=autoencoder",
    f"--config.train.folders=('{data}/catalogue',)",
  ]
  assert toys.run("export", data, place, *flags) == 0
  return place / "export", params["vae"]


def test_diffusers_opens_the_autoencoder(exported_vae):
  folder, params = exported_vae
  other = diffusers.AutoencoderKL.from_pretrained(folder).eval()
  loaded = hub.load(str(folder), "autoencoder")
  structure, _ = kinds.structure("autoencoder", loaded.config)
  ours = tree.merge(structure, params)
  x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3))
  x = x.astype(np.float32)
  mean, std = ours.encode(jnp.asarray(x))
  with torch.no_grad():
    found = other.encode(torch.tensor(x).permute(0, 3, 1, 2)).latent_dist
    back = other.decode(found.mean).sample
  last = lambda a: a.permute(0, 2, 3, 1).numpy()
  parity.check(mean, last(found.mean), parity.MODEL)
  parity.check(std, last(found.std), parity.MODEL)
  parity.check(ours.decode(mean), last(back), parity.MODEL)


def test_the_scaling_factor_gives_latents_unit_variance(shared, exported_vae):
  data, _ = shared
  folder, params = exported_vae
  loaded = hub.load(str(folder), "autoencoder")
  structure, _ = kinds.structure("autoencoder", loaded.config)
  source = aligned.source([shards.open(f"{data}/catalogue")], "train")
  pixels = np.stack(
    [
      images.decode_cover(source[i]["image"], tiny.SIZE, tiny.SIZE).image
      for i in range(len(source))
    ]
  )
  x = pixels.astype(np.float32) / 127.5 - 1
  mean, std = tree.merge(structure, params).encode(jnp.asarray(x))
  noise = np.random.default_rng(0).standard_normal((500, 1, 1, 1, 1))
  z = np.asarray(mean) + np.asarray(std) * noise
  factor = loaded.config.scaling_factor
  assert factor * z.std() == pytest.approx(1, abs=0.02)
  assert loaded.config.sample_size == tiny.SIZE


@pytest.mark.parametrize("make", [tiny.config, toys.sdxl, toys.pixart])
def test_the_check_opens_what_was_written(make, tmp_path_factory, tmp_path):
  made = make(
    tiny.shared(tmp_path_factory),
    tmp_path,
    export__check=True,
    export__dtype="bfloat16",
    sample__steps=4,
    # Of the training; the check computes in float32 on both sides.
    train__dtype="bfloat16",
  )
  toys.write_checkpoint(made)
  assert export.main(made, str(tmp_path)) == f"{tmp_path}/export"
  # Other weights than the scheduler's prediction is for: another image.
  file = tmp_path / "export/scheduler/scheduler_config.json"
  text = file.read_text().replace('"epsilon"', '"v_prediction"')
  file.write_text(text)
  with pytest.raises(ValueError, match="diffusers makes another image of"):
    export.check(made)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["check=true", "sample.sampler=ddpm"], ["set sample.sampler=ddim"]),
    (
      ["check=true", "train.task=autoencoder"],
      ["this is an export of autoencoder"],
    ),
    (["dtype=int8"], ["export.dtype='int8'", "bfloat16"]),
    (["part=raw"], ["export.part='raw'", "ema or params"]),
    (["push=a/b", "folder=gs://bucket/x"], ["export.push", "gs://bucket/x"]),
  ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
  flags, words, shared, tmp_path, capsys
):
  data, workdir = shared
  flags = [f"export.{f}" if "." not in f.split("=")[0] else f for f in flags]
  flags = [f"--config.{flag}" for flag in flags]
  place = f"--config.train.checkpoints={workdir}/checkpoints"
  status = toys.run("export", data, tmp_path, place, *flags)
  toys.check_refused(capsys, status, *words)
  assert not list(tmp_path.iterdir())


def test_the_check_says_what_to_install(monkeypatch, shared, tmp_path):
  monkeypatch.setitem(sys.modules, "diffusers", None)
  made = tiny.config(shared[0], tmp_path, export__check=True)
  with pytest.raises(ValueError, match=r"pip install 'diffusers>=.*' torch"):
    export.main(made, str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_raw_weights_are_written_when_asked_for(shared, tmp_path):
  made = tiny.config(shared[0], tmp_path, export__part="params")
  toys.write_checkpoint(made)
  params = checkpoint.load(made.train.checkpoints, "params")
  opened = checkpoint.manager(made.train.checkpoints, async_=False)
  state = {
    "ema": jax.tree.map(lambda x: x * 0, params),
    "params": params,
    "step": np.int32(2),
  }
  checkpoint.save(opened, 2, state, {"next_index": 0}, {})
  checkpoint.close(opened)
  export.main(made, str(tmp_path))
  loaded = hub.load(f"{tmp_path}/export/unet", "unet")
  assert tiny.largest_difference(loaded.params, params["unet"]) == 0


class Hub:
  """What is asked of the hub."""

  def __init__(self, error=None):
    self.error, self.calls = error, []

  def create_repo(self, *args, **options):
    if self.error:
      raise self.error
    self.calls.append(("create_repo", args, options))

  def upload_folder(self, **options):
    self.calls.append(("upload_folder", (), options))


def test_a_folder_is_pushed_with_the_revision(shared, tmp_path, monkeypatch):
  api = Hub()
  monkeypatch.setattr(export.huggingface_hub, "HfApi", lambda: api)
  data, workdir = shared
  flags = ["export.push=ann/tiny", "export.private=false"]
  place = f"--config.train.checkpoints={workdir}/checkpoints"
  flags = [place, *(f"--config.{flag}" for flag in flags)]
  assert toys.run("export", data, tmp_path, *flags) == 0
  (_, name, options), (_, _, upload) = api.calls
  assert name == ("ann/tiny",)
  assert options == {"private": False, "exist_ok": True}
  assert upload["repo_id"] == "ann/tiny"
  assert upload["folder_path"] == f"{tmp_path}/export"
  revision = versions.code()["revision"] or "no revision"
  assert upload["commit_message"] == f"cc_jax export, {revision}"


@pytest.mark.parametrize(
  "error",
  [
    errors.LocalTokenNotFoundError("Token is required\nand more"),
    errors.OfflineModeIsEnabled("offline mode is enabled"),
    errors.HTTPError("Name or service not known"),
    errors.HFValidationError("Repo id must be ..."),
  ],
)
def test_a_push_that_fails_is_one_line(error, tmp_path, monkeypatch):
  monkeypatch.setattr(export.huggingface_hub, "HfApi", lambda: Hub(error))
  with pytest.raises(ValueError, match="cannot push") as raised:
    export.push(str(tmp_path), "ann/tiny", private=True)
  message = str(raised.value)
  assert "\n" not in message
  assert "hf auth login" in message
  assert str(error).partition("\n")[0] in message


def test_a_file_of_the_authors_becomes_a_folder_of_diffusers(shared, tmp_path):
  """A .pth of PixArt, which tells its config by the shapes of its tensors."""
  config = dataclasses.replace(
    tiny_models.TINY["pixart"], heads=1, head_width=72, null_tokens=5
  )
  _, shapes = kinds.structure("pixart", config)
  params = parity.scramble(shapes)
  names = pixart.FORMATS[0].names
  state = {
    name: torch.from_numpy(array.copy())
    for name, array in convert.export_weights(params, names).items()
  }
  state["pos_embed"] = torch.zeros(1, 16, 72)
  torch.save({"state_dict_ema": state, "epoch": 3}, tmp_path / "PixArt.pth")
  flags = [
    f"--config.export.network={tmp_path}/PixArt.pth",
    "--config.export.kind=pixart",
  ]
  assert toys.run("export", shared[0], tmp_path / "w", *flags) == 0
  folder = str(tmp_path / "w/export")
  found = hub.load(folder, "pixart", expect=config)
  assert found.hash == hub.weights_hash(params)
  opened = diffusers.PixArtTransformer2DModel.from_pretrained(
    folder, low_cpu_mem_usage=False
  )
  assert opened.config.sample_size == 8


def test_a_network_that_cannot_be_named_is_refused(shared, tmp_path, capsys):
  flags = ["--config.export.network=nowhere", "--config.export.kind=vqgan"]
  status = toys.run("export", shared[0], tmp_path / "w", *flags)
  toys.check_refused(capsys, status, "no vqgan 'nowhere'; expected a preset")
  flags = [*flags, "--config.export.check=true"]
  status = toys.run("export", shared[0], tmp_path / "w", *flags)
  toys.check_refused(capsys, status, "this is an export of nowhere")
