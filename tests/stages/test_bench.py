# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import jax.numpy as jnp
import parity
import pytest
import tiny

from cc_jax.core import tree
from cc_jax.models import hub, kinds
from cc_jax.pipelines import network_speed, reference
from cc_jax.stages import bench


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


def small(data, folder, **fields):
  """A bench of the tiny networks, beside torch."""
  fields = {
    "bench__steps": 0,
    "bench__loader_seconds": 0.0,
    "bench__networks": ("unet", "vae", "text"),
    "bench__compare": "torch",
    "bench__size": 16,
    "bench__repeats": 1,
  } | fields
  made = tiny.config(data, folder, **fields)
  with made.unlocked(), made.ignore_type():
    made.model.vae = tiny.VAE
  return made


def test_networks_are_measured_beside_torch(data, tmp_path):
  found = bench.main(small(data, tmp_path), str(tmp_path))
  assert found["matmul_gflop_per_second"] > 0
  assert found["matmul_torch_gflop_per_second"] > 0
  for name in ("unet", "vae", "text"):
    for what in ("forward", "backward"):
      key = f"{name}_{what}"
      ours, theirs = found[f"{key}_seconds"], found[f"{key}_torch_seconds"]
      assert found[f"{key}_speedup"] == theirs / ours
      assert found[f"{key}_gflop"] > 0
      slow = found[f"{key}_speedup"] < 1
      # Where ours is slower, it says where the time goes.
      assert bool(found.get(f"{key}_slowest")) == slow
    ratio = found[f"{name}_backward_gflop"] / found[f"{name}_forward_gflop"]
    assert 2 < ratio < 3.1


def test_both_sides_compute_the_same(data, tmp_path):
  made = small(data, tmp_path)
  for name, work in network_speed.works(made).items():
    config = hub.config(made.model[name], work.kind)
    structure, shapes = kinds.structure(work.kind, config)
    params = parity.scramble(shapes)
    theirs = reference.open(work.kind, config, params, work.inputs).forward()
    inputs = map(jnp.asarray, work.inputs.values())
    ours = work.run(tree.merge(structure, params), *inputs)
    if ours.ndim == 4:
      theirs = theirs.permute(0, 2, 3, 1)
    parity.check(ours, theirs, parity.MODEL)


def test_without_torch_ours_are_measured_alone(data, tmp_path):
  made = small(data, tmp_path, bench__compare="", bench__networks=("text",))
  found = bench.main(made, str(tmp_path))
  assert found["text_forward_seconds"] > 0
  assert not any("torch" in name for name in found)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"bench__networks": ("gan",)}, "'gan'; expected unet, vae, text"),
    ({"bench__compare": "jittor"}, "bench.compare='jittor'; expected"),
  ],
)
def test_what_cannot_be_measured_is_refused(data, tmp_path, fields, words):
  with pytest.raises(ValueError, match=words):
    bench.main(small(data, tmp_path, **fields), str(tmp_path))


def test_a_comparison_without_its_library_says_what_to_install():
  with pytest.raises(ValueError, match=r"pip install torch==2\.13\.0"):
    reference.library("no_such_library")
