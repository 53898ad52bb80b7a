# SPDX-License-Identifier: Apache-2.0
import dataclasses
import shutil

from flax import nnx
import jax
import numpy as np
import pytest
import tiny
import tiny_clip_gen

from cc_jax.core import files, tree
from cc_jax.models import families, hub, kinds
from cc_jax.tasks import task as tasks


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def task(data):
  return tasks.make(tiny.config(data, data))


def test_an_unknown_task_is_named_with_those_that_are_there(data):
  made = tiny.config(data, data, train__task="gan")
  with pytest.raises(
    ValueError, match="unknown task 'gan'; tasks/ has autoencoder, contra"
  ):
    tasks.make(made)


def test_a_type_of_too_small_a_range_is_refused(data):
  made = tiny.config(data, data, train__dtype="float16")
  with pytest.raises(ValueError, match="'float16'; expected float32 or bfloat"):
    tasks.make(made)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_starts_from_float32_weights_by_the_names_of_its_parts(
  data, name, tmp_path_factory
):
  fields = {
    "autoencoder": dict(model__vae=tiny.VAE),
    "contrastive": dict(model__clip=dataclasses.asdict(tiny_clip_gen.CLIP)),
    "latent_diffusion": {},
    "vqgan": dict(
      model__vqgan=dataclasses.asdict(tiny_clip_gen.VQGAN),
      model__discriminator=dict(channels=4, depth=1),
    ),
  }
  if name == "prior":
    folders = tiny_clip_gen.shared(tmp_path_factory)
    made = tiny_clip_gen.config(*folders, data)
  else:
    made = tiny.config(data, data, train__task=name, **fields[name])
  found = tasks.make(made)
  shapes = jax.eval_shape(found.init, jax.random.key(0))
  # What is no network is counted in steps, beside them.
  assert shapes.keys() - found.parts.keys() <= {"vqgan_state", "steps"}
  assert found.parts.keys() <= shapes.keys()
  types = {leaf.dtype for leaf in jax.tree.leaves(shapes)}
  assert types == {np.dtype(np.float32)}
  known = families.FOLDERS.keys() | kinds.KINDS.keys()
  assert known >= found.parts.keys()


def test_a_source_has_the_features_of_the_task_and_no_others(data, task):
  source = tasks.source(task, [f"{data}/latents"], "train")
  assert len(source) == tiny.RECORDS
  assert set(source[0]) == {"latent_mean", "latent_std", "tokens"}
  assert source[0]["latent_mean"].shape == (8, 8, 4)


def test_aligned_folders_are_read_as_one(data, task):
  source = tasks.source(task, [f"{data}/captions", f"{data}/latents"], "train")
  assert set(source[0]) == {"latent_mean", "latent_std", "tokens"}


def test_data_without_a_feature_is_refused(data, task):
  with pytest.raises(ValueError, match=r"no feature 'tokens' in .*catal"):
    tasks.source(task, [f"{data}/catalogue"], "train")


@pytest.mark.parametrize("feature", ["latent_mean", "latent_std", "tokens"])
def test_data_that_other_weights_made_is_refused(data, task, tmp_path, feature):
  shutil.copytree(f"{data}/latents", tmp_path / "latents")
  name = tmp_path / "latents" / "provenance.json"
  provenance = files.read_json(name)
  provenance["weights"][feature] = "sha256:" + "0" * 64
  files.write_json(name, provenance)
  with pytest.raises(
    ValueError, match=f"'{feature}' of .* was made by weights"
  ):
    tasks.source(task, [str(tmp_path / "latents")], "train")


def save(folder, kind, config, seed):
  module = kinds.make(kind, config, rngs=nnx.Rngs(seed))
  params = tree.split(module)[1]
  hub.save(str(folder), kind, config, params)
  return params


def test_params_are_loaded_from_the_folder_of_a_pipeline(task, tmp_path):
  wanted = {
    name: save(tmp_path / families.FOLDERS[name], *part, seed=5)
    for name, part in task.parts.items()
  }
  found = tasks.load(task, str(tmp_path))
  assert tiny.largest_difference(found, wanted) == 0


def test_the_folder_of_one_network_is_enough_for_one(data, tmp_path):
  fields = dict(train__task="autoencoder", model__vae=tiny.VAE)
  task = tasks.make(tiny.config(data, data, **fields))
  wanted = save(tmp_path, *task.parts["vae"], seed=5)
  found = tasks.load(task, str(tmp_path))
  assert tiny.largest_difference(found["vae"], wanted) == 0


def test_a_folder_that_lacks_a_network_is_refused(task, tmp_path):
  save(tmp_path / "unet", *task.parts["unet"], seed=5)
  with pytest.raises(ValueError, match=r"no config\.json in"):
    tasks.load(task, str(tmp_path))
