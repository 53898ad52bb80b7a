# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import pytest
import tiny

from cc_jax.stages import bench


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tiny.shared(tmp_path_factory)
  with tiny.compiled_once(folder):
    yield folder


def test_a_bench_measures_the_train_step_of_a_config(data, tmp_path, capfd):
  made = tiny.config(
    data,
    tmp_path,
    bench__steps=2,
    bench__loader_seconds=0.0,
    train__task="autoencoder",
    train__folders=(f"{data}/catalogue",),
  )
  with made.unlocked(), made.ignore_type():
    made.model.vae = tiny.VAE
  found = bench.main(made, str(tmp_path))
  assert json.loads(pathlib.Path(made.bench.result).read_text()) == found
  assert found["tflop_per_step"] > 0
  assert found["compile_seconds"] > 0
  assert not any("loader" in name for name in found)
  assert "tflop_per_step" in capfd.readouterr().out
  assert "bench" in json.loads((tmp_path / "config.json").read_text())
