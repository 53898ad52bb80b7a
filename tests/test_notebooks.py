# SPDX-License-Identifier: Apache-2.0
"""Notebooks run top to bottom on what the quickstart left."""

import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
WORKDIR = os.environ.get("CC_JAX_QUICKSTART")


@pytest.mark.skipif(not WORKDIR, reason="CC_JAX_QUICKSTART names no workdir")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quickstart_notebook_runs(monkeypatch):
  # The kernel is a process of its own, which is not to see eight devices.
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("CC_JAX_QUICKSTART", str((ROOT / WORKDIR).resolve()))
  notebook = nbformat.read(ROOT / "notebooks/quickstart.ipynb", as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name="python3",
    resources={"metadata": {"path": str(ROOT / "notebooks")}},
  )
  client.execute()
  text = "".join(
    output.get("text", "")
    for cell in notebook.cells
    for output in cell.get("outputs", [])
  )
  assert "largest difference" in text
