# SPDX-License-Identifier: Apache-2.0
"""`cc-jax sample` with a tiny model of random weights."""

import json

import numpy as np
import pytest
import tiny
import toys

from cc_jax.data import images
from cc_jax.stages import sample


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return toys.shared(tmp_path_factory)


def config(trained, workdir, **fields):
  data, folder = trained
  fields = {"train__checkpoints": f"{folder}/checkpoints"} | fields
  few = {"sample__each": 2, "sample__steps": 2}
  return tiny.config(data, workdir, **(few | fields))


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("sample")
  return folder, sample.main(config(trained, folder), str(folder))


def test_a_grid_has_each_prompt_as_often_as_asked(made):
  folder, found = made
  assert found.shape == (4, tiny.SIZE, tiny.SIZE, 3)
  assert len({image.tobytes() for image in found}) == 4
  picture = images.decode((folder / "samples.png").read_bytes())
  # Two rows of two, enlarged until a label finds room.
  assert picture.shape[0] > 2 * 112
  assert picture.shape[1] > 2 * 112
  stages = json.loads((folder / "config.json").read_text())
  assert stages["sample"]["config"]["sample"]["each"] == 2


def test_the_same_command_gives_the_same_images(trained, made, tmp_path):
  folder, found = made
  again = sample.main(config(trained, tmp_path), str(tmp_path))
  np.testing.assert_array_equal(again, found)
  assert (tmp_path / "samples.png").read_bytes() == (
    folder / "samples.png"
  ).read_bytes()
  other = sample.main(config(trained, tmp_path, seed=3), str(tmp_path))
  assert np.abs(other - found).max() > 0.05


def test_the_picture_goes_where_the_config_says(trained, made, tmp_path):
  place = f"{tmp_path}/elsewhere/grid.png"
  fields = {"sample__picture": place, "sample__part": "params"}
  found = sample.main(config(trained, tmp_path, **fields), str(tmp_path))
  # In this checkpoint the average is the weights.
  np.testing.assert_array_equal(found, made[1])
  assert images.decode((tmp_path / "elsewhere/grid.png").read_bytes()).any()
