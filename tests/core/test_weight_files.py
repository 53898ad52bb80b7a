# SPDX-License-Identifier: Apache-2.0
import json
import os

import numpy as np
import pytest
import safetensors.numpy
import torch

from cc_jax.core import weight_files

STEM = "diffusion_pytorch_model"


def numbers(count, dtype=np.float32):
  return {f"w{n}": np.full(10, n, dtype) for n in range(count)}


def values(tensors):
  return {name: tensor.read()[0] for name, tensor in tensors.items()}


def save(folder, count=5, **options):
  options = {"stem": "model", "shard_bytes": 80, **options}
  weight_files.save_folder(str(folder), numbers(count), {"b": 1}, **options)
  return sorted(os.listdir(folder))


def edit(file, change):
  told = json.loads(file.read_text())
  change(told)
  file.write_text(json.dumps(told))


PARTS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


def test_large_weights_are_in_several_files_and_an_index(tmp_path):
  assert save(tmp_path) == sorted(["config.json", *PARTS, INDEX])
  index = json.loads((tmp_path / INDEX).read_text())
  assert index == {
    "metadata": {"total_size": 200},
    "weight_map": {f"w{n}": PARTS[n // 2] for n in range(5)},
  }
  for part in PARTS:
    assert safetensors.numpy.load_file(tmp_path / part).keys() == {
      name for name, file in index["weight_map"].items() if file == part
    }
  found = weight_files.open_tensors(str(tmp_path), "model")
  assert values(found) == {f"w{n}": n for n in range(5)}


def test_a_save_replaces_an_earlier_one_of_other_files(tmp_path):
  save(tmp_path)
  assert save(tmp_path, 2) == ["config.json", "model.safetensors"]
  assert save(tmp_path, 3, shard_bytes=40) == sorted(
    ["config.json", INDEX, *PARTS]
  )
  assert len(weight_files.open_tensors(str(tmp_path), "model")) == 3
  (tmp_path / "model.fp16.safetensors").write_bytes(b"of someone else")
  assert "model.fp16.safetensors" in save(tmp_path, 1)


def test_a_tensor_larger_than_a_file_is_a_file_of_its_own(tmp_path):
  names = save(tmp_path, 3, shard_bytes=10)
  assert len([name for name in names if "-of-00003" in name]) == 3


def test_what_an_index_tells_is_to_be_there(tmp_path):
  save(tmp_path)
  index = tmp_path / INDEX
  text = index.read_text()
  cases = [
    (
      lambda told: told["weight_map"].pop("w0"),
      f"w0 in no file; it is in .*{PARTS[0]}",
    ),
    (
      lambda told: told["weight_map"].update(w9=PARTS[0]),
      f"has w9 in {PARTS[0]}; it is in no file",
    ),
    (
      lambda told: told["weight_map"].update(w0=PARTS[1]),
      f"has w0 in {PARTS[1]}; it is in .*{PARTS[0]}",
    ),
    (
      lambda told: told["weight_map"].update(w0="gone.safetensors"),
      f"{INDEX} names gone.safetensors, which is not there",
    ),
    (
      lambda told: told["weight_map"].update(w0="../a.safetensors"),
      r"has w0 in '\.\./a\.safetensors', which is no file",
    ),
    (lambda told: told.pop("weight_map"), "has no weight_map"),
  ]
  for change, message in cases:
    index.write_text(text)
    edit(index, change)
    with pytest.raises(ValueError, match=message) as caught:
      weight_files.open_tensors(str(tmp_path), "model")
    assert "\n" not in str(caught.value)
  index.write_text("{")
  with pytest.raises(ValueError, match=f"{INDEX} is not JSON"):
    weight_files.open_tensors(str(tmp_path), "model")


def test_a_tensor_in_two_files_is_an_error(tmp_path):
  save(tmp_path)
  twice = safetensors.numpy.load_file(tmp_path / PARTS[0])
  twice |= safetensors.numpy.load_file(tmp_path / PARTS[1])
  safetensors.numpy.save_file(twice, tmp_path / PARTS[1])
  with pytest.raises(
    ValueError, match=f"w0 is in .*{PARTS[0]} and in .*{PARTS[1]}"
  ):
    weight_files.open_tensors(str(tmp_path), "model")


def test_a_part_that_is_missing_or_cut_off_is_named(tmp_path):
  save(tmp_path)
  data = (tmp_path / PARTS[1]).read_bytes()
  (tmp_path / PARTS[1]).write_bytes(data[:-1])
  with pytest.raises(ValueError, match=f"{PARTS[1]} is cut off: w3 ends"):
    weight_files.open_tensors(str(tmp_path), "model")
  (tmp_path / PARTS[1]).unlink()
  with pytest.raises(ValueError, match=f"names {PARTS[1]}, which is not there"):
    weight_files.open_tensors(str(tmp_path), "model")
  (tmp_path / INDEX).unlink()
  with pytest.raises(ValueError, match="has 2 of 00003 files such as"):
    weight_files.open_tensors(str(tmp_path), "model")


def test_parts_without_an_index_are_read_when_all_are_there(tmp_path):
  save(tmp_path)
  (tmp_path / INDEX).unlink()
  assert len(weight_files.open_tensors(str(tmp_path), "model")) == 5


def test_the_whole_weights_are_preferred_and_a_variant_can_be_named(tmp_path):
  for number, variant in enumerate(("non_ema", "bf16", "fp16", "")):
    dot = f".{variant}" if variant else ""
    file = tmp_path / f"{STEM}{dot}.safetensors"
    safetensors.numpy.save_file({"w": np.full(2, number, np.float32)}, file)
    found = weight_files.open_tensors(str(tmp_path), STEM)
    assert found["w"].read()[0] == number
  for number, variant in enumerate(("non_ema", "bf16", "fp16", "")):
    found = weight_files.open_tensors(str(tmp_path), STEM, variant)
    assert found["w"].read()[0] == number
  assert weight_files.open_folder(str(tmp_path), STEM, "int8") is None
  with pytest.raises(ValueError, match=r"no model\.safetensors in"):
    weight_files.open_tensors(str(tmp_path), "model")


@pytest.mark.parametrize(
  ("stem", "names"),
  [
    ("model", ("pytorch_model.bin",)),
    (STEM, (f"{STEM}.fp16.bin",)),
    (
      "model",
      (
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
      ),
    ),
    (
      STEM,
      (
        f"{STEM}.fp16-00001-of-00002.safetensors",
        f"{STEM}.fp16-00002-of-00002.safetensors",
        f"{STEM}.safetensors.index.fp16.json",
      ),
    ),
  ],
)
def test_files_of_torch_and_parts_of_variants_are_found(stem, names, tmp_path):
  weights, where = numbers(2), {}
  files = [name for name in names if "index" not in name]
  for place, (name, array) in enumerate(weights.items()):
    where.setdefault(files[place % len(files)], {})[name] = array
  for file, inside in where.items():
    if file.endswith(".bin"):
      inside = {name: torch.from_numpy(a) for name, a in inside.items()}
      torch.save(inside, tmp_path / file)
    else:
      safetensors.numpy.save_file(inside, tmp_path / file)
  told = {name: file for file, inside in where.items() for name in inside}
  for name in names[len(files) :]:
    (tmp_path / name).write_text(json.dumps({"weight_map": told}))
  found = weight_files.open_tensors(str(tmp_path), stem)
  assert values(found) == {"w0": 0, "w1": 1}


def test_a_file_is_told_from_a_folder(tmp_path):
  (tmp_path / "a.pth").mkdir()
  save(tmp_path)
  assert weight_files.is_file(str(tmp_path / PARTS[0]))
  for name in ("a.pth", "config.json", "gone.safetensors"):
    assert not weight_files.is_file(str(tmp_path / name))
