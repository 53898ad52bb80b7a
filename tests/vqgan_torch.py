# SPDX-License-Identifier: Apache-2.0
"""VQGAN in torch with the names of taming and of HFAiLab, at any size."""

import torch
from torch import nn
import torch.nn.functional as F


def pad(x):
  """For a stride-2 convolution that looks beyond the right and lower edge."""
  return F.pad(x, (0, 1, 0, 1))


class Resample(nn.Module):
  def __init__(self, width, down):
    super().__init__()
    self.down = down
    self.conv = nn.Conv2d(width, width, 3, 2 if down else 1, 0 if down else 1)

  def forward(self, x):
    return self.conv(pad(x) if self.down else F.interpolate(x, scale_factor=2))


class TamingResnet(nn.Module):
  def __init__(self, width, out, norm):
    super().__init__()
    self.norm1, self.norm2 = norm(width), norm(out)
    self.conv1 = nn.Conv2d(width, out, 3, padding=1)
    self.conv2 = nn.Conv2d(out, out, 3, padding=1)
    if width != out:
      self.nin_shortcut = nn.Conv2d(width, out, 1)

  def forward(self, x):
    h = self.conv1(F.silu(self.norm1(x)))
    h = self.conv2(F.silu(self.norm2(h)))
    return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class TamingAttention(nn.Module):
  def __init__(self, width, norm):
    super().__init__()
    self.norm = norm(width)
    for name in ("q", "k", "v", "proj_out"):
      setattr(self, name, nn.Conv2d(width, width, 1))

  def forward(self, x):
    h = self.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
    weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
    return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class TamingHalf(nn.Module):
  """Encoder or decoder; levels are numbered from full resolution down."""

  def __init__(self, config, norm, down):
    super().__init__()
    z, channels, last = config.latent_channels, config.channels, -1
    low, size = channels[-1], len(channels)
    self.is_encoder = down
    self.conv_in = nn.Conv2d(
      config.in_channels if down else z, channels[0] if down else low, 3, 1, 1
    )
    levels = [nn.Module() for _ in channels]
    width = channels[0] if down else low
    for level in range(size) if down else reversed(range(size)):
      made, out = levels[level], channels[level]
      made.block, made.attn = nn.ModuleList(), nn.ModuleList()
      for _ in range(config.layers_per_block + (not down)):
        made.block.append(TamingResnet(width, out, norm))
        if config.attention[level]:
          made.attn.append(TamingAttention(out, norm))
        width = out
      last = size - 1 if down else 0
      if level != last:
        name = "downsample" if down else "upsample"
        setattr(made, name, Resample(out, down))
    setattr(self, "down" if down else "up", nn.ModuleList(levels))
    self.mid = nn.Module()
    self.mid.block_1 = TamingResnet(low, low, norm)
    self.mid.attn_1 = TamingAttention(low, norm)
    self.mid.block_2 = TamingResnet(low, low, norm)
    self.norm_out = norm(width)
    self.conv_out = nn.Conv2d(
      width, z if down else config.out_channels, 3, 1, 1
    )

  def middle(self, x):
    return self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))

  def levels(self, x):
    for level in self.down if self.is_encoder else reversed(self.up):
      for place, block in enumerate(level.block):
        x = block(x)
        x = level.attn[place](x) if len(level.attn) else x
      for name in ("downsample", "upsample"):
        x = getattr(level, name)(x) if hasattr(level, name) else x
    return x

  def forward(self, x):
    x = self.conv_in(x)
    down = self.is_encoder
    x = self.middle(self.levels(x)) if down else self.levels(self.middle(x))
    return self.conv_out(F.silu(self.norm_out(x)))


class Taming(nn.Module):
  def __init__(self, config):
    super().__init__()
    norm = lambda width: nn.GroupNorm(config.groups, width, eps=1e-6)
    z, width = config.latent_channels, config.codebook_width
    self.encoder = TamingHalf(config, norm, True)
    self.decoder = TamingHalf(config, norm, False)
    self.quant_conv = nn.Conv2d(z, width, 1)
    self.post_quant_conv = nn.Conv2d(width, z, 1)
    self.quantize = nn.Module()
    self.quantize.embedding = nn.Embedding(config.codebook_size, width)

  def encode(self, x):
    return self.quant_conv(self.encoder(x))

  def decode(self, zq):
    return self.decoder(self.post_quant_conv(zq))

  def table(self):
    return self.quantize.embedding.weight


class HFAiLabResnet(nn.Module):
  def __init__(self, width, out, groups):
    super().__init__()
    self.block = nn.Sequential(
      nn.GroupNorm(groups, width),
      nn.SiLU(),
      nn.Conv2d(width, out, 3, padding=1),
      nn.GroupNorm(groups, out),
      nn.SiLU(),
      nn.Dropout(0.0),
      nn.Conv2d(out, out, 3, padding=1),
    )
    if width != out:
      self.shortcut = nn.Conv2d(width, out, 1)

  def forward(self, x):
    h = self.block(x)
    return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class HFAiLabAttention(nn.Module):
  def __init__(self, width, groups):
    super().__init__()
    self.norm = nn.GroupNorm(groups, width)
    self.attn = nn.MultiheadAttention(width, 1, batch_first=True)

  def forward(self, x):
    h = self.norm(x).flatten(2).transpose(1, 2)
    h = self.attn(h, h, h, need_weights=False)[0]
    return x + h.transpose(1, 2).reshape(x.shape)


class HFAiLabHalf(nn.Module):
  def __init__(self, config, down):
    super().__init__()
    z, groups, channels = config.latent_channels, config.groups, config.channels
    low, last = channels[-1], len(channels) - 1
    if not down:
      self.quant_conv_in = nn.Conv2d(z, z, 1)
    self.conv_in = nn.Conv2d(
      config.in_channels if down else z, channels[0] if down else low, 3, 1, 1
    )
    layers, width = [], channels[0] if down else low
    levels = list(zip(channels, config.attention, strict=True))
    for level, (out, attends) in enumerate(levels if down else levels[::-1]):
      for _ in range(config.layers_per_block + (not down)):
        layers.append(HFAiLabResnet(width, out, groups))
        layers += [HFAiLabAttention(out, groups)] * attends
        width = out
      if level < last:
        layers.append(Resample(out, down))
    setattr(self, "down" if down else "up", nn.Sequential(*layers))
    self.mid = nn.Sequential(
      HFAiLabResnet(low, low, groups),
      HFAiLabAttention(low, groups),
      HFAiLabResnet(low, low, groups),
    )
    self.final = nn.Sequential(
      nn.GroupNorm(groups, width),
      nn.SiLU(),
      nn.Conv2d(width, z if down else config.out_channels, 3, padding=1),
    )
    if down:
      self.final.append(nn.Conv2d(z, z, 1))

  def forward(self, x):
    if hasattr(self, "down"):
      return self.final(self.mid(self.down(self.conv_in(x))))
    return self.final(self.up(self.mid(self.conv_in(self.quant_conv_in(x)))))


class HFAiLab(nn.Module):
  def __init__(self, config):
    super().__init__()
    self.encoder = HFAiLabHalf(config, True)
    self.decoder = HFAiLabHalf(config, False)
    self.quantizer = nn.Module()
    self.quantizer.embedding = nn.Embedding(
      config.codebook_size, config.latent_channels
    )

  def encode(self, x):
    return self.encoder(x)

  def decode(self, zq):
    return self.decoder(zq)

  def table(self):
    return self.quantizer.embedding.weight


def random(module):
  """The module with weights that hide nothing, and outputs of about one."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, weight in module.named_parameters():
      if weight.ndim > 1 and "embedding" not in name:
        weight.normal_(std=weight[0].numel() ** -0.5)
      elif weight.ndim == 1 and name.endswith("weight"):
        weight.normal_(1, 0.1)
      else:
        weight.normal_(std=0.1)
  return module.eval()
