# SPDX-License-Identifier: Apache-2.0
import platform
import subprocess
import sys

import pytest

from cc_jax.core import allocation

# Faults of pages in ten rounds of 64 MiB that is written and freed.
ROUNDS = """
import resource
import numpy as np
from cc_jax.core import allocation
{0}
def touch():
  np.ones(2**23)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
  touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(first):
  run = [sys.executable, "-c", ROUNDS.format(first)]
  return int(subprocess.run(run, capture_output=True, check=True).stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="another C library"
)
def test_memory_is_not_asked_for_again():
  assert faults("assert allocation.keep()") * 10 < faults("")


def test_without_glibc_nothing_is_set(monkeypatch):
  monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
  assert not allocation.keep()


@pytest.mark.parametrize(("named", "only"), [("cpu", True), ("tpu,cpu", False)])
def test_what_the_environment_names_is_what_is_there(monkeypatch, named, only):
  monkeypatch.setenv("JAX_PLATFORMS", named)
  assert allocation.only_cpus() == only


def test_devices_are_looked_for(monkeypatch, tmp_path):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(allocation, "ACCELERATORS", (f"{tmp_path}/accel*",))
  assert allocation.only_cpus()
  (tmp_path / "accel0").touch()
  assert not allocation.only_cpus()
