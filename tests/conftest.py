# SPDX-License-Identifier: Apache-2.0
"""Eight simulated devices, exact matrix products, annotations checked."""

import os

# Before jax is imported: these are read once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    # Tests compile more than they compute, and so do processes: tiny.FLAGS.
    # XLA's older way to write a fusion takes half as long.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
  ]
).strip()
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jaxtyping
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
# Made now, since a stage that a test runs would make as many as its config has.
jax.devices()
jaxtyping.install_import_hook("cc_jax", "beartype.beartype")


def pytest_addoption(parser):
  parser.addoption(
    "--slow", action="store_true", help="also run what takes over a minute"
  )


def pytest_collection_modifyitems(config, items):
  if config.getoption("--slow"):
    return
  skip = pytest.mark.skip(reason="slow: run with `bash launch/test.sh slow`")
  for item in items:
    if "slow" in item.keywords:
      item.add_marker(skip)


@pytest.fixture(autouse=True)
def memory_is_given_back(monkeypatch):
  """Many small trainings run in this process, which would keep all of it."""
  monkeypatch.setattr("cc_jax.cli.KEEPING", ())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """The folder of `tiny.shared`, and each program compiled once a module."""
  # Late: it imports cc_jax, whose annotations are checked from here on.
  import tiny

  folder = tiny.shared(tmp_path_factory)
  with tiny.compiled_once(folder):
    yield folder
