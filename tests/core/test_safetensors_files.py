# SPDX-License-Identifier: Apache-2.0
import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cc_jax.core import safetensors_files


def arrays():
  rng = np.random.default_rng(0)
  dtypes = {str(d): d for d in safetensors_files.DTYPES.values()}
  return {
    **{
      name: rng.integers(0, 2, (3, 5)).astype(dtype)
      for name, dtype in dtypes.items()
    },
    "scalar": np.array(3.5, np.float32),
    "none": np.zeros((0, 4), np.float16),
    "turned": rng.standard_normal((4, 3)).T,
  }


def write(file, tensors):
  safetensors_files.write_file(
    file,
    {n: safetensors_files.in_memory(array) for n, array in tensors.items()},
  )
  return str(file)


def same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].shape == array.shape, name
    assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found[name], array)


def read(file):
  tensors = safetensors_files.open_file(file)
  found = {name: tensor.read() for name, tensor in tensors.items()}
  for name, tensor in tensors.items():
    assert (tensor.shape, tensor.dtype) == (
      found[name].shape,
      found[name].dtype,
    )
    assert tensor.bytes == found[name].nbytes
  return found


def test_what_the_library_writes_is_read(tmp_path):
  dense = {name: np.ascontiguousarray(a) for name, a in arrays().items()}
  dense["scalar"] = arrays()["scalar"]
  safetensors.numpy.save_file(dense, tmp_path / "a.safetensors")
  same(read(tmp_path / "a.safetensors"), dense)


def test_what_is_written_the_library_reads(tmp_path):
  file = write(tmp_path / "a.safetensors", arrays())
  same(safetensors.numpy.load_file(file), arrays())
  same(read(file), arrays())


def test_the_bytes_are_those_of_the_library(tmp_path):
  half = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16)
  tensors = {"b": np.ones((2, 3), np.float32), "a": half}
  file = write(tmp_path / "a.safetensors", tensors)
  backwards = dict(reversed(tensors.items()))
  again = write(tmp_path / "b.safetensors", backwards)
  data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
  with open(file, "rb") as one, open(again, "rb") as two:
    assert one.read() == data == two.read()


def test_a_tensor_is_mapped_and_not_to_be_written(tmp_path):
  file = write(tmp_path / "a.safetensors", arrays())
  array = safetensors_files.open_file(file)["float32"].read()
  with pytest.raises(ValueError, match="read-only"):
    array[0] = 1


def test_a_file_that_is_cut_anywhere_is_one_error_with_its_name(tmp_path):
  tensors = {"a": np.ones(3, np.float32), "b": np.ones(5, np.float32)}
  file = write(tmp_path / "a.safetensors", tensors)
  with open(file, "rb") as source:
    data = source.read()
  for length in range(len(data)):
    with open(file, "wb") as target:
      target.write(data[:length])
    with pytest.raises(ValueError, match="cut off") as caught:
      safetensors_files.open_file(file)
    message = str(caught.value)
    assert message.startswith(file)
    assert "\n" not in message
    if length >= len(data) - 20:
      assert "b ends at byte" in message


def test_a_file_that_is_cut_after_it_was_opened_is_an_error(tmp_path):
  file = write(tmp_path / "a.safetensors", {"a": np.ones(9, np.float32)})
  tensor = safetensors_files.open_file(file)["a"]
  with open(file, "r+b") as opened:
    opened.truncate(tensor.bytes)
  with pytest.raises(ValueError, match=r"a\.safetensors is cut off"):
    tensor.read()


def raw(file, header, data):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  file.write_bytes(struct.pack("<Q", len(text)) + text + data)
  return str(file)


def entry(**changes):
  return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
  ("header", "message"),
  [
    (b"{", "its header is not JSON"),
    ([1], "its header is not JSON"),
    ({"w": 3}, "w is not described"),
    ({"w": entry(dtype="Q4")}, "w is of the unknown type Q4"),
    ({"w": entry(dtype=[1])}, "w is of the unknown type"),
    ({"w": entry(shape=[3])}, r"w \(3,\) of F32 takes 12 bytes, got 8"),
    ({"w": entry(shape=[-2])}, "w has the shape"),
    ({"w": entry(data_offsets=[0, 9])}, "takes 8 bytes, got 9"),
    ({"w": entry(data_offsets=[8, 16])}, "cut off: w ends at byte"),
    ({"w": entry(data_offsets=["0", 8])}, "w is not described"),
    ({}, "expected .* by its header"),
  ],
)
def test_a_header_that_is_wrong_names_the_tensor(header, message, tmp_path):
  file = raw(tmp_path / "a.safetensors", header, bytes(8))
  with pytest.raises(ValueError, match=message) as caught:
    safetensors_files.open_file(file)
  assert str(caught.value).startswith(file)
  assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"no\.safetensors does not exist"):
    safetensors_files.open_file(tmp_path / "no.safetensors")


def test_nothing_appears_when_a_tensor_cannot_be_read(tmp_path):
  def fail():
    raise ValueError("b is broken")

  good = safetensors_files.in_memory(np.ones(3))
  bad = good._replace(read=fail)
  with pytest.raises(ValueError, match="b is broken"):
    safetensors_files.write_file(tmp_path / "a", {"a": good, "b": bad})
  short = good._replace(read=lambda: np.ones(2))
  with pytest.raises(ValueError, match="c is not what it was said to be"):
    safetensors_files.write_file(tmp_path / "a", {"c": short})
  odd = safetensors_files.in_memory(np.ones(3, np.complex64))
  with pytest.raises(ValueError, match="w: safetensors has no type complex64"):
    safetensors_files.write_file(tmp_path / "a", {"w": odd})
  assert not list(tmp_path.iterdir())
