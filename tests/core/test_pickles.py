# SPDX-License-Identifier: Apache-2.0
import argparse
import collections
import functools
import io
import os
import pickle
import re
import struct
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from cc_jax.core import convert, pickles

FORMATS = pytest.mark.parametrize("zipped", [True, False])


def save(file, value, zipped=True):
  torch.save(value, file, _use_new_zipfile_serialization=zipped)
  return str(file)


def read(file, *keys):
  tensors = pickles.open_tensors(file, *keys)
  arrays = {name: tensor.read() for name, tensor in tensors.items()}
  for name, tensor in tensors.items():
    assert tensor.shape == arrays[name].shape
  return arrays


def same(arrays, state):
  assert list(arrays) == list(state)
  for name, tensor in state.items():
    if tensor.dtype == torch.bfloat16:
      assert arrays[name].dtype == ml_dtypes.bfloat16
      arrays[name] = arrays[name].view(np.int16)
      tensor = tensor.view(torch.int16)
    expected = tensor.detach().numpy()
    assert arrays[name].dtype == expected.dtype
    np.testing.assert_array_equal(arrays[name], expected)


@FORMATS
@pytest.mark.parametrize(
  "dtype",
  "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool "
  "uint16 uint32 uint64".split(),
)
def test_every_type_is_read(dtype, zipped, tmp_path):
  values = torch.tensor([[0, 1, 100], [7, 3, 0]]).to(getattr(torch, dtype))
  state = {"one": values, "none": values[:0], "scalar": values[1, 1]}
  same(read(save(tmp_path / "a.pt", state, zipped)), state)


@FORMATS
def test_views_and_shared_storages_are_read(zipped, tmp_path):
  base = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
  state = {
    "whole": base,
    "again": base,
    "turned": base.permute(3, 0, 2, 1),
    "channels_last": base.to(memory_format=torch.channels_last),
    "part": base[1, :, 1:3, ::2],
    "repeated": base[0, 0, 0, :1].expand(4, 3),
    "empty": base[:, :0],
    "scalar": base[1, 2, 3, 4],
  }
  same(read(save(tmp_path / "a.pt", state, zipped)), state)


@FORMATS
def test_the_weights_of_a_module_are_read(zipped, tmp_path):
  module = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)
  )
  # state_dict is an OrderedDict with an attribute, _metadata.
  file = save(tmp_path / "a.pth", module.state_dict(), zipped)
  same(read(file), module.state_dict())
  parameters = dict(module.named_parameters())
  same(read(save(tmp_path / "b.pth", parameters, zipped)), parameters)


def test_import_takes_what_is_read(tmp_path):
  linear = torch.nn.Linear(3, 2).half()
  file = save(tmp_path / "a.pt", {"ema": {"proj": linear.weight}})
  shapes = {"proj": {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32)}}
  tensors = pickles.open_tensors(file, "ema")
  params = convert.import_weights(
    {f"{name}.weight": tensor for name, tensor in tensors.items()}, shapes, ()
  )
  expected = linear.weight.detach().float().numpy().T
  np.testing.assert_array_equal(params["proj"]["kernel"], expected)


@FORMATS
def test_nothing_but_what_is_asked_for_is_read(zipped, tmp_path):
  file = save(tmp_path / "a.pt", {"a": torch.ones(64), "b": torch.ones(64)})
  tensors = pickles.open_tensors(file)
  with open(file, "r+b") as opened:
    opened.truncate(tensors["b"].read.args[1])
  np.testing.assert_array_equal(tensors["a"].read(), np.ones(64))
  with pytest.raises(ValueError, match="cut off"):
    tensors["b"].read()


@FORMATS
def test_keys_lead_to_the_weights(zipped, tmp_path):
  ones = {"w": torch.ones(2)}
  value = {"epoch": 3, "model": {"raw": {"w": torch.zeros(2)}, "ema": ones}}
  file = save(tmp_path / "a.pt", value, zipped)
  np.testing.assert_array_equal(read(file, "model", "ema")["w"], [1, 1])
  for keys, message in [
    ((), "epoch, model; name the one to read of: model"),
    (("model",), "in model are no tensors: raw, ema; name the one"),
    (("state_dict",), "no 'state_dict' in the file; it has epoch, model"),
    (("epoch",), "epoch is int; expected a dict of tensors"),
    (("model", "ema", "w"), r"model\.ema\.w is a tensor"),
  ]:
    with pytest.raises(ValueError, match=message):
      pickles.open_tensors(file, *keys)


class Call:
  """Pickles as a call of a function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


# What a pickle may ask for, and how it is named in the error.
HOSTILE = {
  "command": (os.system, "(posix|nt).system"),
  "eval": (eval, "builtins.eval|__builtin__.eval"),
  "getattr": (getattr, "getattr"),
  "partial": (functools.partial, "functools.partial"),
  "counter": (collections.Counter, "collections.Counter"),
  "torch": (torch.load, "torch.serialization.load"),
  "numpy": (np.load, "numpy.*load"),
}


@FORMATS
@pytest.mark.parametrize("name", HOSTILE)
def test_a_call_is_refused_and_not_run(name, zipped, tmp_path):
  function, shown = HOSTILE[name]
  mark = tmp_path / "mark"
  command = {"command": f"touch {mark}", "eval": f"open({str(mark)!r}, 'w')"}
  call = Call(function, command.get(name, str(mark)))
  file = save(tmp_path / "a.pt", {"w": torch.ones(2), "x": call}, zipped)
  with pytest.raises(ValueError, match=f"asks for.*({shown}).*refused"):
    pickles.open_tensors(file)
  assert not mark.exists()


def test_the_hostile_file_would_have_run(tmp_path):
  """So that the test above tests something."""
  mark = tmp_path / "mark"
  file = save(tmp_path / "a.pt", {"x": Call(os.system, f"touch {mark}")})
  torch.load(file, weights_only=False)
  assert mark.exists()


def archive(file, program, **entries):
  """A zip file whose pickle is the given bytes."""
  with zipfile.ZipFile(file, "w") as opened:
    opened.writestr("a/data.pkl", program)
    for name, data in entries.items():
      opened.writestr(f"a/data/{name}", data)
  return str(file)


def reference(module, name):
  return f"c{module}\n{name}\n".encode()


def test_names_that_are_answered_cannot_be_changed_or_entered(tmp_path):
  """By the opcodes that set attributes, and by dotted names."""
  before = dict(pickles.NAMES), vars(pickles.NAMES["torch", "bool"].__class__)
  state = b"}(Vfunction\nV1\nVcall\nV2\nu"
  programs = [
    # BUILD with a dict, then with (None, dict), which calls setattr.
    body + change
    for module, name in pickles.NAMES
    for body in [reference(module, name)]
    for change in (state + b"b.", b"(N" + state + b"tb.")
  ]
  dotted = "".join(
    f"\x8c{chr(len(text))}{text}"
    for text in ("collections", "OrderedDict.fromkeys")
  )
  programs.append(b"\x80\x04" + dotted.encode("latin1") + b"\x93.")
  for program in programs:
    with pytest.raises(ValueError, match=r"a\.pt"):
      pickles.open_tensors(archive(tmp_path / "a.pt", program))
  assert dict(pickles.NAMES) == before[0]
  with pytest.raises(ValueError, match=r"OrderedDict\.fromkeys"):
    pickles.open_tensors(archive(tmp_path / "a.pt", programs[-1]))


class Rebuild:
  """Pickles as a tensor with any arguments."""

  def __init__(self, *args):
    self.args = args

  def __reduce__(self):
    return torch._utils._rebuild_tensor_v2, self.args


class Pickler(pickle.Pickler):
  def persistent_id(self, value):
    return value[1:] if isinstance(value, tuple) and "pid" in value else None


def forged(file, pid, *args, **entries):
  """A file with a tensor {"w": …} of the given arguments."""
  buffer = io.BytesIO()
  value = {"w": Rebuild(("pid", *pid), *args, False, {})}
  Pickler(buffer, protocol=2).dump(value)
  return archive(file, buffer.getvalue(), **entries)


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 6)
DATA = np.arange(6, dtype=np.float32).tobytes()


def test_a_forged_file_that_is_right_is_read(tmp_path):
  file = forged(tmp_path / "a.pt", FLOATS, 1, (2, 2), (3, 1), **{"0": DATA})
  np.testing.assert_array_equal(read(file)["w"], [[1, 2], [4, 5]])


@pytest.mark.parametrize(
  ("pid", "args", "data", "message"),
  [
    (FLOATS, (0, (7,), (1,)), DATA, "outside of storage 0"),
    (FLOATS, (6, (1,), (1,)), DATA, "outside of storage 0"),
    (FLOATS, (0, (2, 2), (5, 1)), DATA, "outside of storage 0"),
    (FLOATS, (-1, (2,), (1,)), DATA, r"a tensor of \(2,\)"),
    (FLOATS, (5, (2,), (-1,)), DATA, r"a tensor of \(2,\)"),
    (FLOATS, (0, (2, 2), (1,)), DATA, r"zip\(\)|a tensor of"),
    (FLOATS, (0, (2,), (1,)), DATA[:-1], "expected 24 bytes, got 23"),
    ((*FLOATS[:2], "1", *FLOATS[3:]), (0, (2,), (1,)), DATA, "no storage 1"),
    ((*FLOATS[:4], -6), (0, (2,), (1,)), DATA, "unknown storage"),
    (("module", *FLOATS[1:]), (0, (2,), (1,)), DATA, "unknown storage"),
  ],
)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(
  pid, args, data, message, tmp_path
):
  file = forged(tmp_path / "a.pt", pid, *args, **{"0": data})
  with pytest.raises(ValueError, match=message):
    pickles.open_tensors(file)


def test_views_of_early_files_are_read(tmp_path):
  """There a part of a storage could be a storage of its own."""
  view = ("1", 2, 3)
  buffer = io.BytesIO()
  value = {"w": Rebuild(("pid", *FLOATS, view), 1, (2,), (1,), False, {})}
  for thing in (pickles.MAGIC, pickles.VERSION, {"little_endian": True}):
    pickle.dump(thing, buffer, protocol=2)
  Pickler(buffer, protocol=2).dump(value)
  pickle.dump(["0"], buffer, protocol=2)
  buffer.write(struct.pack("<q", 6) + DATA)
  file = tmp_path / "a.pth"
  file.write_bytes(buffer.getvalue())
  np.testing.assert_array_equal(read(str(file))["w"], [3, 4])


def test_files_of_another_kind_are_refused(tmp_path):
  weights = {"w": torch.ones(5)}
  save(tmp_path / "a.pt", weights)
  save(tmp_path / "b.pt", weights, zipped=False)
  zipped = (tmp_path / "a.pt").read_bytes()
  early = (tmp_path / "b.pt").read_bytes()
  other = io.BytesIO()
  with zipfile.ZipFile(other, "w") as opened:
    opened.writestr("a.txt", "text")
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
    opened.writestr("a/data.pkl", pickle.dumps({}))
  for data, message in [
    (b"", "not a file of torch.save"),
    (b"<html>not found</html>", "not a file of torch.save"),
    (pickle.dumps({"w": 1}), "not a file of torch.save"),
    (zipped[:-30], "not a file of torch.save"),
    (early[:-24], "cut off"),
    (other.getvalue(), "torch.save did not write"),
    (packed.getvalue(), "is compressed"),
    (zipped.replace(b"little", b"biggie"), "CRC|big-endian"),
    (zipped.replace(b"FloatStorage", b"FloatStorags"), "CRC|FloatStorags"),
  ]:
    file = tmp_path / "c.pt"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
      pickles.open_tensors(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
  missing = re.escape(f"{tmp_path / 'no.pt'} does not exist")
  with pytest.raises(ValueError, match=missing):
    pickles.open_tensors(tmp_path / "no.pt")


def test_damage_anywhere_is_an_error_or_read_as_it_is(tmp_path):
  """No byte that is changed leads anywhere but to ValueError."""
  save(tmp_path / "a.pt", {"w": torch.ones(3)}, zipped=False)
  data = (tmp_path / "a.pt").read_bytes()
  file = tmp_path / "b.pt"
  for place in range(len(data)):
    changed = bytearray(data)
    changed[place] ^= 0x15
    file.write_bytes(changed)
    try:
      read(str(file))
    except ValueError:
      continue


def test_a_whole_module_is_refused_by_name(tmp_path):
  file = save(tmp_path / "a.pt", torch.nn.Linear(2, 2))
  with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
    pickles.open_tensors(file)


def test_what_a_training_saves_beside_the_weights_is_passed_over(tmp_path):
  """As PyTorch Lightning does; no class is imported for it."""
  weights = {"w": torch.ones(2)}
  value = {
    "epoch": 3,
    "best": np.float64(0.25),
    "shape": torch.Size([1, 2]),
    "device": torch.device("cpu"),
    "options": argparse.Namespace(lr=0.1),
    "rates": [1e-4, (None, True, "text", b"bytes")],
    "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
    "state_dict": collections.OrderedDict(weights),
  }
  file = save(tmp_path / "a.ckpt", value)
  assert list(read(file, "state_dict")) == ["w"]
  opened = pickles.open_file(file)
  assert opened.has("state_dict")
  assert not opened.has()
  assert not opened.has("optimizer")
  assert not opened.has("gone")
  callback = b"(c" + b"pytorch_lightning.callbacks.model_checkpoint\n"
  program = b"}" + callback + b"ModelCheckpoint\n}Vkept\nI1\nsuVw\n}s."

  other = pickles.open_file(archive(tmp_path / "b.ckpt", program))
  assert other.found == {"callback": {"kept": 1}, "w": {}}


def test_a_tensor_of_a_local_file_is_mapped(tmp_path):
  file = save(tmp_path / "a.pt", {"w": torch.ones(4, 4).T})
  array = pickles.open_tensors(file)["w"].read()
  assert not array.flags.writeable
  assert array.strides == (4, 16)
