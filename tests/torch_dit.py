# SPDX-License-Identifier: Apache-2.0
"""DiT and PixArt-alpha in torch, with the names of the authors' files.

Written from the papers' description, arXiv 2212.09748 and 2310.00426, so that
the authors' format is tested by what the networks compute.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def sinusoids(numbers):
  """256 of them, cosines first."""
  frequency = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
  angle = numbers.float()[:, None] * frequency
  return torch.cat([angle.cos(), angle.sin()], dim=-1)


def places(rows, columns, width, base, scale):
  """One vector a patch: its column's sinusoids, then its row's."""
  frequency = 10_000 ** -(torch.arange(width // 4).double() / (width // 4))
  axis = lambda n: torch.arange(n).double() / (n / base) / scale
  result = torch.zeros(rows, columns, width)
  for i, row in enumerate(axis(rows)):
    for j, column in enumerate(axis(columns)):
      two = [place * frequency for place in (column, row)]
      result[i, j] = torch.cat(
        [wave for angle in two for wave in (angle.sin(), angle.cos())]
      )
  return result.reshape(1, rows * columns, width)


def heads(x, n):
  return x.unflatten(-1, (n, -1)).transpose(1, 2)


def norm(x):
  return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x, shift, scale):
  return x * (1 + scale) + shift


class Embedder(nn.Module):
  """Of a number."""

  def __init__(self, width):
    super().__init__()
    layers = nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
    self.mlp = nn.Sequential(*layers)

  def forward(self, numbers):
    return self.mlp(sinusoids(numbers))


class Mlp(nn.Module):
  def __init__(self, width, hidden, out):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Attention(nn.Module):
  def __init__(self, width, n):
    super().__init__()
    self.n = n
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    q, k, v = (heads(y, self.n) for y in self.qkv(x).chunk(3, -1))
    x = F.scaled_dot_product_attention(q, k, v)
    return self.proj(x.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
  """To the valid tokens of each caption, one caption after another."""

  def __init__(self, width, n):
    super().__init__()
    self.n = n
    self.q_linear = nn.Linear(width, width)
    self.kv_linear = nn.Linear(width, 2 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x, context, mask):
    result = []
    for one, source, valid in zip(x, context, mask, strict=True):
      k, v = self.kv_linear(source[valid]).chunk(2, -1)
      q, k, v = (heads(y[None], self.n) for y in (self.q_linear(one), k, v))
      read = F.scaled_dot_product_attention(q, k, v)
      result.append(read.transpose(1, 2).flatten(2))
    return self.proj(torch.cat(result))


class Patches(nn.Module):
  def __init__(self, width, patch):
    super().__init__()
    self.proj = nn.Conv2d(4, width, patch, stride=patch)

  def forward(self, x):
    return self.proj(x).flatten(2).mT


def unpatchify(x, rows, columns, patch):
  x = x.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))
  return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class DiTBlock(nn.Module):
  def __init__(self, width, n):
    super().__init__()
    self.attn = Attention(width, n)
    self.mlp = Mlp(width, 4 * width, width)
    layers = nn.SiLU(), nn.Linear(width, 6 * width)
    self.adaLN_modulation = nn.Sequential(*layers)

  def forward(self, x, condition):
    six = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
    x = x + six[2] * self.attn(modulate(norm(x), *six[:2]))
    return x + six[5] * self.mlp(modulate(norm(x), *six[3:5]))


class DiTFinal(nn.Module):
  def __init__(self, width, out):
    super().__init__()
    self.linear = nn.Linear(width, out)
    layers = nn.SiLU(), nn.Linear(width, 2 * width)
    self.adaLN_modulation = nn.Sequential(*layers)

  def forward(self, x, condition):
    two = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
    return self.linear(modulate(norm(x), *two))


class Labels(nn.Module):
  def __init__(self, classes, width):
    super().__init__()
    self.embedding_table = nn.Embedding(classes + 1, width)


class DiT(nn.Module):
  def __init__(self, size, width, n, depth, classes, patch=2):
    super().__init__()
    self.patch, side = patch, size // patch
    self.x_embedder = Patches(width, patch)
    self.t_embedder = Embedder(width)
    self.y_embedder = Labels(classes, width)
    table = places(side, side, width, side, 1)
    self.pos_embed = nn.Parameter(table, requires_grad=False)
    self.blocks = nn.ModuleList(DiTBlock(width, n) for _ in range(depth))
    self.final_layer = DiTFinal(width, patch * patch * 8)

  def forward(self, x, t, labels):
    rows, columns = (n // self.patch for n in x.shape[2:])
    condition = self.t_embedder(t) + self.y_embedder.embedding_table(labels)
    x = self.x_embedder(x) + self.pos_embed
    for block in self.blocks:
      x = block(x, condition)
    x = self.final_layer(x, condition)
    return unpatchify(x, rows, columns, self.patch)


class PixArtBlock(nn.Module):
  def __init__(self, width, n):
    super().__init__()
    self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
    self.attn = Attention(width, n)
    self.cross_attn = CrossAttention(width, n)
    self.mlp = Mlp(width, 4 * width, width)

  def forward(self, x, context, mask, t0):
    six = (self.scale_shift_table + t0.unflatten(-1, (6, -1))).chunk(6, 1)
    x = x + six[2] * self.attn(modulate(norm(x), *six[:2]))
    x = x + self.cross_attn(x, context, mask)
    return x + six[5] * self.mlp(modulate(norm(x), *six[3:5]))


class PixArtFinal(nn.Module):
  def __init__(self, width, out):
    super().__init__()
    self.linear = nn.Linear(width, out)
    self.scale_shift_table = nn.Parameter(torch.zeros(2, width))

  def forward(self, x, condition):
    two = (self.scale_shift_table + condition[:, None]).chunk(2, 1)
    return self.linear(modulate(norm(x), *two))


class Captions(nn.Module):
  def __init__(self, source, width, tokens):
    super().__init__()
    self.y_proj = Mlp(source, width, width)
    self.register_buffer("y_embedding", torch.randn(tokens, source))


class PixArt(nn.Module):
  def __init__(self, size, width, n, depth, source, tokens, micro, patch=2):
    super().__init__()
    self.patch, self.base, self.width = patch, size // patch, width
    self.scale = max(size // 64, 1)
    self.x_embedder = Patches(width, patch)
    self.t_embedder = Embedder(width)
    layers = nn.SiLU(), nn.Linear(width, 6 * width)
    self.t_block = nn.Sequential(*layers)
    self.y_embedder = Captions(source, width, tokens)
    if micro:
      self.csize_embedder = Embedder(width // 3)
      self.ar_embedder = Embedder(width // 3)
    side = self.base
    table = places(side, side, width, self.base, self.scale)
    self.register_buffer("pos_embed", table)
    self.blocks = nn.ModuleList(PixArtBlock(width, n) for _ in range(depth))
    self.final_layer = PixArtFinal(width, patch * patch * 8)

  def forward(self, x, t, context, mask, sizes=None, ratio=None):
    rows, columns = (n // self.patch for n in x.shape[2:])
    condition = self.t_embedder(t)
    if sizes is not None:
      height, width = (self.csize_embedder(n) for n in sizes.T)
      three = [height, width, self.ar_embedder(ratio)]
      condition = condition + torch.cat(three, dim=-1)
    t0, context = self.t_block(condition), self.y_embedder.y_proj(context)
    x = self.x_embedder(x)
    x = x + places(rows, columns, self.width, self.base, self.scale)
    for block in self.blocks:
      x = block(x, context, mask, t0)
    x = self.final_layer(x, condition)
    return unpatchify(x, rows, columns, self.patch)
