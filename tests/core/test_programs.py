# SPDX-License-Identifier: Apache-2.0
"""Programs saved and loaded, on the devices that are here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.core import programs, sharding

CONFIG = {"train": {"lr": 0.1, "dtype": "float32"}, "seed": 1}


def lowered(mesh, scale=2.0, size=8):
  shape = jax.ShapeDtypeStruct(
    (size, 4), jnp.float32, sharding=sharding.batch_layout(mesh)
  )
  return jax.jit(lambda x: {"y": x * scale}).lower(shape)


@pytest.fixture
def saved(tmp_path):
  mesh, file = sharding.make_mesh(), str(tmp_path / "step.program")
  made = lowered(mesh)
  programs.save(file, made, made.compile(), mesh, CONFIG)
  return mesh, file


def test_a_program_is_loaded_and_computes_the_same(saved):
  mesh, file = saved
  run = programs.load(file, lowered(mesh), mesh, CONFIG)
  x = jax.device_put(np.ones((8, 4), "f4"), sharding.batch_layout(mesh))
  np.testing.assert_array_equal(run(x)["y"], 2 * np.ones((8, 4)))


def test_another_step_is_refused_with_the_fields_that_differ(saved):
  mesh, file = saved
  other = {**CONFIG, "train": {"lr": 0.2, "dtype": "float32"}}
  with pytest.raises(ValueError, match=r"train\.lr=0\.1 \(now 0\.2\)"):
    programs.load(file, lowered(mesh, 3.0), mesh, other)
  # The same fields, and a step that is not the same all the same.
  with pytest.raises(ValueError, match="the code of the step differs"):
    programs.load(file, lowered(mesh, size=16), mesh, CONFIG)


def test_fields_that_change_nothing_are_no_reason_to_refuse(saved):
  mesh, file = saved
  assert programs.load(file, lowered(mesh), mesh, {"seed": 2})


def test_another_mesh_or_version_is_refused(saved, monkeypatch):
  mesh, file = saved
  half = sharding.make_mesh(fsdp=2)
  with pytest.raises(ValueError, match=r"'fsdp': 1.*now.*'fsdp': 2"):
    programs.load(file, lowered(half), half, CONFIG)
  version = programs.metadata.version
  newer = lambda name: "9.9" if name == "jaxlib" else version(name)
  monkeypatch.setattr(programs.metadata, "version", newer)
  with pytest.raises(ValueError, match=r"versions .*'jaxlib': '9\.9'"):
    programs.load(file, lowered(mesh), mesh, CONFIG)


def test_files_that_are_no_programs_are_named(saved, tmp_path):
  mesh, _ = saved
  with pytest.raises(ValueError, match=r"no program .*config\.plan\.program"):
    programs.load(str(tmp_path / "none"), lowered(mesh), mesh, CONFIG)
  (tmp_path / "other").write_bytes(b"\x80 something\nelse")
  with pytest.raises(ValueError, match="is no program of `cc-jax plan`"):
    programs.load(str(tmp_path / "other"), lowered(mesh), mesh, CONFIG)
