# SPDX-License-Identifier: Apache-2.0
"""Training by two processes of four devices: killed, terminated, alone."""

import json
import pathlib
import signal
import socket
import time

import pytest
import tiny

from cc_jax import cli
from cc_jax.core import checkpoint

STEPS, HEARTBEAT = 40, 10
FLAGS = (
  "--hosts=2",
  "--config.cpu_devices=4",
  "--config.train.mesh.fsdp=2",
  "--config.train.devices=8",
  "--config.train.checkpoint_every=4",
  f"--config.train.steps={STEPS}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


def start(data, folder):
  """The two processes of a run."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  return [
    tiny.start(
      "train",
      data,
      folder,
      *FLAGS,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(index),
      CC_JAX_HEARTBEAT_SECONDS=str(HEARTBEAT),
    )
    for index in range(2)
  ]


def until(folder, step, processes):
  """Waits for a step in the metrics, which process 0 writes."""
  path = pathlib.Path(folder) / "metrics.jsonl"
  while all(process.poll() is None for process in processes):
    if path.exists() and path.read_text().count("\n") >= step:
      return
    time.sleep(0.01)
  raise AssertionError([process.communicate() for process in processes])


def ends(processes):
  told = [process.communicate(timeout=tiny.PATIENCE) for process in processes]
  return [
    (process.returncode, out, err)
    for process, (out, err) in zip(processes, told, strict=True)
  ]


def trained(data, folder):
  """State and loader's place in the end."""
  made = tiny.config(data, folder)
  state, place = checkpoint.restore(made.train.checkpoints, tiny.abstract(made))
  return tiny.leaves(state), place


@pytest.mark.slow
def test_a_run_that_lost_hosts_and_was_preempted_ends_as_if_it_had_not(
  data, tmp_path
):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  for status, _, err in ends(start(data, whole)):
    assert status == 0, err

  # A host is lost, first one that the others find each other by, then another.
  for step, lost in ((6, 0), (14, 1)):
    processes = start(data, stopped)
    until(stopped, step, processes)
    processes[lost].kill()
    killed = time.monotonic()
    status, _, err = ends(processes)[1 - lost]
    assert time.monotonic() - killed < 6 * HEARTBEAT
    assert status != 0
    assert "another task died" in err or "another host is lost" in err
  done = checkpoint.latest_step(stopped / "checkpoints")
  assert 4 <= done < STEPS

  # The machine of either will go: all save, and end as if all were done.
  processes = start(data, stopped)
  until(stopped, 24, processes)
  processes[1].send_signal(signal.SIGTERM)
  told = ends(processes)
  assert [status for status, _, _ in told] == [0, 0], told
  saved = checkpoint.latest_step(stopped / "checkpoints")
  assert f"SIGTERM: step {saved} is saved; the same command goes" in told[0][1]
  assert done < saved < STEPS

  for status, _, err in ends(start(data, stopped)):
    assert status == 0, err
  (state, place), (expected, same) = (
    trained(data, stopped),
    trained(data, whole),
  )
  assert place == same
  assert state.keys() == expected.keys()
  for path, leaf in expected.items():
    assert state[path].tobytes() == leaf.tobytes(), path
  lines = (stopped / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [*range(1, STEPS + 1)]


def alone(data, folder, *words, ends=(2,), **environment):
  """One process that was told what it is: asserts that it trains nothing."""
  status, out, err = tiny.run("train", data, folder, *words, **environment)
  assert status in ends, err
  assert "train " not in out
  assert not pathlib.Path(folder).exists()
  return err


def test_a_host_that_does_not_find_the_others_does_not_train(data, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  err = alone(
    data,
    tmp_path / "run",
    "--hosts=2",
    # JAX may end the process itself, with words of its own.
    ends=(2, -signal.SIGABRT),
    JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
    JAX_NUM_PROCESSES="2",
    JAX_PROCESS_ID="1",
    CC_JAX_JOIN_SECONDS="2",
  )
  ours = "--hosts=2: JAX cannot find the other hosts"
  assert ours in err or "another task died" in err


@pytest.mark.parametrize(
  ("environment", "message"),
  [
    ({"JAX_NUM_PROCESSES": "2"}, "this is one of 2 hosts"),
    ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, "this is one of 4 hosts"),
    ({"CC_JAX_DEVICES": "64"}, "CC_JAX_DEVICES=64, but there are 8 on 1 hosts"),
    ({"CC_JAX_HOSTS": "two"}, "CC_JAX_HOSTS='two' in the environment"),
  ],
)
def test_a_host_that_should_not_be_alone_does_not_train(
  environment, message, data, tmp_path, monkeypatch, capsys
):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  words = [f"--config={tiny.__file__}:{data}", f"--workdir={tmp_path}/run"]
  assert cli.main(["train", *words]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "run").exists()
