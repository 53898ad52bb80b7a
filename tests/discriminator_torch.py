# SPDX-License-Identifier: Apache-2.0
"""PatchGAN in torch, with the names of taming."""

import torch
from torch import nn


class PatchGAN(nn.Module):
  """NLayerDiscriminator of the published code, in training."""

  def __init__(self, channels, depth, running=True):
    super().__init__()
    layers = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    width = channels
    for n in range(1, depth + 1):
      out = channels * min(2**n, 8)
      layers += [
        nn.Conv2d(width, out, 4, 2 if n < depth else 1, 1, bias=False),
        nn.BatchNorm2d(out, track_running_stats=running),
        nn.LeakyReLU(0.2),
      ]
      width = out
    layers.append(nn.Conv2d(width, 1, 4, 1, 1))
    self.main = nn.Sequential(*layers)

  def forward(self, x):
    return self.main(x)


def random(module, seed=1):
  """The module with weights that hide nothing."""
  torch.manual_seed(seed)
  with torch.no_grad():
    for weight in module.parameters():
      if weight.ndim > 1:
        weight.normal_(std=1.5 * weight[0].numel() ** -0.5)
      else:
        weight.normal_(0.5, 0.3)
  return module
