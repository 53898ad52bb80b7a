# SPDX-License-Identifier: Apache-2.0
"""LPIPS in torch, of any width."""

import torch

# Where torchvision's list has the activations whose features count.
TAPS = (3, 8, 15, 22, 29)


def network(channels):
  """torchvision's `features`, and one 1x1 convolution a level."""
  features, before = [], 3
  for level, (width, depth) in enumerate(
    zip(channels, (2, 2, 3, 3, 3), strict=True)
  ):
    if level:
      features.append(torch.nn.MaxPool2d(2, 2))
    for _ in range(depth):
      features += [torch.nn.Conv2d(before, width, 3, padding=1)]
      features += [torch.nn.ReLU()]
      before = width
  heads = [torch.nn.Conv2d(width, 1, 1, bias=False) for width in channels]
  return torch.nn.Sequential(*features), heads


def distance(features, heads, x, y):
  """Zhang et al., eq. 1, as its authors compute it; [B 3 H W] in [-1, 1]."""
  shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
  scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
  x, y = (x - shift) / scale, (y - shift) / scale
  total, maps = 0, []
  for place, layer in enumerate(features):
    x, y = layer(x), layer(y)
    if place in TAPS:
      maps.append(x)
      a, b = (
        f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y)
      )
      squares = heads[len(maps) - 1]((a - b) ** 2)
      total = total + squares.mean(dim=(2, 3))[:, 0]
  return total, maps
