# SPDX-License-Identifier: Apache-2.0
"""Checkpoints cut short or changed are found out, and what is none is not."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from cc_jax.core import checkpoint, damage

PLACE = {"next_index": 7}
PATHS = {"params": (300, 40), "ema": (300, 40), "step": ()}


def state(step):
  """Random weights: what cannot be compressed is stored as it is."""
  rng = np.random.default_rng(step)
  made = {
    name: {"w": rng.standard_normal(shape).astype(np.float32)}
    for name, shape in PATHS.items()
    if shape
  }
  return made | {"step": np.int32(step)}


def shapes(rows=300):
  def one(leaf):
    shape = (rows, *leaf.shape[1:]) if leaf.ndim else ()
    return jax.ShapeDtypeStruct(shape, leaf.dtype)

  return jax.tree.map(one, state(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  manager = checkpoint.manager(folder, async_=False)
  for step in (10, 20):
    checkpoint.save(manager, step, state(step), PLACE, {})
  checkpoint.close(manager)
  return folder


def largest(step):
  """The file with the arrays of a checkpoint."""
  return max(
    (p for p in (step / "state").rglob("*") if p.is_file()),
    key=lambda path: path.stat().st_size,
  )


def flip(step):
  """One bit in the middle of the arrays."""
  file = largest(step)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


def cut(step):
  """The second half of the arrays is gone."""
  file = largest(step)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_a_sum(step):
  file = next((step / "sums").iterdir())
  sums = json.loads(file.read_text())
  file.write_text(json.dumps({name: 1 for name in sums}))


DAMAGE = {
  "a bit of the arrays": flip,
  "half of the arrays": cut,
  "no arrays": lambda step: largest(step).unlink(),
  "no state": lambda step: shutil.rmtree(step / "state"),
  "no place": lambda step: shutil.rmtree(step / "place"),
  "no sums": lambda step: shutil.rmtree(step / "sums"),
  "an empty place": lambda step: next((step / "place").iterdir()).write_text(
    ""
  ),
  "no list of arrays": lambda step: (step / "state/_METADATA").write_text("{"),
  "other sums": change_a_sum,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_said_and_the_one_before_is_used(
  kind, saved, tmp_path, capsys
):
  folder = pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))
  DAMAGE[kind](folder / "20")
  found, place = checkpoint.restore(folder, shapes())
  assert int(found["step"]) == 10
  assert place == PLACE
  np.testing.assert_array_equal(found["ema"]["w"], state(10)["ema"]["w"])
  said = capsys.readouterr().out
  assert said.startswith(f"checkpoint {folder}/20 is damaged: ")
  assert said.endswith("; the one before it is used\n")
  # Who asks for this one gets no other.
  with pytest.raises(ValueError, match="/20 is damaged") as error:
    checkpoint.restore(folder, shapes(), step=20)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["a bit of the arrays", "half of the arrays"])
def test_weights_alone_are_checked_too(kind, saved, tmp_path, capsys):
  folder = pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))
  DAMAGE[kind](folder / "20")
  half = jax.ShapeDtypeStruct((300, 40), jax.numpy.bfloat16)
  for part in ("params", "ema"):
    checkpoint.load(folder, part)
    checkpoint.load(folder, part, {"w": half})
  said = capsys.readouterr().out
  # The bit is in one of the two; the half that is missing may be, too.
  assert said.count("is damaged") in ((2,) if kind[0] == "a" else (2, 4))


def test_all_damaged_is_an_error_and_no_new_beginning(saved, tmp_path):
  folder = pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))
  flip(folder / "20")
  cut(folder / "10")
  words = r"/10 is damaged: .*, as are the 1 after it; delete what is there"
  with pytest.raises(ValueError, match=words):
    checkpoint.restore(folder, shapes())


def test_another_model_is_an_error_and_no_damage(saved, capsys):
  with pytest.raises(ValueError, match="/20 is of another model") as error:
    checkpoint.restore(saved, shapes(rows=200))
  assert not isinstance(error.value, damage.Damaged)
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
  "error",
  [
    PermissionError(13, "Permission denied"),
    ValueError("UNAVAILABLE: Error reading gs://b/d: HTTP 503"),
    TimeoutError("no answer"),
  ],
)
def test_a_disk_that_does_not_answer_is_an_error_and_no_damage(
  error, saved, monkeypatch, capsys
):
  def refuse(*args, **kwargs):
    raise error

  monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", refuse)
  with pytest.raises(ValueError, match="/20 cannot be read") as found:
    checkpoint.restore(saved, shapes())
  assert not isinstance(found.value, damage.Damaged)
  assert capsys.readouterr().out == ""


def test_what_is_no_error_of_reading_is_not_caught(saved, monkeypatch):
  def full(*args, **kwargs):
    raise RuntimeError("out of memory")

  monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", full)
  with pytest.raises(RuntimeError, match="out of memory"):
    checkpoint.restore(saved, shapes())


def test_a_run_that_goes_on_before_damage_keeps_it_aside(
  saved, tmp_path, capsys
):
  folder = pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))
  for _ in range(2):
    manager = checkpoint.manager(folder, after=10)
    assert checkpoint.save(manager, 20, state(20), PLACE, {})
    checkpoint.close(manager)
  names = {path.name for path in folder.iterdir()}
  assert names == {"10", "20", "damaged-20", "damaged-20-1"}
  assert "/20 is now damaged-20\n" in capsys.readouterr().out
  assert int(checkpoint.restore(folder, shapes())[0]["step"]) == 20
