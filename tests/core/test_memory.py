# SPDX-License-Identifier: Apache-2.0
"""What import and export of large weights take, in a process of their own."""

import json
import os
import subprocess
import sys

import big_weights
import pytest


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  name = tmp_path_factory.mktemp("big") / "model.safetensors"
  assert big_weights.write(name) > 1.4e9
  yield str(name)
  # pytest keeps the folders of three runs.
  name.unlink()


def measured(file, where):
  ran = subprocess.run(
    [sys.executable, big_weights.__file__, file, where],
    capture_output=True,
    text=True,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    },
  )
  assert ran.returncode == 0, ran.stderr
  os.remove(f"{file}.half")
  return json.loads(ran.stdout)


# The largest array, stacked, is 0.27 GB in bfloat16; a tensor is 0.07 GB.
def test_import_takes_the_target_and_one_tensor_more(file):
  found = measured(file, "numpy")
  assert 0.7e9 < found["size"] < 0.8e9
  assert found["imported"] < found["size"] + 0.2e9
  assert found["exported"] < 0.2e9
  assert found["size"] < found["written"] < found["size"] + 1e5
  # h.7.mlp.up is the last name but one.
  assert found["last"] == 8 * 3 - 2


def test_import_to_a_mesh_takes_the_target_and_one_array_more(file):
  found = measured(file, "mesh")
  assert found["imported"] < found["size"] + 0.5e9
  assert found["exported"] < 0.3e9
  assert found["last"] == 8 * 3 - 2
