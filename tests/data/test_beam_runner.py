# SPDX-License-Identifier: Apache-2.0
"""The catalogue on Beam's local runner: `bash launch/test_beam.sh`."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys

import pytest
import tiny
import toy_pass

from cc_jax import cli
from cc_jax.data import beam_runner

needs_beam = pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is None,
  reason="no Apache Beam: run with `bash launch/test_beam.sh`",
)
BEAM = "--config.catalogue.runner=beam"
SHARDS = "--config.catalogue.records_per_shard=5"


def options(mode, workers=2):
  words = (f"--direct_running_mode={mode}", f"--direct_num_workers={workers}")
  return f"--config.catalogue.beam_options={words}"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A folder with a source of ten shards, and rejects of several kinds."""
  folder = tmp_path_factory.mktemp("data")
  tiny.write_source(folder / "source")
  (folder / "source/03.png").write_bytes(b"<html>404</html>")
  (folder / "source/17.png").unlink()
  path = folder / "source/metadata.jsonl"
  lines = path.read_text().splitlines()
  lines[30] = lines[30].replace("/by/", "/by-nd/")
  lines[44] = "{"
  path.write_text("\n".join(lines))
  return folder


@pytest.fixture(scope="module")
def straight(source):
  """What one process makes of it."""
  return catalogue(source, "here")


def catalogue(source, name, *words):
  """The contents of the folder that `cc-jax catalogue` leaves."""
  run(source, name, *words)
  return toy_pass.contents(source / name)


def run(source, name, *words):
  words = (SHARDS, f"--config.catalogue.folder={source}/{name}", *words)
  status, out, err = tiny.run("catalogue", source, source / "w", *words)
  assert status == 0, err
  return out


@needs_beam
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_beam_makes_the_same_bytes(mode, source, straight):
  found = catalogue(source, mode, BEAM, options(mode))
  assert found == straight
  counts = json.loads(found["provenance.json"])["counts"]
  assert counts["rejected"] == {
    "file_missing": 1,
    "image_format": 1,
    "licence_no_derivatives": 1,
    "line_broken": 1,
    "not_listed": 1,
  }
  assert counts["read"] == counts["kept"] + 5


@needs_beam
def test_beam_goes_on_where_it_was_killed(source, straight):
  moments, kills, done = random.Random(0), 0, None
  words = (SHARDS, BEAM, options("multi_threading"))
  words += (f"--config.catalogue.folder={source}/killed",)
  notes = source / "killed/.pass"
  while done != 0:
    process = tiny.start("catalogue", source, source / "w", *words)
    had = len(list(notes.glob("*.json")))
    # Killed when it has written something new, so that it gets to the end.
    while len(list(notes.glob("*.json"))) == had:
      try:
        process.wait(moments.uniform(0, 0.02))
        break
      except subprocess.TimeoutExpired:
        continue
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = process.returncode
    assert done in (0, -signal.SIGKILL)
    kills += done != 0
  assert kills > 1
  assert toy_pass.contents(source / "killed") == straight


@needs_beam
def test_either_goes_on_with_what_the_other_began(source, straight):
  run(source, "both")
  for name in ("dataset_info.json", ".pass/train-00003-of-00009.json"):
    (source / "both" / name).unlink()
  (source / "both/images").unlink(missing_ok=True)
  out = run(source, "both", BEAM, options("in_memory"))
  assert "wrote 1 shards" in out
  assert toy_pass.contents(source / "both") == straight
  assert "wrote 0 shards" in run(source, "both")


@needs_beam
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_what_a_worker_is_refused_is_one_line(mode, source):
  # Too little for a shard, enough for what is written before.
  command = ["prlimit", "--fsize=3000", sys.executable, "-c", tiny.MAIN]
  command += ["catalogue", f"--config={tiny.__file__}:{source}", BEAM]
  command += [f"--workdir={source}/w", SHARDS, options(mode)]
  command += [f"--config.catalogue.folder={source}/refused_{mode}"]
  done = subprocess.run(
    command,
    cwd=tiny.ROOT,
    env=os.environ | {"PYTHONPATH": str(tiny.ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2, done.stderr
  # Beam's own worker processes say more, before.
  assert mode == "multi_processing" or "Traceback" not in done.stderr
  line = done.stderr.splitlines()[-1]
  assert line.startswith(f"cc-jax: {source}/refused_{mode}/")
  assert "File too large; allow larger files" in line
  assert line.endswith("then the same command goes on")


def test_what_is_missing_or_misspelt_is_one_line(
  source, tmp_path, capsys, monkeypatch
):
  where = f"--config={tiny.__file__}:{source}"
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for words, expected in (
    ([BEAM], "pip install --constraint launch/constraints-beam.txt"),
    (["--config.catalogue.runner=bean"], "did you mean 'beam'"),
    ([options("in_memory")], "are for --config.catalogue.runner=beam"),
  ):
    argv = ["catalogue", where, f"--workdir={tmp_path}/w", *words]
    assert cli.main(argv) == 2
    assert expected in capsys.readouterr().err
  with pytest.raises(ValueError, match="Apache Beam is not installed"):
    beam_runner.make(())
