# SPDX-License-Identifier: Apache-2.0
"""launch/on_host.sh: one command on a host, and how it ended."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def host(tmp_path):
  """Calls on_host.sh with a home of its own and the Python of this test."""
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  environment |= {"PATH": path, "CC_JAX_HOME": str(tmp_path / "home")}
  environment |= {"PYTHONPATH": str(ROOT), "CC_JAX_PATIENCE": "60"}

  def call(*words, popen=False):
    command = ["bash", str(ROOT / "launch/on_host.sh"), *words]
    run = subprocess.Popen if popen else subprocess.run
    more = {} if popen else {"timeout": 120}
    return run(
      command,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **more,
    )

  return call


def status(host, *words, until=None):
  """What is said of the command, once it is no longer this."""
  for _ in range(600):
    found = host("status", *words).stdout.strip()
    if until is None or found not in until:
      return found
    time.sleep(0.1)
  raise AssertionError(f"still {found}")


BUSY = ("starting", "running")


def test_a_command_runs_with_the_environment_of_its_slice(host, tmp_path):
  assert status(host) == "none"
  code = "import os; print([os.environ[n] for n in ('CC_JAX_HOSTS', 'A B')])"
  words = ["env", "A B=c  d", sys.executable, "-c", code]
  assert host("start", "v4-128", "2", *words).returncode == 0
  assert status(host, until=BUSY) == "finished"
  assert "['32', 'c  d']" in (tmp_path / "home/log").read_text()
  # Of another command it is not said, and this one is not run again.
  assert status(host, *words) == "finished"
  assert status(host, "env", "A B=c d") == "installed"
  assert host("again").returncode == 0
  assert status(host) == "finished"


def test_one_command_at_a_time_and_stop_ends_it(host):
  assert host("start", "v4-8", "1", "sleep", "100").returncode == 0
  status(host, until=("starting",))
  second = host("start", "v4-8", "1", "true")
  assert second.returncode == 1
  assert "running already" in second.stderr
  assert host("stop").returncode == 0
  assert status(host) == "preempted"


def test_how_a_command_ends_is_told_apart(host):
  ends = {
    "exit 3": (3, "failed 3"),
    "echo done": (0, "finished"),
    # It has saved, at another host's notice.
    "echo 'train  SIGTERM: step 12 is saved'": (143, "preempted"),
  }
  for command, (code, said) in ends.items():
    done = host("exec", "v4-8", "1", "bash", "-c", command)
    assert (done.returncode, status(host)) == (code, said), done.stderr
    if "echo" in command:
      assert command.split("'")[1::2] == [] or "SIGTERM" in done.stdout


def test_notice_reaches_the_command_which_may_take_its_time(host):
  code = (
    "import signal, sys, time\n"
    "def save(*_): time.sleep(1); print('saved', flush=True); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
  )
  process = host("exec", "v4-8", "1", sys.executable, "-c", code, popen=True)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out) == (143, "saved\n"), err


def test_a_type_that_there_is_not_is_refused(host):
  done = host("exec", "v4-9", "1", "true")
  assert done.returncode == 2
  assert "unknown TPU type 'v4-9'" in done.stderr
