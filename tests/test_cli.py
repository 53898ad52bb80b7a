# SPDX-License-Identifier: Apache-2.0
"""The command line: wrong commands are one line, bugs keep their traceback."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
import tiny
import toys

from cc_jax import cli


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return toys.shared(tmp_path_factory)[0]


# A whole command line, what the line must say.
COMMANDS = {
  "an unknown stage": (["trian"], ["unknown stage 'trian'", "'train'"]),
  "no config": (["train", "--workdir=w"], ["train needs --config="]),
  "no workdir": (
    ["train", "--config=configs/base.py"],
    ["train needs --workdir=DIR"],
  ),
  "a config that is not there": (
    ["train", "--config=configs/nope.py", "--workdir=w"],
    ["no config file configs/nope.py", "configs/NAME.py[:ARG]"],
  ),
  "a wrong config argument": (
    ["train", "--config=configs/quickstart.py:net", "--workdir=w"],
    ["configs/quickstart.py", "unet", "autoencoder", "'net'"],
  ),
  "an unknown preset": (
    [
      "train",
      "--config=configs/base.py",
      "--config.train.batch_size=8",
      "--config.model.unet=SD3",
      "--workdir=w",
    ],
    ["'SD3'", "SD2", "SDXL"],
  ),
  "a word for a number of hosts": (
    ["train", "--config=configs/base.py", "--workdir=w", "--hosts=two"],
    ["--hosts='two': expected int"],
  ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_wrong_command_is_one_line(case, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  argv, words = COMMANDS[case]
  toys.check_refused(capsys, cli.main(argv), *words)
  assert not list(tmp_path.iterdir())


def bug(kind):
  """What goes wrong in code of ours that is not a `raise`."""
  if kind == "in C":
    int("three")
  elif kind == "unpacking":
    first, second = [1]
    return first, second
  elif kind == "in a library":
    import json

    json.loads("{")
  raise KeyError(kind)


@pytest.mark.parametrize("kind", ["in C", "unpacking", "in a library", "key"])
def test_a_bug_keeps_its_traceback(kind, data, tmp_path, monkeypatch):
  # As if the stage itself went wrong: its file is in the package.
  code = bug.__code__.replace(co_filename=cli.__file__)
  broken = type(bug)(code, {"__builtins__": __builtins__})
  monkeypatch.setattr(
    "cc_jax.stages.sample.main", lambda config, workdir: broken(kind)
  )
  with pytest.raises((ValueError, KeyError)):
    toys.run("sample", data, tmp_path / "w")


def test_a_traceback_can_be_asked_for(data, tmp_path, monkeypatch):
  monkeypatch.setenv("CC_JAX_TRACEBACK", "1")
  with pytest.raises(ValueError, match="unknown sampler"):
    toys.run("sample", data, tmp_path, "--config.sample.sampler=plms")


def command(*words, cwd, **environment):
  """`cc-jax` as a user calls it: (status, stdout, stderr)."""
  inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = subprocess.run(
    [f"{pathlib.Path(sys.executable).parent}/cc-jax", *words],
    cwd=cwd,
    env=inherited | environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  return done.returncode, done.stdout, done.stderr


def test_the_package_runs_as_the_command_does(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "cc_jax", "paint"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 2
  assert "unknown stage 'paint'" in done.stderr


def test_help_is_quick_and_lists_the_stages(tmp_path):
  # Without jax: an import of it would fail here.
  (tmp_path / "jax.py").write_text("raise SystemExit('jax was imported')")
  seconds = []
  for _ in range(3):  # the best of three: the machine may be busy
    started = time.perf_counter()
    status, out, err = command("--help", cwd="/", PYTHONPATH=str(tmp_path))
    seconds.append(time.perf_counter() - started)
    assert (status, err) == (0, "")
  assert min(seconds) < 1
  for stage, (_, does) in cli.STAGES.items():
    assert f"  {stage}" in out
    assert does in out


def test_no_stage_is_a_wrong_command():
  assert cli.main([]) == 2


@pytest.mark.parametrize("case", ["a wrong config argument", "no workdir"])
def test_the_real_command_fails_in_one_line(case, tmp_path):
  argv, words = COMMANDS[case]
  status, out, err = command(*argv, cwd=tmp_path)
  assert (status, out) == (2, "")
  assert err.count("\n") == 1
  assert all(word in err for word in words)
  assert not list(tmp_path.iterdir())


def test_the_real_command_fails_in_one_line_with_jax(data, tmp_path):
  status, out, err = command(
    "sample",
    f"--config={tiny.__file__}:{data}",
    f"--workdir={tmp_path}/w",
    cwd=tmp_path,
  )
  assert (status, out) == (2, "")
  assert err == f"cc-jax: no checkpoint in {tmp_path}/w/checkpoints\n"
  assert not list(tmp_path.iterdir())
