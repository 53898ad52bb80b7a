# SPDX-License-Identifier: Apache-2.0
"""Pipelines that diffusers saved, fetched by their names and evaluated."""

import json
import shutil

from huggingface_hub import constants
import numpy as np
import pytest
import stub_hub
import theirs
import tiny
import tiny_eyes
import tiny_pipelines
import toys

from cc_jax.pipelines import image_makers

PROMPTS = ["a photo of red", "a photo of green", "a hat"]
SAMPLERS = {"sd": "ddim", "pixart": "dpm_solver_pp"}
# diffusers 0.42.1 calls np.array on a tensor, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation:DeprecationWarning"
)


@pytest.fixture(scope="module")
def hub(data, tmp_path_factory):
  """A hub of three pipelines."""
  folder = tmp_path_factory.mktemp("hub")
  for kind in tiny_pipelines.MADE:
    tiny_pipelines.save(kind, data, folder / "tiny" / kind)
    shutil.rmtree(folder / "tiny" / f"{kind}-parts", ignore_errors=True)
  with stub_hub.serving(folder) as server:
    yield server


@pytest.fixture
def cache(hub, tmp_path, monkeypatch):
  """Where this process keeps what it fetches from there."""
  hub.fetched.clear()
  stub_hub.redirect(monkeypatch, hub, tmp_path / "cache")
  return tmp_path / "cache"


def config(data, workdir, kind, **fields):
  return tiny.config(
    data,
    workdir,
    sample__steps=4,
    sample__batch_size=3,
    sample__sampler=SAMPLERS.get(kind, "ddim"),
    **fields,
  )


@pytest.mark.parametrize("kind", ["sd", "pixart"])
def test_a_name_on_the_hub_is_our_networks_with_its_weights(
  kind, data, hub, cache, tmp_path, monkeypatch
):
  made = config(data, tmp_path, kind)
  ours = image_makers.open(made, f"tiny/{kind}")
  fetched = sorted(hub.fetched)
  assert f"tiny/{kind}/vae/diffusion_pytorch_model.safetensors" in fetched
  assert len(set(fetched)) == len(fetched)
  assert not any("safety" in one or "feature" in one for one in fetched)
  chosen = [4, 0, 7]
  images = ours.make(PROMPTS, chosen, 3.0)
  baseline = image_makers.open(made, f"diffusers:{hub.folder}/tiny/{kind}")
  assert baseline.identity["noise"] == "ours"
  others = baseline.make(PROMPTS, chosen, 3.0)
  assert images.std() > 0.02
  assert np.abs(images[0] - images[1]).max() > 0.05
  assert np.abs(others - images).max() < theirs.TOLERANCE
  # Once is enough, also where there is no network any more.
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  again = image_makers.open(made, f"tiny/{kind}")
  assert sorted(hub.fetched) == fetched
  assert again.identity == ours.identity
  assert again.name == f"tiny/{kind}"


def evaluated(name, data, eyes, hub, workdir):
  """metrics.json of the command, as a person types it."""
  words = [
    f"--config.evaluate.{field.removeprefix('evaluate__')}={value}"
    for field, value in eyes.items()
  ]
  status, _, err = tiny.run(
    "evaluate",
    data,
    str(workdir),
    f"--config.evaluate.model={name}",
    f"--config.evaluate.prompts={data}/captions",
    f"--config.evaluate.real={data}/catalogue",
    "--config.evaluate.validation_loss=false",
    "--config.evaluate.each=2",
    "--config.evaluate.guidance=(3.0,)",
    "--config.sample.steps=4",
    "--config.sample.sampler=ddim",
    *words,
    **stub_hub.environment(hub, workdir.parent / "home"),
  )
  assert status == 0, err
  assert "Traceback" not in err
  return json.loads((workdir / "metrics.json").read_text())["evaluation"]


def test_a_baseline_by_its_name_has_the_numbers_of_our_networks(
  data, hub, tmp_path
):
  eyes = tiny_eyes.save(tmp_path / "eyes", data)
  one, other = (
    evaluated(name, data, eyes, hub, tmp_path / place)
    for name, place in (("tiny/sd", "a"), ("diffusers:tiny/sd", "b"))
  )
  assert one["model"] == "tiny/sd"
  assert other["model"] == "diffusers' tiny/sd"
  for field in ("prompts", "each", "seed", "size"):
    assert one["recipe"][field] == other["recipe"][field]
  one, other = one["guidance_3"], other["guidance_3"]
  assert one["images"] == other["images"] == 2 * tiny.VALIDATION
  assert one.keys() == other.keys()
  for name in ("kid", "cmmd", "clip_score_clip", "inception_score"):
    assert one[name]["value"] == pytest.approx(
      other[name]["value"], rel=2e-3, abs=2e-3
    )


def test_a_kind_that_is_not_here_is_one_line(
  data, hub, cache, tmp_path, capsys
):
  words = [f"--config.evaluate.{n}=" for n in ("inception", "clip_fid", "cmmd")]
  words += [f"--config.evaluate.prompts={data}/captions"]
  words += ["--config.evaluate.validation_loss=false"]
  words += ["--config.evaluate.clip_score=()", "--config.evaluate.real="]
  model = "--config.evaluate.model="
  run = lambda name: toys.run("evaluate", data, tmp_path, *words, model + name)
  toys.check_refused(
    capsys,
    run("tiny/flux"),
    "no model 'tiny/flux'",
    "tiny/flux is a FluxPipeline; expected one of StableDiffusionPipeline",
    "write diffusers:tiny/flux",
  )
  # Of gigabytes nothing was fetched to find it out.
  assert hub.fetched == ["tiny/flux/model_index.json"]
  toys.check_refused(capsys, run("tiny/gone"), "it is no folder here", "404")
  toys.check_refused(
    capsys, run("diffusers:tiny/gone"), "diffusers cannot open 'tiny/gone'"
  )


def test_pipelines_of_packed_latents_draw_by_seed_and_number(
  data, hub, tmp_path
):
  made = config(data, tmp_path, "flux")
  flux = image_makers.open(made, f"diffusers:{hub.folder}/tiny/flux")
  assert flux.identity["noise"] == "torch's"
  images = flux.make(PROMPTS, [4, 0, 7], 3.0)
  assert images.shape == (3, tiny.SIZE, tiny.SIZE, 3)
  alone = flux.make(PROMPTS[1:2], [0], 3.0)
  np.testing.assert_allclose(alone, images[1:2], atol=theirs.TOLERANCE)
  other = flux.make(PROMPTS, [5, 0, 7], 3.0)
  assert np.abs(other[0] - images[0]).max() > 0.01
  np.testing.assert_allclose(other[1:], images[1:], atol=theirs.TOLERANCE)
