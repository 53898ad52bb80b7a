# SPDX-License-Identifier: Apache-2.0
"""What a user gets wrong is one line, and nothing is written."""

import os

import pytest
import tiny
import toys


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """The shared data, which no refused command may change."""
  folder, _ = toys.shared(tmp_path_factory)
  before = toys.contents(folder)
  yield folder
  after = toys.contents(folder)
  assert {name: after.get(name) for name in before} == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A work folder with a checkpoint of random weights."""
  return toys.shared(tmp_path_factory)[1]


# stage, flags, what the line must say.
REFUSED = {
  "an unknown field": (
    "train",
    ["--config.train.stepss=3"],
    ["unknown field of config.train: 'stepss'", "'steps'"],
  ),
  "an unknown group": (
    "train",
    ["--config.trian.steps=3"],
    ["unknown field of config: 'trian'", "'train'"],
  ),
  "a field inside a field": (
    "train",
    ["--config.train.steps.more=3"],
    ["unknown field of config.train.steps: 'more'"],
  ),
  "a word for a number": (
    "train",
    ["--config.train.steps=many"],
    ["config.train.steps='many'", "expected int"],
  ),
  "a fraction for a whole number": (
    "train",
    ["--config.train.steps=1.5"],
    ["config.train.steps='1.5'", "expected int"],
  ),
  "a group for a field": (
    "train",
    ["--config.train=3"],
    ["config.train is a group"],
  ),
  "an unknown flag": (
    "train",
    ["--workdri=x"],
    ["unknown flag '--workdri'", "'--workdir'"],
  ),
  "a flag without a value": (
    "train",
    ["--config.train.steps"],
    ["'--config.train.steps': expected --name=value"],
  ),
  "an unknown task": (
    "train",
    ["--config.train.task=gan"],
    ["unknown task 'gan'", "latent_diffusion"],
  ),
  "a batch that does not divide": (
    "train",
    ["--config.train.batch_size=12"],
    ["batch_size=12 does not divide over 8 devices"],
  ),
  "more devices than there are": (
    "train",
    ["--config.train.mesh.fsdp=3"],
    ["does not match 8 devices"],
  ),
  "an unknown schedule": (
    "train",
    ["--config.model.schedule.kind=quadratic"],
    ["'quadratic'"],
  ),
  "an unknown prediction": (
    "train",
    ["--config.model.prediction=y"],
    ["'y'"],
  ),
  "an unknown split": (
    "train",
    ["--config.train.split=test"],
    ["no records in the split 'test'", "'train': 40"],
  ),
  "an unknown sampler of previews": (
    "train",
    ["--config.train.preview_every=5", "--config.sample.sampler=plms"],
    ["unknown sampler 'plms'", "dpm_solver_pp"],
  ),
  "an unknown sampler": (
    "sample",
    ["--config.sample.sampler=plms"],
    ["unknown sampler 'plms'", "ddim"],
  ),
  "a size that does not divide": (
    "sample",
    ["--config.sample.size=15"],
    ["sample.size=15 does not divide by 2"],
  ),
  "no prompts": (
    "sample",
    ["--config.sample.prompts=()"],
    ["sample.prompts is empty"],
  ),
  "no images a prompt": (
    "sample",
    ["--config.sample.each=0"],
    ["sample.each=0; expected 1 or more"],
  ),
  "more steps than were trained": (
    "sample",
    ["--config.sample.steps=1001"],
    ["1001", "1000"],
  ),
  "samples that do not divide": (
    "sample",
    ["--config.sample.batch_size=12"],
    ["batch_size=12 does not divide over 8 devices"],
  ),
  "a checkpoint that is not there": (
    "sample",
    ["--config.sample.step=7"],
    ["no checkpoint of step 7", "the latest is 1"],
  ),
  "a part that is not there": (
    "sample",
    ["--config.sample.part=average"],
    ["has no 'average'; it has ema, params, step"],
  ),
  "a checkpoint of another model": (
    "sample",
    ["--config.model.unet.channels=(8,24)"],
    ["is of another model", "expected float32"],
  ),
  "an evaluation that does not divide": (
    "evaluate",
    ["--config.evaluate.batch_size=12"],
    ["batch_size=12 does not divide over 8 devices"],
  ),
  "an evaluation of another model": (
    "evaluate",
    ["--config.model.text.mlp=24"],
    ["is of another model", "text."],
  ),
  "an unknown split of an evaluation": (
    "evaluate",
    ["--config.evaluate.split=test"],
    ["no records in the split 'test'"],
  ),
  "an export of another model": (
    "export",
    ["--config.model.unet.channels=(8,24)"],
    ["is of another model"],
  ),
  "an export with a sampler that diffusers lacks": (
    "export",
    [
      "--config.sample.sampler=heun",
      "--config.model.schedule.zero_snr=true",
      "--config.model.prediction=v",
    ],
    ["HeunDiscreteScheduler has no zero terminal SNR"],
  ),
  "an encoding that does not divide": (
    "encode",
    ["--config.encode.size=15"],
    ["encode.size=15 does not divide by 2"],
  ),
  "an encoding in batches that do not": (
    "encode",
    ["--config.encode.batch_size=12"],
    ["encode.batch_size=12 does not divide over 8 devices"],
  ),
  "an encoding begun with other settings": (
    "encode",
    ["--config.encode.size=8"],
    ["was begun with config.size=16; got 8"],
  ),
  "an autoencoder that is not there": (
    "encode",
    ["--config.model.vae=nowhere/vae"],
    ["no autoencoder 'nowhere/vae'", "sd2/vae", "a folder"],
  ),
  "an autoencoder without weights": (
    "encode",
    ["--config.model.vae=SD"],
    ["autoencoder 'SD' has no weights"],
  ),
  "captions begun with other templates": (
    "caption",
    ["--config.caption.templates=('{title}',)"],
    ["was begun with config.templates"],
  ),
  "a template with an unknown field": (
    "caption",
    ["--config.caption.templates=('a {titel}',)"],
    ["'a {titel}' names 'titel'", "title"],
  ),
  "a template with half a field": (
    "caption",
    ["--config.caption.templates=('a {title',)"],
    ["'a {title'"],
  ),
  "no templates": (
    "caption",
    ["--config.caption.templates=()"],
    ["caption.templates is empty"],
  ),
  "an unknown collection": (
    "catalogue",
    ["--config.catalogue.collection=comercial"],
    ["'comercial'", "commercial, non-commercial"],
  ),
  "an unknown default licence": (
    "catalogue",
    ["--config.catalogue.licence=MIT"],
    ["catalogue.licence='MIT'", "CC-BY-4.0"],
  ),
  "a source that is not there": (
    "catalogue",
    ["--config.catalogue.source=nowhere"],
    ["no folder 'nowhere'", "metadata.jsonl"],
  ),
  "no source": ("catalogue", ["--config.catalogue.source="], ["no folder ''"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_says_what_is_wrong(case, data, trained, tmp_path, capsys):
  stage, flags, words = REFUSED[case]
  if stage in ("sample", "evaluate", "export"):
    flags = [*flags, f"--config.train.checkpoints={trained}/checkpoints"]
  status = toys.run(stage, data, tmp_path / "w", *flags)
  toys.check_refused(capsys, status, *words)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("stage", ["sample", "evaluate", "export"])
def test_without_a_checkpoint_there_is_nothing_to_do(
  stage, data, tmp_path, capsys
):
  status = toys.run(stage, data, tmp_path / "w")
  toys.check_refused(
    capsys, status, f"no checkpoint in {tmp_path}/w/checkpoints"
  )
  assert not (tmp_path / "w").exists()


def test_an_export_of_a_task_without_one_is_refused(data, tmp_path, capsys):
  flag = "--config.train.task=gan"
  toys.check_refused(capsys, toys.run("export", data, tmp_path, flag), "'gan'")


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_latents_of_another_autoencoder_are_refused(
  stage, data, trained, tmp_path, capsys
):
  tiny.save_vae(f"{tmp_path}/vae", seed=9)
  flags = [
    f"--config.model.vae={tmp_path}/vae",
    f"--config.train.checkpoints={trained}/checkpoints",
  ]
  status = toys.run(stage, data, tmp_path / "w", *flags)
  words = "was made by weights", "latent_mean", "encode the dataset again"
  toys.check_refused(capsys, status, *words)
  assert not (tmp_path / "w").exists()


def test_an_autoencoder_of_an_odd_size_is_refused(data, tmp_path, capsys):
  flags = [
    "--config.train.task=autoencoder",
    f"--config.train.folders=('{data}/catalogue',)",
    "--config.autoencoder.size=15",
  ]
  status = toys.run("train", data, tmp_path / "w", *flags)
  toys.check_refused(capsys, status, "autoencoder.size=15 does not divide by 2")
  assert not (tmp_path / "w").exists()


def test_folders_that_are_no_dataset_are_refused(data, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  (tmp_path / "other").mkdir()
  (tmp_path / "other/readme.txt").write_text("-")
  for folder, words in (
    ("none", "does not exist or is empty"),
    ("empty", "does not exist or is empty"),
    ("other", "is not a dataset"),
  ):
    for stage, flag in (
      ("caption", f"--config.caption.images={tmp_path}/{folder}"),
      ("encode", f"--config.encode.images={tmp_path}/{folder}"),
      ("encode", f"--config.encode.captions={tmp_path}/{folder}"),
      ("train", f"--config.train.folders=('{tmp_path}/{folder}',)"),
    ):
      status = toys.run(stage, data, tmp_path / "w", flag)
      toys.check_refused(capsys, status, f"{tmp_path}/{folder} {words}")
  assert not (tmp_path / "w").exists()
  assert not list((tmp_path / "empty").iterdir())


def test_a_dataset_of_which_nothing_entered_ends_there(data, tmp_path, capsys):
  source = toys.write_source(
    tmp_path / "source",
    [toys.row("a.png", licenseurl="all rights reserved")],
    {"a.png": toys.picture(0)},
  )
  flags = [
    f"--config.catalogue.source={source}",
    f"--config.catalogue.folder={tmp_path}/catalogue",
    f"--config.caption.images={tmp_path}/catalogue",
    f"--config.caption.folder={tmp_path}/w/captions",
  ]
  assert toys.run("catalogue", data, tmp_path / "c", *flags) == 0
  assert "rejected 1 (1 licence_unknown)" in capsys.readouterr().out
  status = toys.run("caption", data, tmp_path / "w", *flags)
  toys.check_refused(capsys, status, "has no records; its rejects.jsonl says")
  assert not (tmp_path / "w").exists()


def test_a_folder_with_other_files_is_not_filled(data, tmp_path, capsys):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/thesis.tex").write_text("-")
  flag = f"--config.catalogue.folder={tmp_path}/mine"
  status = toys.run("catalogue", data, tmp_path / "w", flag)
  toys.check_refused(capsys, status, "is not empty (it has thesis.tex)")
  assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
  assert not (tmp_path / "w").exists()
