# SPDX-License-Identifier: Apache-2.0
"""Two processes make and measure the images that one does."""

import json
import pathlib
import socket

import numpy as np
import pytest
import tiny
import tiny_eyes
import toys

from cc_jax.data import generated


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path_factory, tmp_path):
  data, trained = toys.shared(tmp_path_factory)
  eyes = tiny_eyes.save(tmp_path / "eyes", data)
  words = [
    f"--config.train.checkpoints={trained}/checkpoints",
    f"--config.evaluate.prompts={data}/captions",
    f"--config.evaluate.real={data}/catalogue",
    f"--config.evaluate.clip_fid={eyes['evaluate__clip_fid']}",
    f"--config.evaluate.clip_score={eyes['evaluate__clip_score']!r}",
    "--config.evaluate.cmmd=",
    "--config.evaluate.inception=",
    "--config.evaluate.validation_loss=false",
    "--config.evaluate.each=3",
    "--config.sample.steps=1",
  ]
  status, _, err = tiny.run("evaluate", data, str(tmp_path / "one"), *words)
  assert status == 0, err
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    tiny.start(
      "evaluate",
      data,
      str(tmp_path / "two"),
      "--hosts=2",
      *words,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(index),
    )
    for index in range(2)
  ]
  ends = [process.communicate(timeout=300) for process in processes]
  for process, (_, err) in zip(processes, ends, strict=True):
    assert process.returncode == 0, err
  spoken = [line for line in ends[1][0].splitlines() if "[Gloo]" not in line]
  assert spoken == []
  folders = [
    str(tmp_path / x / "evaluation/guidance-3") for x in ("one", "two")
  ]
  for index in range(24):
    one, two = (generated.read(folder, index) for folder in folders)
    assert np.abs(one.astype(int) - two).max() <= 1
  one, two = (
    json.loads((tmp_path / x / "metrics.json").read_text())["evaluation"]
    for x in ("one", "two")
  )
  name = "clip_score_clip"
  assert two["guidance_3"][name]["value"] == pytest.approx(
    one["guidance_3"][name]["value"], abs=0.05
  )
  assert two["guidance_3"]["images"] == 24
  left = list(pathlib.Path(tmp_path / "two" / "features").glob("*.part-*"))
  assert not left
