# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import platform
import subprocess

import jax
import ml_collections

from cc_jax.core import versions

ROOT = pathlib.Path(__file__).parents[2]


def test_code_names_the_revision_and_the_packages_that_ran():
  code = versions.code()
  assert code["packages"]["python"] == platform.python_version()
  assert code["packages"]["jax"] == jax.__version__
  assert {"cc_jax", "flax", "grain"} <= code["packages"].keys()
  # What only tests need decides nothing.
  assert "torch" not in code["packages"]
  revision = code["revision"].removesuffix("-dirty")
  if (ROOT / ".git").exists():
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert revision == head.stdout.strip()
  else:
    assert revision == ""


def test_a_record_has_each_stage_as_it_ran_last(tmp_path, monkeypatch):
  config = ml_collections.ConfigDict({"a": {"b": (1, 2)}, "seed": 1})
  monkeypatch.setattr(versions, "COMMAND", [])
  versions.record(str(tmp_path), "encode", config)
  versions.record(str(tmp_path), "train", config)
  config.seed = 2
  versions.record(str(tmp_path), "train", config)
  stages = json.loads((tmp_path / "config.json").read_text())
  assert list(stages) == ["encode", "train"]
  assert stages["encode"]["config"] == {"a": {"b": [1, 2]}, "seed": 1}
  assert stages["train"]["config"]["seed"] == 2
  assert stages["train"]["packages"] == versions.code()["packages"]
  assert stages["train"]["command"] == ""
  devices = {"kind": "cpu", "count": jax.device_count(), "hosts": 1}
  assert stages["train"]["devices"] == devices


def test_a_record_has_the_command_as_a_shell_takes_it(tmp_path, monkeypatch):
  monkeypatch.setattr(versions, "COMMAND", ["train", "--workdir=a b"])
  versions.record(str(tmp_path), "train", ml_collections.ConfigDict())
  stages = json.loads((tmp_path / "config.json").read_text())
  assert stages["train"]["command"] == "cc-jax train '--workdir=a b'"


def test_a_digest_is_of_the_source_and_of_the_versions(tmp_path, monkeypatch):
  (tmp_path / "core").mkdir()
  source = tmp_path / "core/versions.py"
  monkeypatch.setattr(versions, "__file__", str(source))
  find = versions.digest.__wrapped__

  def found(text):
    source.write_text(text)
    return find()

  assert found("a = 1") == found("a = 1") != found("a = 2")
  before = found("a = 1")
  monkeypatch.setattr(versions, "code", lambda: {"packages": {"jax": "0"}})
  assert find() != before
