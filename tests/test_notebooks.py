# SPDX-License-Identifier: Apache-2.0
"""Notebooks run top to bottom on what the quickstart left."""

import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
WORKDIR = os.environ.get("CC_JAX_QUICKSTART")
# Each notebook, and what it prints only if it came so far.
NOTEBOOKS = {
  "quickstart": ("largest difference",),
  "look_at_the_data": ("nothing asked", "mean difference"),
  "evaluate_a_checkpoint": (
    "largest difference",
    "guidance 8: recognised",
    "planted, mirrored: 100 of 100 found",
    "Ethem Alpaydin",
  ),
}


def test_every_notebook_is_run():
  found = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
  assert found == NOTEBOOKS.keys()


@pytest.mark.skipif(not WORKDIR, reason="CC_JAX_QUICKSTART names no workdir")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, monkeypatch):
  # The kernel is a process of its own, which is not to see eight devices.
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("CC_JAX_QUICKSTART", str((ROOT / WORKDIR).resolve()))
  notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
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
  for words in NOTEBOOKS[name]:
    assert words in text
