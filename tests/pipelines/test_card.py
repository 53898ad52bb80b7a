# SPDX-License-Identifier: Apache-2.0
"""The model card states what files say: counts, licences, hashes, configs."""

import json

import huggingface_hub
import pytest
import tiny
import toys

from cc_jax.core import files
from cc_jax.data import shards
from cc_jax.pipelines import card
from cc_jax.stages import caption, catalogue, encode

BY, SA, NC, ZERO = (
  f"https://creativecommons.org/{path}/"
  for path in (
    "licenses/by/2.0",
    "licenses/by-sa/2.0",
    "licenses/by-nc/2.0",
    "publicdomain/zero/1.0",
  )
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(config, work folder) after the stages up to training."""
  workdir = str(tmp_path_factory.mktemp("card"))
  urls = [BY] * 4 + [SA] * 3 + [NC] * 2 + [ZERO] + ["all rights reserved"] * 2
  rows = [
    toys.row(
      f"{i}.png", licenseurl=url, split="train" if i % 4 else "validation"
    )
    for i, url in enumerate(urls)
  ]
  pictures = {f"{i}.png": toys.picture(i) for i in range(len(urls))}
  toys.write_source(f"{workdir}/source", rows, pictures)
  tiny.save_vae(f"{workdir}/vae", seed=0)
  config = tiny.config(
    workdir,
    workdir,
    catalogue__collection="non-commercial",
    export__licence="cc-by-nc-sa-4.0",
    export__datasets=("somebody/photographs",),
  )
  for stage in (catalogue, caption, encode):
    stage.main(config, workdir)
  # What the training noted is what counts, not what the export is given.
  noted = config.to_dict()
  noted["train"]["lr"] = 0.125
  files.write_json(
    f"{workdir}/config.json", {"train": {"config": noted, "revision": "abc1"}}
  )
  files.write_json(
    f"{workdir}/metrics.json", {"fid": {"coco": 12.34567}, "images": 500}
  )
  toys.write_checkpoint(config, step=40)
  return config, workdir


@pytest.fixture(scope="module")
def text(made):
  return card.write(*made, usage="Use it so.", tag="text-to-image")


def test_the_hub_reads_the_header(text):
  data = huggingface_hub.ModelCard(text).data
  assert data.license == "cc-by-nc-sa-4.0"
  assert data.library_name == "diffusers"
  assert data.pipeline_tag == "text-to-image"
  assert data.datasets == ["somebody/photographs"]
  assert data.tags == ["cc_jax", "creative-commons"]


def test_a_licence_that_nobody_chose_is_left_out(made):
  config, workdir = made
  free = type(config)(config)
  free.export.licence, free.export.datasets = "", ()
  text = card.write(free, workdir, usage="", tag="text-to-image")
  data = huggingface_hub.ModelCard(text).data
  assert data.license is None
  assert data.datasets is None
  assert "No licence of the weights is stated here" in text


def test_licences_are_counted(text):
  for row in (
    "| CC-BY-2.0 | 4 | yes | no | yes |",
    "| CC-BY-SA-2.0 | 3 | yes | yes | yes |",
    "| CC-BY-NC-2.0 | 2 | yes | no | no |",
    "| CC0-1.0 | 1 | no | no | yes |",
  ):
    assert f"\n{row}\n" in text
  flat = " ".join(text.split())
  assert "10 images of known licence (non-commercial collection)" in flat
  assert "7 in `train`" in flat
  assert "3 in `validation`" in flat
  assert "9 of them require that their author is named" in flat
  assert "3 that adaptations are shared alike" in flat


def test_side_folders_are_not_counted_again(made, text):
  config, workdir = made
  several = type(config)(config)
  several.train.folders = (*config.train.folders, config.caption.folder)
  again = card.write(several, workdir, usage="", tag="text-to-image")
  assert "| CC-BY-2.0 | 4 | yes | no | yes |" in again


def test_the_licence_section_says_what_images_imply(text):
  section = text.partition("## Licence")[2]
  assert "released under `cc-by-nc-sa-4.0`" in section
  assert "3 images are shared alike" in section
  assert "2 images may not be used commercially" in section


def test_a_free_data_set_implies_nothing():
  dataset = shards.Dataset(
    "d", "d", (), {}, {"counts": {"licences": {"CC0-1.0": 5}}}
  )
  assert "images" not in card.licence(dataset, "mit").partition("## ")[2]


def test_each_stage_is_told_with_what_it_refused(made, text):
  assert "| catalogue | {workdir}/source | 12 | 10 | 2 |" in text
  assert "| caption | {workdir}/catalogue | 10 | 10 | 0 |" in text
  folders = "{workdir}/catalogue, {workdir}/captions"
  assert f"| encode | {folders} | 10 | 10 | 0 |" in text
  assert "Refused: licence_unknown 2." in text
  assert '"templates": ["a photo of {title}"]' in text
  weights = shards.open(made[0].train.folders[0]).provenance["weights"]
  assert set(weights) == {"latent_mean", "latent_std", "tokens"}
  for feature, digest in weights.items():
    assert f"| {feature} | `{digest}` |" in text


def test_data_that_is_gone_is_said_to_be_gone(made):
  provenance = {
    "stage": "encode",
    "inputs": [{"folder": "/far/away", "provenance": "0" * 64}],
  }
  dataset = shards.Dataset("here", "d", (), {}, provenance)
  found = card.history([dataset])
  assert [one.folder for one in found] == ["/far/away", "here"]
  assert found[0].provenance is None
  assert "| ? | away | gone or changed since |" in card.sources(found, "w")
  # Made again by other settings: it is not what this was made from.
  changed = made[0].catalogue.folder
  provenance["inputs"] = [{"folder": changed, "provenance": "0" * 64}]
  assert card.history([dataset])[0].provenance is None


def test_the_training_is_told_as_it_was_noted(text):
  assert "| steps | 40 |" in text
  assert "| learning rate | 0.125 |" in text
  assert "| cc_jax | abc1 |" in text
  block = text.partition("```json\n")[2].partition("```")[0]
  config = json.loads(block)
  assert config["train"]["lr"] == 0.125
  assert config["train"]["checkpoints"] == "{workdir}/checkpoints"


def test_the_evaluation_is_a_table(text):
  assert "| fid.coco | 12.35 |" in text
  assert "| images | 500 |" in text
  assert card.evaluation("no/such/metrics.json") == ""


def test_paths_are_shown_without_what_is_private():
  shown = lambda value: card.shown(value, "/secret/runs/a")
  assert shown("/secret/runs/a/x") == "{workdir}/x"
  assert shown("/secret/runs/vae") == "{workdir}/../vae"
  assert shown("/secret/runs/ab") == "{workdir}/../ab"
  assert shown("/secret/photographs") == "photographs"
  assert shown("gs://bucket/x") == "gs://bucket/x"
  assert shown({"a": ["/secret/b", 1, None]}) == {"a": ["b", 1, None]}
