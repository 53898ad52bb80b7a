# SPDX-License-Identifier: Apache-2.0
"""InceptionV3 against the same network in torch, through a file of torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.torch
import torch
from torch import nn
import torch.nn.functional as F

from cc_jax.core import convert, tree
from cc_jax.models import hub, inception, kinds

TINY = inception.Config(classes=10, divisor=8)


class Conv(nn.Module):
  def __init__(self, channels, out, size=1, **options):
    super().__init__()
    self.conv = nn.Conv2d(channels, out, size, bias=False, **options)
    self.bn = nn.BatchNorm2d(out, eps=1e-3)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)))


def average(x):
  return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


# Convolutions of (1, 7), (7, 1), (1, 3) and (3, 1), padded to keep the size.
WIDE, HIGH = (
  dict(size=(1, 7), padding=(0, 3)),
  dict(size=(7, 1), padding=(3, 0)),
)
FLAT, TALL = (
  dict(size=(1, 3), padding=(0, 1)),
  dict(size=(3, 1), padding=(1, 0)),
)


class A(nn.Module):
  def __init__(self, channels, pool, d):
    super().__init__()
    self.branch1x1 = Conv(channels, 64 // d)
    self.branch5x5_1 = Conv(channels, 48 // d)
    self.branch5x5_2 = Conv(48 // d, 64 // d, 5, padding=2)
    self.branch3x3dbl_1 = Conv(channels, 64 // d)
    self.branch3x3dbl_2 = Conv(64 // d, 96 // d, 3, padding=1)
    self.branch3x3dbl_3 = Conv(96 // d, 96 // d, 3, padding=1)
    self.branch_pool = Conv(channels, pool // d)

  def forward(self, x):
    double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    outputs = (
      self.branch1x1(x),
      self.branch5x5_2(self.branch5x5_1(x)),
      self.branch3x3dbl_3(double),
      self.branch_pool(average(x)),
    )
    return torch.cat(outputs, 1)


class B(nn.Module):
  def __init__(self, channels, d):
    super().__init__()
    self.branch3x3 = Conv(channels, 384 // d, 3, stride=2)
    self.branch3x3dbl_1 = Conv(channels, 64 // d)
    self.branch3x3dbl_2 = Conv(64 // d, 96 // d, 3, padding=1)
    self.branch3x3dbl_3 = Conv(96 // d, 96 // d, 3, stride=2)

  def forward(self, x):
    double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    double = self.branch3x3dbl_3(double)
    return torch.cat((self.branch3x3(x), double, F.max_pool2d(x, 3, 2)), 1)


class C(nn.Module):
  def __init__(self, channels, inner, d):
    super().__init__()
    c = inner // d
    self.branch1x1 = Conv(channels, 192 // d)
    self.branch7x7_1 = Conv(channels, c)
    self.branch7x7_2 = Conv(c, c, **WIDE)
    self.branch7x7_3 = Conv(c, 192 // d, **HIGH)
    self.branch7x7dbl_1 = Conv(channels, c)
    self.branch7x7dbl_2 = Conv(c, c, **HIGH)
    self.branch7x7dbl_3 = Conv(c, c, **WIDE)
    self.branch7x7dbl_4 = Conv(c, c, **HIGH)
    self.branch7x7dbl_5 = Conv(c, 192 // d, **WIDE)
    self.branch_pool = Conv(channels, 192 // d)

  def forward(self, x):
    single, double = x, x
    for place in (1, 2, 3):
      single = getattr(self, f"branch7x7_{place}")(single)
    for place in (1, 2, 3, 4, 5):
      double = getattr(self, f"branch7x7dbl_{place}")(double)
    pooled = self.branch_pool(average(x))
    return torch.cat((self.branch1x1(x), single, double, pooled), 1)


class D(nn.Module):
  def __init__(self, channels, d):
    super().__init__()
    c = 192 // d
    self.branch3x3_1 = Conv(channels, c)
    self.branch3x3_2 = Conv(c, 320 // d, 3, stride=2)
    self.branch7x7x3_1 = Conv(channels, c)
    self.branch7x7x3_2 = Conv(c, c, **WIDE)
    self.branch7x7x3_3 = Conv(c, c, **HIGH)
    self.branch7x7x3_4 = Conv(c, c, 3, stride=2)

  def forward(self, x):
    long = self.branch7x7x3_2(self.branch7x7x3_1(x))
    long = self.branch7x7x3_4(self.branch7x7x3_3(long))
    short = self.branch3x3_2(self.branch3x3_1(x))
    return torch.cat((short, long, F.max_pool2d(x, 3, 2)), 1)


class E(nn.Module):
  def __init__(self, channels, pool, d):
    super().__init__()
    c, self.pool = 384 // d, pool
    self.branch1x1 = Conv(channels, 320 // d)
    self.branch3x3_1 = Conv(channels, c)
    self.branch3x3_2a = Conv(c, c, **FLAT)
    self.branch3x3_2b = Conv(c, c, **TALL)
    self.branch3x3dbl_1 = Conv(channels, 448 // d)
    self.branch3x3dbl_2 = Conv(448 // d, c, 3, padding=1)
    self.branch3x3dbl_3a = Conv(c, c, **FLAT)
    self.branch3x3dbl_3b = Conv(c, c, **TALL)
    self.branch_pool = Conv(channels, 192 // d)

  def forward(self, x):
    single = self.branch3x3_1(x)
    double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    outputs = (
      self.branch1x1(x),
      self.branch3x3_2a(single),
      self.branch3x3_2b(single),
      self.branch3x3dbl_3a(double),
      self.branch3x3dbl_3b(double),
      self.branch_pool(self.pool(x)),
    )
    return torch.cat(outputs, 1)


class Inception(nn.Module):
  """The network of pytorch-fid, with all channels divided by d."""

  def __init__(self, config):
    super().__init__()
    d = config.divisor
    self.Conv2d_1a_3x3 = Conv(3, 32 // d, 3, stride=2)
    self.Conv2d_2a_3x3 = Conv(32 // d, 32 // d, 3)
    self.Conv2d_2b_3x3 = Conv(32 // d, 64 // d, 3, padding=1)
    self.Conv2d_3b_1x1 = Conv(64 // d, 80 // d)
    self.Conv2d_4a_3x3 = Conv(80 // d, 192 // d, 3)
    self.Mixed_5b = A(192 // d, 32, d)
    self.Mixed_5c = A(256 // d, 64, d)
    self.Mixed_5d = A(288 // d, 64, d)
    self.Mixed_6a = B(288 // d, d)
    self.Mixed_6b = C(768 // d, 128, d)
    self.Mixed_6c = C(768 // d, 160, d)
    self.Mixed_6d = C(768 // d, 160, d)
    self.Mixed_6e = C(768 // d, 192, d)
    self.Mixed_7a = D(768 // d, d)
    self.Mixed_7b = E(1280 // d, average, d)
    # Google's network of 2015 has this maximum in its last block only.
    maximum = lambda x: F.max_pool2d(x, 3, 1, 1)
    self.Mixed_7c = E(2048 // d, maximum, d)
    self.fc = nn.Linear(2048 // d, config.classes)

  def forward(self, x):
    for name, layer in self.named_children():
      if name != "fc":
        x = layer(x)
      if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
        x = F.max_pool2d(x, 3, 2)
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return pooled, pooled @ self.fc.weight.T


def random(config, images):
  """The network with statistics of noise, and other weights that are random."""
  torch.manual_seed(0)
  network = Inception(config)
  with torch.no_grad():
    for module in network.modules():
      if isinstance(module, nn.BatchNorm2d):
        module.momentum = 1.0
        module.weight.uniform_(0.8, 1.2)
        module.bias.uniform_(-0.2, 0.2)
    # In training mode each norm stores what it sees.
    network.train()(torch.rand(images, 3, 139, 139) * 2 - 1)
  return network.eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """A small network, and its folder with the file as it is published."""
  folder = tmp_path_factory.mktemp("inception")
  network = random(TINY, 8)
  torch.save(network.state_dict(), folder / inception.PICKLES[0])
  text = '{"divisor": 8, "classes": 10, "network": "inception-2015-12-05"}'
  (folder / "config.json").write_text(text)
  return network, str(folder)


def load(folder, dtype="float32"):
  loaded = hub.load(folder, "inception")
  structure, _ = kinds.structure("inception", loaded.config, dtype)
  return tree.merge(structure, loaded.params)


def pixels(*shape):
  rng = np.random.default_rng(1)
  return rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)


run = jax.jit(lambda model, x: model(x))


def check(ours, network, x):
  with torch.no_grad():
    expected = network(torch.from_numpy(x).permute(0, 3, 1, 2))
  for found, reference in zip(run(ours, x), expected, strict=True):
    assert found.dtype == jnp.float32
    assert reference.std() > 1e-2
    parity.check(found, reference, parity.MODEL)


def test_the_published_file_gives_the_features_of_torch(tmp_path):
  """At full size, and without a config.json."""
  network = random(inception.FID, 2)
  torch.save(network.state_dict(), tmp_path / inception.PICKLES[0])
  assert hub.config(str(tmp_path), "inception") == inception.FID
  ours = load(str(tmp_path))
  x = pixels(1, 299, 299)
  check(ours, network, x)
  pooled, logits = run(ours, x)
  assert pooled.shape == (1, 2048)
  assert logits.shape == (1, 1008)


@pytest.mark.parametrize("size", [(75, 75), (110, 85)])
def test_images_of_other_sizes_have_the_features_of_torch(small, size):
  network, folder = small
  check(load(folder), network, pixels(3, *size))


def test_our_files_open_in_torch(small, tmp_path):
  _, folder = small
  loaded = hub.load(folder, "inception")
  assert loaded.config == TINY
  hub.save(str(tmp_path), "inception", loaded.config, loaded.params)
  again = hub.load(str(tmp_path), "inception")
  assert again.config == loaded.config
  assert again.hash == loaded.hash
  network = Inception(TINY).eval()
  state = safetensors.torch.load_file(tmp_path / "model.safetensors")
  # strict: torch fills in counters alone, for files without a version.
  network.load_state_dict(state)
  check(load(folder), network, pixels(2, 80, 80))


def test_the_preset_has_the_names_and_shapes_that_are_published():
  _, shapes = kinds.structure("inception", inception.FID)
  with torch.device("meta"):
    network = Inception(inception.FID)
  expected = {
    name: tuple(tensor.shape)
    for name, tensor in network.state_dict().items()
    if not name.endswith("num_batches_tracked")
  }
  assert convert.export_shapes(shapes, inception.NAMES) == expected
  assert len(expected) == 94 * 5 + 2
  flat = tree.flatten(shapes).items()
  statistics = sum(
    leaf.size for path, leaf in flat if path.endswith(("mean", "var"))
  )
  # torchvision's 27,161,264 without its second head, and 8 classes more.
  trained = 27_161_264 - 3_326_696 + 8 * 2049
  assert tree.count(shapes) - statistics == trained


def test_a_file_without_counters_is_the_same(small, tmp_path):
  """Those of torch before 0.4.1 have none."""
  network, folder = small
  state = {
    name: tensor
    for name, tensor in network.state_dict().items()
    if not name.endswith("num_batches_tracked")
  }
  torch.save(state, tmp_path / inception.PICKLES[0])
  (tmp_path / "config.json").write_text('{"divisor": 8, "classes": 10}')
  found = hub.load(str(tmp_path), "inception")
  assert found.hash == hub.load(folder, "inception").hash


def test_bfloat16_is_close_to_float32(small):
  """In the first eight layers: random deep ones multiply any rounding."""
  _, folder = small

  @jax.jit
  def early(model, x):
    for layer in model.stem:
      x = layer(x)
    return model.blocks[0](x)

  x = pixels(2, 75, 75)
  exact, model = load(folder), load(folder, "bfloat16")
  half = early(model, x)
  assert half.dtype == jnp.bfloat16
  parity.check(half.astype(jnp.float32), early(exact, x), 0.1)
  assert {leaf.dtype.name for leaf in run(model, x)} == {"float32"}


def test_what_cannot_be_is_refused():
  with pytest.raises(ValueError, match="divisor=3: expected 1, 2, 4, 8 or 16"):
    dataclasses.replace(TINY, divisor=3)
  structure, shapes = kinds.structure("inception", TINY)
  x = jnp.zeros((1, 74, 299, 3))
  with pytest.raises(ValueError, match="74 x 299 pixels; expected 299 x 299"):
    jax.eval_shape(lambda params: tree.merge(structure, params)(x), shapes)
