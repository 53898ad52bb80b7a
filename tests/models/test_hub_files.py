# SPDX-License-Identifier: Apache-2.0
"""Files of every origin: the same weights, and what is wrong with others."""

import dataclasses
import json
import pathlib

import diffusers
import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import parity
import pytest
import tiny_models
import torch
import transformers

from cc_jax.core import convert, legacy, sharding, tree, weight_files
from cc_jax.models import hub, kinds, published, unet

TINY = tiny_models.TINY
KINDS = pytest.mark.parametrize("kind", kinds.KINDS)


@pytest.fixture(scope="module")
def networks():
  """The shapes of each kind's weights, and numbers for them."""
  shapes = {k: kinds.structure(k, config)[1] for k, config in TINY.items()}
  return {k: parity.scramble(s) for k, s in shapes.items()}


def equal(found, expected, dtype=np.float32):
  found, expected = tree.flatten(found), tree.flatten(expected)
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    assert found[path].dtype == dtype
    leaf = np.asarray(leaf).astype(dtype)
    np.testing.assert_array_equal(np.asarray(found[path]), leaf, path)


def state(kind, params):
  """As torch has it."""
  names = kinds.KINDS[kind].source.NAMES
  theirs = convert.export_weights(params, names)
  return {name: torch.from_numpy(array) for name, array in theirs.items()}


@KINDS
def test_weights_in_several_files_come_back_bit_for_bit(
  kind, networks, tmp_path
):
  params = networks[kind]
  size = 4 * tree.count(params) // 3
  hub.save(str(tmp_path), kind, TINY[kind], params, shard_bytes=size)
  stem = kinds.KINDS[kind].stem
  assert (tmp_path / f"{stem}.safetensors.index.json").exists()
  assert len(list(tmp_path.glob(f"{stem}-*-of-*.safetensors"))) > 1
  loaded = hub.load(str(tmp_path), kind, expect=TINY[kind])
  equal(loaded.params, params)
  assert loaded.hash == hub.weights_hash(params)


@KINDS
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_in_torch_files_come_back_bit_for_bit(
  kind, zipped, networks, tmp_path
):
  params = networks[kind]
  hub.save(str(tmp_path), kind, TINY[kind], params)
  stem = kinds.KINDS[kind].stem
  (tmp_path / f"{stem}.safetensors").unlink()
  name = f"{weight_files.TORCH.get(stem, stem)}.bin"
  torch.save(
    state(kind, params),
    tmp_path / name,
    _use_new_zipfile_serialization=zipped,
  )
  equal(hub.load(str(tmp_path), kind).params, params)
  # The file alone, beside its config.json; and within what a training saves.
  equal(hub.load(str(tmp_path / name), kind).params, params)
  torch.save({"state_dict": state(kind, params)}, tmp_path / "last.ckpt")
  equal(hub.load(str(tmp_path / "last.ckpt"), kind).params, params)


@KINDS
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_of_the_bits_are_written_and_read_as_they_round(
  kind, dtype, networks, tmp_path
):
  params = networks[kind]
  hub.save(str(tmp_path), kind, TINY[kind], params, dtype=dtype)
  rounded = tree.cast(params, dtype)
  equal(hub.load(str(tmp_path), kind).params, rounded)
  half = np.dtype(dtype if dtype == "float16" else ml_dtypes.bfloat16)
  equal(hub.load(str(tmp_path), kind, dtype=dtype).params, rounded, half)


@KINDS
def test_weights_are_read_to_the_devices_of_a_mesh(kind, networks, tmp_path):
  params = networks[kind]
  hub.save(str(tmp_path), kind, TINY[kind], params)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  loaded = hub.load(str(tmp_path), kind, dtype="bfloat16", mesh=mesh)
  equal(loaded.params, params, ml_dtypes.bfloat16)
  found = jax.tree.map(lambda leaf: leaf.sharding, loaded.params)
  assert found == sharding.layouts(params, mesh)
  # The hash is of the files, not of what was made of them.
  assert loaded.hash == hub.weights_hash(params)
  whole = hub.load(str(tmp_path), kind, mesh=mesh)
  again = tmp_path / "again"
  hub.save(str(again), kind, TINY[kind], whole.params)
  equal(hub.load(str(again), kind).params, params)


def test_the_libraries_open_weights_in_several_files(networks, tmp_path):
  for kind, library in (
    ("unet", diffusers.UNet2DConditionModel),
    ("clip_text", transformers.CLIPTextModel),
  ):
    folder = tmp_path / kind
    size = 4 * tree.count(networks[kind]) // 3
    hub.save(str(folder), kind, TINY[kind], networks[kind], shard_bytes=size)
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    model = library.from_pretrained(folder)
    found = legacy.normalised(model.state_dict())
    expected = state(kind, networks[kind])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
      assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("half", [False, True])
def test_files_of_the_libraries_in_several_parts_are_read(
  half, networks, tmp_path
):
  hub.save(str(tmp_path / "one"), "unet", TINY["unet"], networks["unet"])
  model = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "one")
  options = {"variant": "fp16"} if half else {}
  model = model.half() if half else model
  model.save_pretrained(tmp_path / "two", max_shard_size="20KB", **options)
  assert len(list((tmp_path / "two").glob("*-of-*"))) > 1
  params = networks["unet"]
  expected = tree.cast(params, "float16") if half else params
  equal(hub.load(str(tmp_path / "two"), "unet").params, expected)
  if half:
    found = hub.load(str(tmp_path / "two"), "unet", variant="fp16")
    equal(found.params, expected)
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.safe"):
      hub.load(str(tmp_path / "two"), "unet", variant="")


OTHER = (
  ("conv_in", "first"),
  ("conv_out", "last"),
  *unet.NAMES,
)


@pytest.fixture
def other(monkeypatch):
  """A further format of the U-Net, with a config of its own."""
  format = convert.Format(
    OTHER,
    "first.weight",
    config=TINY["unet"],
    unused=("ema_decay",),
    keys=(("state_dict_ema",), ("state_dict",)),
  )

  def use(**changes):
    row = kinds.KINDS["unet"]._replace(formats=(format._replace(**changes),))
    monkeypatch.setitem(kinds.KINDS, "unet", row)

  use()
  return use


def spelled(params):
  theirs = convert.export_weights(params, OTHER)
  return {name: torch.from_numpy(array) for name, array in theirs.items()}


def test_a_file_of_another_format_is_known_by_its_marker(
  other, networks, tmp_path
):
  params = networks["unet"]
  weights = spelled(params)
  zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
  several = {"epoch": 3, "state_dict": zeros}
  for name, value in {
    "plain.pth": weights,
    "extra.pth": {**weights, "ema_decay": torch.ones(1)},
    "one.ckpt": {"state_dict": weights, "epoch": 3},
    "both.pt": {**several, "state_dict_ema": weights},
  }.items():
    torch.save(value, tmp_path / name)
    file = str(tmp_path / name)
    assert hub.config(file, "unet") == TINY["unet"]
    equal(hub.load(file, "unet", expect=TINY["unet"]).params, params)
  # The same in safetensors, in a folder, and with a config from the shapes.
  folder = tmp_path / "folder"
  weight_files.save_folder(
    str(folder),
    {name: tensor.numpy() for name, tensor in weights.items()},
    {},
    stem="diffusion_pytorch_model",
  )
  (folder / "config.json").unlink()
  seen = []
  other(config=lambda tensors: seen.append(tensors) or TINY["unet"])
  assert hub.config(str(folder), "unet") == TINY["unet"]
  equal(hub.load(str(folder), "unet").params, params)
  assert seen[0]["first.weight"].shape == (8, 4, 3, 3)
  # One way in is spelled without the outer brackets.
  other(keys=("state_dict",))
  equal(
    hub.load(str(tmp_path / "both.pt"), "unet").params,
    jax.tree.map(np.zeros_like, params),
  )


def test_a_file_of_no_config_needs_one_that_is_expected(
  other, networks, tmp_path
):
  params = networks["unet"]
  file = tmp_path / "a.pt"
  torch.save(state("unet", params), file)
  with pytest.raises(ValueError, match=r"no config\.json in"):
    hub.load(str(file), "unet")
  equal(hub.load(str(file), "unet", expect=TINY["unet"]).params, params)
  torch.save(spelled(params), file)
  wrong = dataclasses.replace(TINY["unet"], heads=4)
  with pytest.raises(ValueError, match=r"is another unet: heads=2"):
    hub.load(str(file), "unet", expect=wrong)


def test_a_row_may_be_a_file(networks, tmp_path, monkeypatch, other):
  torch.save(spelled(networks["unet"]), tmp_path / "a.pth")
  calls = []

  def fetch(repository, allow_patterns):
    calls.append((repository, allow_patterns))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  entry = published.Entry("unet", "SD2", "someone/models", "a.pth")
  monkeypatch.setitem(published.TABLE, "some/unet", entry)
  loaded = hub.load("some/unet", "unet", expect=TINY["unet"])
  equal(loaded.params, networks["unet"])
  assert calls == [("someone/models", ["a.pth"])]


def test_a_row_is_fetched_in_the_files_that_it_has(
  networks, tmp_path, monkeypatch
):
  calls = []

  def fetch(repository, allow_patterns):
    calls.append(allow_patterns)
    if "vae/diffusion_pytorch_model.fp16.safetensors" in allow_patterns:
      folder = tmp_path / "vae"
      tiny, params = TINY["autoencoder"], networks["autoencoder"]
      hub.save(str(folder), "autoencoder", tiny, params, dtype="float16")
      (folder / "diffusion_pytorch_model.safetensors").rename(
        folder / "diffusion_pytorch_model.fp16.safetensors"
      )
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  for variant, count in ((None, 3), ("fp16", 1)):
    calls.clear()
    loaded = hub.load(
      "sd2/vae", "autoencoder", expect=TINY["autoencoder"], variant=variant
    )
    equal(loaded.params, tree.cast(networks["autoencoder"], "float16"))
    assert len(calls) == count
  with pytest.raises(ValueError, match=r"cannot fetch sd2/vae .*no weights"):
    hub.load("sd2/vae", "autoencoder", variant="int8")


def cut(file, share):
  data = file.read_bytes()
  file.write_bytes(data[: int(len(data) * share)])


def test_damage_is_one_line_that_names_file_and_tensor(networks, tmp_path):
  kind, params = "clip_text", networks["clip_text"]
  name = "text_model.final_layer_norm.weight"

  def folder(number, change=None, torch_file=False):
    place = tmp_path / str(number)
    hub.save(str(place), kind, TINY[kind], params)
    if torch_file:
      (place / "model.safetensors").unlink()
      torch.save(state(kind, params), place / "pytorch_model.bin")
    if change:
      weights = state(kind, params)
      change(weights)
      weight_files.save_folder(
        str(place),
        {n: t.numpy() for n, t in weights.items()},
        json.loads((place / "config.json").read_text()),
        stem="model",
      )
    return place

  header = folder(0)
  cut(header / "model.safetensors", 0.01)
  data = folder(1)
  cut(data / "model.safetensors", 0.9)
  pickle = folder(2, torch_file=True)
  cut(pickle / "pytorch_model.bin", 0.9)
  shape = folder(3, lambda w: w.update({name: torch.ones(17)}))
  extra = folder(4, lambda w: w.update({"odd": torch.ones(1)}))
  missing = folder(5, lambda w: w.pop(name))
  field = folder(6)
  settings = json.loads((field / "config.json").read_text())
  settings["num_experts"] = 8
  (field / "config.json").write_text(json.dumps(settings))
  for place, message in [
    (header, r"0/model\.safetensors .*cut off in its header; download"),
    (data, r"1/model\.safetensors is cut off: text_model\..* ends at byte"),
    (pickle, r"2/pytorch_model\.bin: not a file of torch\.save, or cut off"),
    (shape, rf"3: weights do not fit: {name}: expected \(16,\), got \(17,\)"),
    (extra, r"4: weights do not fit: left over odd$"),
    (missing, rf"5: weights do not fit: missing {name} \(our norm\.scale\)"),
    (field, r"6/config\.json as clip_text: config\.json has num_experts=8"),
  ]:
    with pytest.raises(ValueError, match=message) as caught:
      hub.load(str(place), kind)
    assert "\n" not in str(caught.value)


def test_numbers_too_large_for_a_type_are_named_and_nothing_is_written(
  networks, tmp_path
):
  flat = tree.flatten(networks["clip_text"])
  flat["norm.bias"] = flat["norm.bias"].at[3].set(1e6)
  large = tree.unflatten(flat)
  message = (
    r"text_model\.final_layer_norm\.bias has numbers too large for float"
  )
  with pytest.raises(ValueError, match=message):
    hub.save(
      str(tmp_path), "clip_text", TINY["clip_text"], large, dtype="float16"
    )
  assert not list(tmp_path.iterdir())
  hub.save(str(tmp_path), "clip_text", TINY["clip_text"], large)
  with pytest.raises(ValueError, match=message):
    hub.load(str(tmp_path), "clip_text", dtype="float16")
  with pytest.raises(ValueError, match="dtype=int8; expected float32, bf"):
    hub.save(str(tmp_path), "clip_text", TINY["clip_text"], large, dtype="int8")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
  class Call:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / "mark",)

  torch.save({"w": torch.ones(1), "x": Call()}, tmp_path / "a.pth")
  with pytest.raises(
    ValueError, match=r"a\.pth: its pickle asks for .*refused"
  ):
    hub.load(str(tmp_path / "a.pth"), "unet", expect=TINY["unet"])
  assert not (tmp_path / "mark").exists()
