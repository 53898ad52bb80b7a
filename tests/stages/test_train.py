# SPDX-License-Identifier: Apache-2.0
import functools
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import time

from flax import nnx
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny

from cc_jax.core import checkpoint, sharding, tree
from cc_jax.data import aligned, loader, shards
from cc_jax.models import hub, kinds
from cc_jax.stages import export, train

STEPS, EVERY = 48, 8
# Of runs whose sums are taken in another order: Adam divides gradients by
# their size, so this epsilon is far above the noise of the smallest.
STEADY = {"train__eps": 1e-3, "train__steps": 6, "train__checkpoint_every": 3}
FLAGS = ("--config.train.eps=1e-3", "--config.train.checkpoint_every=3")


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
  """A run that nobody stopped."""
  folder = tmp_path_factory.mktemp("reference")
  status, out, err = tiny.run("train", data, folder)
  assert status == 0, err
  assert f"{STEPS} steps, 0 done before" in out
  return folder


@pytest.fixture(scope="module")
def interrupted(data, tmp_path_factory):
  """The same run: killed in a save, terminated, killed between saves."""
  folder = tmp_path_factory.mktemp("interrupted")
  rng = random.Random(time.time_ns())
  happened = []

  def until(condition, number):
    process = tiny.start("train", data, folder)
    while not condition() and process.poll() is None:
      time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    done = checkpoint.latest_step(folder / "checkpoints") or 0
    happened.append((process.returncode, out, err, done))

  until(lambda: saving(folder), signal.SIGKILL)
  at = rng.randrange(10, 20)
  until(lambda: last_line(folder) >= at, signal.SIGTERM)
  at = rng.randrange(24, 38)
  until(lambda: last_line(folder) >= at, signal.SIGKILL)
  happened.append((*tiny.run("train", data, folder), STEPS))
  return folder, happened


def saving(folder):
  """Whether a checkpoint is being written: it is renamed when complete."""
  if not (folder / "checkpoints").exists():
    return False
  names = [path.name for path in (folder / "checkpoints").iterdir()]
  return any(not name.isdecimal() for name in names)


def lines(folder):
  text = (pathlib.Path(folder) / "metrics.jsonl").read_text()
  whole = text[: text.rfind("\n") + 1]
  return [json.loads(line) for line in whole.splitlines()]


def last_line(folder):
  if not (folder / "metrics.jsonl").exists():
    return 0
  return max((line["step"] for line in lines(folder)), default=0)


def losses(folder):
  return [line["loss"] for line in lines(folder)]


def final(data, folder, **fields):
  """State and loader's place of the newest checkpoint."""
  made = tiny.config(data, folder, **fields)
  state, place = checkpoint.restore(made.train.checkpoints, tiny.abstract(made))
  return tiny.leaves(state), place


def assert_identical(one, other):
  (state, place), (other_state, other_place) = one, other
  assert place == other_place
  assert state.keys() == other_state.keys()
  for path, leaf in state.items():
    assert leaf.dtype == other_state[path].dtype
    assert leaf.tobytes() == other_state[path].tobytes(), path


def test_a_run_ends_the_same_however_it_was_stopped(
  data, reference, interrupted
):
  folder, happened = interrupted
  assert happened[-1][0] == 0, happened[-1][2]
  assert_identical(final(data, folder), final(data, reference))


def test_kills_came_before_the_end_and_all_but_the_last_save_survived(
  interrupted,
):
  _, (in_a_save, terminated, between, ended) = interrupted
  assert in_a_save[0] == between[0] == -signal.SIGKILL
  assert in_a_save[3] <= terminated[3] <= between[3] < STEPS
  # A save is written beside the steps: the kill may have come before its end.
  assert between[3] % EVERY == 0 or between[3] == terminated[3]
  assert ", 0 done before" not in ended[1]


def test_preemption_saves_the_step_and_says_that_it_is_not_the_end(interrupted):
  _, (_, (status, out, err, done), *_) = interrupted
  assert status == 0
  assert f"SIGTERM: step {done} is saved; the same command goes on" in out
  assert "Traceback" not in err
  steps, before = map(int, re.search(r"(\d+) steps, (\d+) done", out).groups())
  assert steps + before == done >= 10


def test_metrics_have_every_step_once(reference, interrupted):
  folder, _ = interrupted
  assert [line["step"] for line in lines(folder)] == list(range(1, STEPS + 1))
  assert losses(folder) == losses(reference)


def test_a_finished_run_does_nothing(data, reference):
  before = sorted(path.name for path in reference.rglob("*"))
  state = train.main(tiny.config(data, reference), str(reference))
  assert int(state.step) == STEPS
  assert sorted(path.name for path in reference.rglob("*")) == before


def test_training_learns(reference):
  found = losses(reference)
  assert found[0] == pytest.approx(1, abs=0.15)
  assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])


@pytest.fixture(scope="module")
def eight(data, tmp_path_factory):
  """Six steps on eight devices, one example each."""
  folder = tmp_path_factory.mktemp("eight")
  train.main(tiny.config(data, folder, **STEADY), str(folder))
  return folder


def test_a_run_goes_on_on_another_mesh(data, eight, tmp_path, monkeypatch):
  shutil.copytree(eight / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
  # So that these small arrays are split at all.
  monkeypatch.setattr(sharding, "SMALL", 64)
  mesh = dict(data=2, fsdp=2, tensor=2)
  fields = {f"train__mesh__{axis}": size for axis, size in mesh.items()}
  made = tiny.config(data, tmp_path, **STEADY, **fields)
  state = train.main(made, str(tmp_path))
  split = [x for x in jax.tree.leaves(state) if not x.is_fully_replicated]
  assert len(split) > 100
  assert [line["step"] for line in lines(tmp_path)] == [4, 5, 6]
  np.testing.assert_allclose(losses(tmp_path), losses(eight)[3:], rtol=1e-5)
  assert close(final(data, tmp_path)[0], final(data, eight)[0])


@pytest.mark.slow
def test_a_run_goes_on_on_half_and_on_twice_the_devices(
  data, eight, tmp_path, monkeypatch
):
  shutil.copytree(eight / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
  half = functools.partial(sharding.make_mesh, devices=jax.devices()[:4])
  fields = STEADY | {"train__mesh__fsdp": 2}
  with monkeypatch.context() as patch:
    patch.setattr(sharding, "make_mesh", half)
    made = tiny.config(data, tmp_path, **fields | {"train__steps": 5})
    state = train.main(made, str(tmp_path))
    assert len(state.step.sharding.device_set) == 4
  made = tiny.config(data, tmp_path, **STEADY)
  state = train.main(made, str(tmp_path))
  assert len(state.step.sharding.device_set) == 8
  np.testing.assert_allclose(losses(tmp_path), losses(eight)[3:], rtol=1e-5)
  assert close(final(data, tmp_path)[0], final(data, eight)[0])


def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_the_same(
  data, eight, tmp_path, capsys
):
  shutil.copytree(eight / "checkpoints", tmp_path / "checkpoints")
  (tmp_path / "checkpoints/6/state/_METADATA").write_text("{")
  train.main(tiny.config(data, tmp_path, **STEADY), str(tmp_path))
  out = capsys.readouterr().out
  assert "checkpoints/6 is damaged" in out
  assert f"from step 3 of {tmp_path}/checkpoints" in out
  assert [line["step"] for line in lines(tmp_path)] == [4, 5, 6]
  names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert names == {"3", "6", "damaged-6"}
  assert_identical(final(data, tmp_path), final(data, eight))


def close(state, other):
  return tiny.largest_difference(state, other) < 1e-5


def test_two_processes_train_as_one_and_one_goes_on(data, eight, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    tiny.start(
      "train",
      data,
      tmp_path,
      "--hosts=2",
      "--config.cpu_devices=4",
      "--config.train.devices=8",
      "--config.train.steps=3",
      *FLAGS,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(index),
    )
    for index in range(2)
  ]
  ends = [process.communicate(timeout=300) for process in processes]
  for process, (_, err) in zip(processes, ends, strict=True):
    assert process.returncode == 0, err
  assert "3 steps" in ends[0][0]
  # The collectives of CPUs announce themselves, several threads in one line;
  # nothing of ours speaks twice.
  gloo = re.compile(r"\[Gloo\]|connected peer ranks")
  spoken = [line for line in ends[1][0].splitlines() if not gloo.search(line)]
  assert spoken == []
  np.testing.assert_allclose(losses(tmp_path), losses(eight)[:3], rtol=1e-5)
  made = tiny.config(data, eight, **STEADY)
  expected, _ = checkpoint.restore(
    made.train.checkpoints, tiny.abstract(made), 3
  )
  assert close(final(data, tmp_path)[0], expected)

  train.main(tiny.config(data, tmp_path, **STEADY), str(tmp_path))
  assert [line["step"] for line in lines(tmp_path)] == list(range(1, 7))
  assert close(final(data, tmp_path)[0], final(data, eight)[0])


def poisoned_latents(data, folder, seed, step):
  """The latents with one record, seen at `step`, that is not a number."""
  shutil.copytree(f"{data}/latents", folder)
  dataset = shards.open(folder)
  source = aligned.source([dataset], "train", ("key",))
  batches = loader.batches(source, batch_size=8, seed=seed)
  keys = [next(batches)["key"][0] for _ in range(step)]
  batches.close()
  examples = list(shards.read(dataset, "train", 0))
  for example in examples:
    if example["key"] == keys[-1]:
      example["latent_mean"] = np.full_like(
        example["latent_mean"], np.nan, ml_dtypes.bfloat16
      )
  path = pathlib.Path(folder) / shards.filename("tiny", "train", 0, 1)
  path.unlink()
  shards.write(path, dataset.fields, examples)


def test_a_loss_that_is_no_number_stops_the_run_and_saves_nothing(
  data, tmp_path
):
  made = tiny.config(data, tmp_path)
  poisoned_latents(data, tmp_path / "latents", made.seed, step=5)
  for _ in range(2):
    status, _, err = tiny.run(
      "train",
      data,
      tmp_path,
      f"--config.train.folders=('{tmp_path}/latents',)",
      "--config.train.checkpoint_every=4",
    )
    assert status == 2
    assert re.search(r"loss is nan.* at step 5;", err)
    assert "Traceback" not in err
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 4
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
  state, _ = final(data, tmp_path)
  assert all(np.isfinite(leaf).all() for leaf in state.values())


class Compiling(Exception):
  """The run has come as far as to compile this state."""


def state_to_compile(made, workdir, monkeypatch):
  def stop(update, state, loss, batch):
    raise Compiling(state)

  monkeypatch.setattr(train.steps, "compile_update", stop)
  with pytest.raises(Compiling) as stopped:
    train.main(made, str(workdir))
  return stopped.value.args[0]


def test_a_run_starts_from_an_exported_folder(
  data, reference, tmp_path, monkeypatch
):
  out = tmp_path / "export"
  made = tiny.config(data, reference, export__folder=str(out))
  export.main(made, str(reference))
  made = tiny.config(data, tmp_path, train__init=str(out))
  state = state_to_compile(made, tmp_path, monkeypatch)
  saved, _ = final(data, reference)
  for path, leaf in tree.flatten(state.params).items():
    np.testing.assert_array_equal(leaf, saved[f"ema.{path}"])
  for path, leaf in tree.flatten(state.ema).items():
    np.testing.assert_array_equal(leaf, saved[f"ema.{path}"])
  assert int(state.step) == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt))


def refused(made, workdir, words):
  """Asserts one clear line, and that nothing new is in the work folder."""
  before = sorted(map(str, pathlib.Path(workdir).rglob("*")))
  with pytest.raises(ValueError, match=words) as error:
    train.main(made, str(workdir))
  assert "\n" not in str(error.value)
  assert sorted(map(str, pathlib.Path(workdir).rglob("*"))) == before


def test_init_refuses_another_architecture(data, tmp_path):
  folder = tmp_path / "init"
  fields = tiny.config(data, tmp_path).model.unet.to_dict()
  other = hub.config({**fields, "layers_per_block": 2}, "unet")
  unet = kinds.make("unet", other, rngs=nnx.Rngs(0))
  hub.save(str(folder / "unet"), "unet", other, tree.split(unet)[1])
  made = tiny.config(data, tmp_path, train__init=str(folder))
  words = r"init/unet is another unet: layers_per_block=2 \(expected 1\)"
  refused(made, tmp_path, words)


def test_latents_of_another_autoencoder_are_refused(data, tmp_path):
  tiny.save_vae(str(tmp_path / "other"), seed=1)
  made = tiny.config(data, tmp_path, model__vae=str(tmp_path / "other"))
  refused(made, tmp_path, r"'latent_mean' of .*latents was made by weights")


def test_a_checkpoint_of_another_model_is_refused(data, reference):
  made = tiny.config(data, reference, model__unet__channels=(8, 8))
  refused(made, reference, "checkpoint .*/48 is of another model")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"train__batch_size": 12}, "batch_size=12 does not divide over 8 devices"),
    ({"train__batch_size": 0}, "batch_size=0 does not divide over 8 devices"),
    (
      {"train__batch_size": 16, "train__accumulate": 4},
      "batch_size=16 does not divide over 8 devices times accumulate=4",
    ),
    ({"train__mesh__fsdp": 3}, "does not match 8 devices"),
    ({"train__folders": ("/nowhere",)}, "/nowhere does not exist or is empty"),
    ({"train__split": "test"}, "no records in the split 'test'"),
    ({"train__schedule": "cosin"}, "unknown schedule 'cosin'"),
    ({"train__task": "gan"}, "unknown task 'gan'"),
    ({"train__dtype": "float33"}, "train.dtype='float33'; expected"),
    ({"train__remat": "some"}, "unknown remat 'some'"),
    ({"train__init": "/nowhere"}, "/nowhere"),
    ({"train__keep": 0}, "train.keep=0"),
    ({"train__keep_every": -1}, "train.keep_every=-1"),
    ({"train__devices": 64}, "train.devices=64, but there are 8 on 1 hosts"),
    ({"train__steps": 0}, "train.steps=0; expected 1 or more"),
    ({"train__log_every": 0}, "train.log_every=0"),
    ({"train__checkpoint_every": 0}, "train.checkpoint_every=0"),
    ({"model__prediction": "noise"}, "unknown prediction 'noise'"),
    ({"latent_diffusion__drop_caption": 1.5}, "drop_caption=1.5"),
  ],
)
def test_what_does_not_fit_is_refused(data, tmp_path, fields, words):
  refused(tiny.config(data, tmp_path, **fields), tmp_path, words)
