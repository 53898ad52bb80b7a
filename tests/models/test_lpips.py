# SPDX-License-Identifier: Apache-2.0
"""LPIPS against the same network in torch, through the published files."""

from flax import nnx
import jax
import jax.numpy as jnp
import lpips_torch
import numpy as np
import parity
import pytest
import torch

from cc_jax.core import config_json, convert, tree, weight_files
from cc_jax.models import hub, kinds, lpips

TINY = lpips.Config(channels=(4, 5, 6, 7, 8))
ONES = torch.ones(1, 4, 1, 1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A folder with the two files as they are published, and its network."""
  folder = tmp_path_factory.mktemp("lpips")
  torch.manual_seed(0)
  features, heads = lpips_torch.network(TINY.channels)
  state = {f"features.{k}": v for k, v in features.state_dict().items()}
  state["classifier.0.weight"] = torch.ones(2, 8)
  state["classifier.0.bias"] = torch.ones(2)
  # Either format is read; this one is that before torch 1.6.
  torch.save(
    state,
    folder / "vgg16-397923af.pth",
    _use_new_zipfile_serialization=False,
  )
  linear = {}
  for level, head in enumerate(heads):
    head.weight.data.abs_()
    linear[f"lin{level}.model.1.weight"] = head.weight.data
  torch.save(linear, folder / "vgg.pth")
  table = config_json.export_config(TINY, lpips.CONFIG)
  weight_files.save_folder(str(folder), {}, table, stem="empty")
  (folder / "empty.safetensors").unlink()
  return folder, features, heads


def pixels(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, shape).astype(np.float32)


def first(array):
  return torch.from_numpy(array).permute(0, 3, 1, 2)


def load(folder):
  loaded = hub.load(str(folder), "lpips")
  return tree.merge(kinds.structure("lpips", loaded.config)[0], loaded.params)


@pytest.mark.parametrize("size", [(32, 48), (19, 35)])
def test_published_files_give_the_distance_of_torch(published, size):
  folder, features, heads = published
  x, y = pixels(2, *size, 3), pixels(2, *size, 3, seed=1)
  with torch.no_grad():
    expected, maps = lpips_torch.distance(features, heads, first(x), first(y))
  module = load(folder)
  ours, result = jax.jit(lambda m, x, y: (m.vgg(lpips.scaled(x)), m(x, y)))(
    module, x, y
  )
  for level, reference in zip(ours, maps, strict=True):
    parity.check(level, reference.permute(0, 2, 3, 1), parity.LAYER)
  parity.check(result, expected, parity.MODEL)


def test_gradients_are_those_of_torch(published):
  folder, features, heads = published
  x, y = pixels(1, 16, 16, 3), pixels(1, 16, 16, 3, seed=1)
  theirs = first(x).requires_grad_()
  lpips_torch.distance(features, heads, theirs, first(y))[0].sum().backward()
  ours = jax.jit(jax.grad(lambda x, m, y: m(x, y).sum()))(x, load(folder), y)
  expected = theirs.grad.permute(0, 2, 3, 1).numpy()
  assert np.abs(expected).max() > 0
  parity.check(ours, expected, parity.MODEL)


def test_it_is_a_distance(published):
  module = load(published[0])
  x, y = pixels(2, 16, 16, 3), pixels(2, 16, 16, 3, seed=1)
  measure = jax.jit(module)
  np.testing.assert_allclose(measure(x, x), 0, atol=1e-12)
  np.testing.assert_array_equal(measure(x, y), measure(y, x))
  assert (np.asarray(measure(x, y)) > 0).all()
  near = measure(x, 0.9 * x + 0.1 * y)
  assert (np.asarray(near) < measure(x, y)).all()


def test_features_that_are_all_zero_have_a_gradient():
  """The root of their sum of squares has none."""
  x = jnp.array([[[[0.0, 0.0], [3.0, 4.0]]]])
  np.testing.assert_allclose(lpips.unit(x)[0, 0], [[0, 0], [0.6, 0.8]])
  slope = jax.grad(lambda x: lpips.unit(x)[..., 0].sum())(x)
  assert np.isfinite(slope).all()
  np.testing.assert_allclose(slope[0, 0, 1], [0.128, -0.096], rtol=1e-5)


def test_bfloat16_is_close_to_float32(published):
  loaded = hub.load(str(published[0]), "lpips")
  x, y = pixels(2, 16, 16, 3), pixels(2, 16, 16, 3, seed=1)

  def result(dtype):
    structure, _ = kinds.structure("lpips", TINY, dtype)
    return jax.jit(tree.merge(structure, loaded.params))(x, y)

  exact, half = result("float32"), result("bfloat16")
  assert half.dtype == jnp.float32
  parity.check(half, exact, 0.1)


def test_the_preset_has_the_names_and_shapes_that_are_published():
  _, shapes = kinds.structure("lpips", lpips.VGG)
  assert tree.count(shapes["vgg"]) == 14_714_688
  with torch.device("meta"):
    features, heads = lpips_torch.network((64, 128, 256, 512, 512))
  expected = {
    f"features.{name}": tuple(tensor.shape)
    for name, tensor in features.state_dict().items()
  }
  for level, head in enumerate(heads):
    expected[f"lin{level}.model.1.weight"] = tuple(head.weight.shape)
  assert convert.export_shapes(shapes, lpips.NAMES) == expected


def test_files_and_safetensors_are_the_same_network(published, tmp_path):
  loaded = hub.load(str(published[0]), "lpips")
  hub.save(str(tmp_path), "lpips", loaded.config, loaded.params)
  again = hub.load(str(tmp_path), "lpips")
  assert again.config == loaded.config == TINY
  assert again.hash == loaded.hash


def copy(published, folder, **changes):
  """The published files with other tensors in them."""
  for name in lpips.PICKLES:
    state = torch.load(published[0] / name)
    torch.save(changes.get(name.partition(".")[0], dict)(state), folder / name)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda state: {**state, "lin5.model.1.weight": ONES}, "left over"),
    (lambda state: {"lin0.model.1.weight": ONES}, "missing"),
  ],
)
def test_tensors_besides_the_classifier_are_not_dropped(
  published, change, message, tmp_path
):
  copy(published, tmp_path, vgg=change)
  (tmp_path / "config.json").write_text('{"channels": [4, 5, 6, 7, 8]}')
  with pytest.raises(ValueError, match=message):
    hub.load(str(tmp_path), "lpips")


def test_without_a_config_it_is_the_published_one(published, tmp_path):
  copy(published, tmp_path)
  assert hub.config(str(tmp_path), "lpips") == lpips.VGG
  with pytest.raises(ValueError, match=r"expected .*64.*, got .*4"):
    hub.load(str(tmp_path), "lpips")
  (tmp_path / "vgg.pth").unlink()
  with pytest.raises(ValueError, match=r"no config\.json"):
    hub.load(str(tmp_path), "lpips")
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(ValueError, match=r"nor vgg16-397923af.pth and vgg.pth"):
    hub.load(str(tmp_path), "lpips")


def test_images_that_are_too_small_are_refused():
  x = jnp.zeros((1, 15, 32, 3))
  with pytest.raises(ValueError, match="15 x 32 pixels; expected at least 16"):
    jax.eval_shape(lambda: lpips.LPIPS(TINY, rngs=nnx.Rngs(0))(x, x))
  with pytest.raises(ValueError, match="expected 5 levels"):
    lpips.Config(channels=(64, 128))
