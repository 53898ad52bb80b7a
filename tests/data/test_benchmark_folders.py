# SPDX-License-Identifier: Apache-2.0
"""Each layout is read here by the loop of the benchmark's own tool."""

import json
import os
import re

import numpy as np
from PIL import Image
import pytest

from cc_jax.data import benchmark_folders, generated, prompt_sets

SIDE = 8


def made(folder, count):
  """Images of one colour each: the red is ten times the number."""
  for index in range(count):
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    image[..., 0] = 10 * index / 255
    generated.write(str(folder), index, image)
  return str(folder)


def red(image):
  return np.asarray(image)[..., 0]


def test_geneval_finds_metadata_and_samples(tmp_path):
  rows = [
    {"tag": "two_object", "include": [], "prompt": f"a photo of {x}"}
    for x in ("a bench", "a bus", "a dog")
  ]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "evaluation_metadata.jsonl").write_text(lines)
  prompts = prompt_sets.open(str(tmp_path / "evaluation_metadata.jsonl"))
  target = tmp_path / "geneval"
  folder = made(tmp_path / "images", 12)
  assert benchmark_folders.write("geneval", folder, target, prompts, 4) == 15
  # evaluation/evaluate_images.py
  found = {}
  for sub in os.listdir(target):
    path = os.path.join(target, sub)
    if not os.path.isdir(path) or not sub.isdigit():
      continue
    with open(os.path.join(path, "metadata.jsonl")) as file:
      metadata = json.load(file)
    for image in os.listdir(os.path.join(path, "samples")):
      if re.match(r"\d+\.png", image):
        opened = Image.open(os.path.join(path, "samples", image))
        found[int(sub), int(image[:-4])] = metadata, int(red(opened)[0, 0])
  assert sorted(found) == [(p, k) for p in range(3) for k in range(4)]
  for (p, k), (metadata, value) in found.items():
    assert metadata == rows[p]
    assert value == 10 * (4 * p + k)


def test_hpsv2_finds_a_folder_a_style(tmp_path):
  (tmp_path / "benchmark").mkdir()
  for style in ("anime", "photo"):
    text = json.dumps([f"{style} {i}" for i in range(3)])
    (tmp_path / "benchmark" / f"{style}.json").write_text(text)
  prompts = prompt_sets.open(str(tmp_path / "benchmark"))
  assert prompts.texts[3] == "photo 0"
  target = tmp_path / "hpsv2"
  folder = made(tmp_path / "images", 6)
  assert benchmark_folders.write("hpsv2", folder, target, prompts, 1) == 6
  # hpsv2/evaluation.py
  for place, style in enumerate(("anime", "photo")):
    for i in range(3):
      image = Image.open(os.path.join(target, style, f"{i:05d}.jpg"))
      assert image.format == "JPEG"
      assert abs(int(red(image)[0, 0]) - 10 * (3 * place + i)) <= 2


def test_dpg_bench_cuts_tiles_out_of_one_picture(tmp_path):
  (tmp_path / "prompts").mkdir()
  for stem in ("partiprompts1", "whoops2"):
    (tmp_path / "prompts" / f"{stem}.txt").write_text(f"of {stem}")
  prompts = prompt_sets.open(str(tmp_path / "prompts"))
  target = tmp_path / "dpg"
  folder = made(tmp_path / "images", 8)
  assert benchmark_folders.write("dpg", folder, target, prompts, 4) == 2
  # dpg_bench/compute_dpg_bench.py, --pic-num 4
  corners = [(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)]
  for place, stem in enumerate(("partiprompts1", "whoops2")):
    image = Image.open(target / f"{stem}.png")
    for k, (x, y) in enumerate(corners):
      tile = image.crop((x, y, x + SIDE, y + SIDE))
      assert (red(tile) == 10 * (4 * place + k)).all()


def test_compbench_reads_the_prompt_from_the_name(tmp_path):
  texts = ["a green bench and a blue bowl", "a red book."]
  (tmp_path / "color_val.txt").write_text("\n".join(texts))
  prompts = prompt_sets.open(str(tmp_path / "color_val.txt"))
  target = tmp_path / "compbench"
  folder = made(tmp_path / "images", 4)
  assert benchmark_folders.write("compbench", folder, target, prompts, 2) == 4
  # BLIPvqa_eval/BLIP_vqa.py
  for file in os.listdir(target / "samples"):
    text, number = file.split("_")[0], int(file.split("_")[1].split(".")[0])
    assert text == texts[number // 2]
    value = red(Image.open(target / "samples" / file))[0, 0]
    assert value == 10 * number


@pytest.mark.parametrize(
  ("layout", "text", "each", "words"),
  [
    ("geneval", "a hat", 4, "no GenEval metadata"),
    ("hpsv2", "a hat", 1, "has no styles"),
    ("dpg", "a hat", 3, "1 or 4 images a prompt"),
    ("compbench", "a/b", 1, "cannot be 'a/b'"),
    ("compbench", "a_b", 1, "cannot be 'a_b'"),
    ("other", "a hat", 1, "expected geneval, hpsv2, dpg, compbench"),
  ],
)
def test_prompts_without_a_place_are_refused(
  tmp_path, layout, text, each, words
):
  (tmp_path / "a.txt").write_text(text)
  prompts = prompt_sets.open(str(tmp_path / "a.txt"))
  with pytest.raises(ValueError, match=words):
    benchmark_folders.write(layout, str(tmp_path), tmp_path, prompts, each)


def test_a_missing_image_is_named(tmp_path):
  (tmp_path / "a.txt").write_text("a hat\na dog")
  prompts = prompt_sets.open(str(tmp_path / "a.txt"))
  folder = made(tmp_path / "images", 1)
  with pytest.raises(ValueError, match=r"000001.png is gone"):
    benchmark_folders.write("compbench", folder, tmp_path / "x", prompts, 1)
