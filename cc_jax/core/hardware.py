# SPDX-License-Identifier: Apache-2.0
"""What accelerators can do and cost, and which TPU slices there are.

Figures are the makers', for one chip; None is "not known here", and nothing is
computed from it. TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x};
GPU: NVIDIA's data sheets, without sparsity.
"""

from collections.abc import Sequence
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

GIB = 2**30


class Hardware(NamedTuple):
  """One chip.

  Attributes:
    name: as in the names of slices, "v4".
    flops: peak bfloat16 multiply-adds counted as two, per second, dense.
    hbm: bytes of memory; programs get up to a GiB less.
    bandwidth: of that memory, bytes per second.
    interconnect: to other chips, all links, both directions, bytes per second.
    price: US dollars an hour on demand.
    clock: of the matrix units, Hz.
    devices: `jax.Device`s that a chip shows as.
    usable: bytes of memory that programs get, as libtpu 0.0.42.1 says when it
      refuses one.
    links: to other chips.
    watts: measured mean power.
    cores: that are one device, and take half of a kernel's grid each if two.
  """

  name: str
  flops: float | None = None
  hbm: int | None = None
  bandwidth: float | None = None
  interconnect: float | None = None
  price: float | None = None
  clock: float | None = None
  devices: int = 1
  usable: float | None = None
  links: int = 0
  watts: float | None = None
  cores: int = 1


# TPU prices: cloud.google.com/tpu/pricing, United States, as of 2025. A100:
# what MosaicML's README of mosaicml/diffusion reckons with (2023). Clocks are
# peak / (2 * multipliers). v4's links: 1.1 PB/s of all-reduce over 4,096 chips.
V4 = Hardware(
  "v4",
  275e12,
  32 * GIB,
  1.2e12,
  540e9,
  price=3.22,
  clock=1.05e9,
  usable=30.75 * GIB,
  links=6,
  watts=170.0,
  cores=2,
)
V5E = Hardware(
  "v5e",
  197e12,
  16 * GIB,
  819e9,
  400e9,
  price=1.20,
  clock=1.5e9,
  usable=15.75 * GIB,
  links=4,
)
V5P = Hardware(
  "v5p",
  459e12,
  95 * GIB,
  2.765e12,
  1.2e12,
  price=4.20,
  clock=1.75e9,
  usable=95.74 * GIB,
  links=6,
  cores=2,
)
V6E = Hardware(
  "v6e",
  918e12,
  32 * GIB,
  1.638e12,
  800e9,
  price=2.70,
  clock=1.75e9,
  usable=31.25 * GIB,
  links=4,
)
V7X = Hardware("v7x", 2307e12, 192 * GIB, 7.38e12, 1.2e12, devices=2)
A100_40 = Hardware("A100-40GB", 312e12, 40 * GIB, 1.555e12, 600e9, price=2.0)
A100_80 = Hardware("A100-80GB", 312e12, 80 * GIB, 2.039e12, 600e9, price=2.0)
H100 = Hardware("H100", 989e12, 80 * GIB, 3.35e12, 900e9)
H100_PCIE = Hardware("H100-PCIe", 756e12, 80 * GIB, 2.0e12, 600e9)
H200 = Hardware("H200", 989e12, 141 * GIB, 4.8e12, 900e9)
B200 = Hardware("B200", 2250e12, 180 * GIB, 8.0e12, 1.8e12)
L4 = Hardware("L4", 121e12, 24 * GIB, 300e9)
CPU = Hardware("CPU")

# What `jax.Device.device_kind` says.
KINDS = {
  "TPU v4": V4,
  "TPU v5 lite": V5E,
  "TPU v5e": V5E,
  "TPU v5": V5P,
  "TPU v5p": V5P,
  "TPU v6 lite": V6E,
  "TPU v6e": V6E,
  "TPU7x": V7X,
  "NVIDIA A100-SXM4-40GB": A100_40,
  "NVIDIA A100-PCIE-40GB": A100_40,
  "NVIDIA A100-SXM4-80GB": A100_80,
  "NVIDIA A100 80GB PCIe": A100_80,
  "NVIDIA H100 80GB HBM3": H100,
  "NVIDIA H100 PCIe": H100_PCIE,
  "NVIDIA H200": H200,
  "NVIDIA B200": B200,
  "NVIDIA L4": L4,
  "cpu": CPU,
}


def lookup(device_kind: str) -> Hardware:
  """The chip behind a `jax.Device.device_kind`.

  Raises:
    ValueError: a kind that is not in the table.
  """
  if device_kind not in KINDS:
    raise ValueError(
      f"unknown device kind {device_kind!r}; core/hardware.py has"
      f" {', '.join(KINDS)}"
    )
  return KINDS[device_kind]


def mfu(
  flops: float | int, seconds: float | int, devices: Sequence[Any] | None = None
) -> float | None:
  """Model FLOPs utilisation: what part of the peak a step made use of.

  Args:
    flops: of one step over all devices, forward and backward.
    seconds: of one step.
    devices: those that took the step, on all hosts; None for `jax.devices()`.

  Returns:
    A fraction, or None on a device whose peak is not in the table.
  """
  devices = jax.devices() if devices is None else devices
  chips = [KINDS.get(device.device_kind, CPU) for device in devices]
  peaks = [chip.flops / chip.devices for chip in chips if chip.flops]
  if len(peaks) < len(chips) or not peaks:
    return None
  return flops / seconds / sum(peaks)


def cost(
  seconds: float | int, devices: Sequence[Any] | None = None
) -> float | None:
  """US dollars for devices over a time, on demand; None without a price."""
  devices = jax.devices() if devices is None else devices
  chips = [KINDS.get(device.device_kind, CPU) for device in devices]
  prices = [chip.price / chip.devices for chip in chips if chip.price]
  return sum(prices) * seconds / 3600 if len(prices) == len(chips) else None


class Slice(NamedTuple):
  """A TPU slice as it can be ordered.

  Attributes:
    name: "v4-128".
    hardware: one of its chips.
    chips: how many.
    topology: "4x4x4".
    hosts: how many.
    aot: name and keywords for `jax.experimental.topologies`.
  """

  name: str
  hardware: Hardware
  chips: int
  topology: str
  hosts: int
  aot: tuple[str, dict[str, Any]]


# Slices of each kind, from the product pages. v4 and v5p are cut from cubes
# of 4x4x4 chips; with whole cubes every axis closes into a ring.
CUBES = (
  "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x4x12 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16"
)
SQUARES = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"


class _Kind(NamedTuple):
  hardware: Hardware
  cores: int  # Of a chip, when the number in the name counts cores.
  aot: str
  config: str
  topologies: str


SLICES = {
  "v4": _Kind(V4, 2, "v4", "megacore", CUBES),
  "v5e": _Kind(V5E, 1, "v5e", "default", SQUARES),
  "v5litepod": _Kind(V5E, 1, "v5e", "default", SQUARES),
  "v5p": _Kind(V5P, 2, "v5", "megacore", CUBES),
  "v6e": _Kind(V6E, 1, "v6e", "default", SQUARES),
}


def slice_of(name: str) -> Slice:
  """The slice of this name: "v4-128" has 64 chips, "v5e-128" has 128.

  In the names of v4 and v5p the number counts cores, two to a chip; in those
  of v5e and v6e it counts chips.

  Raises:
    ValueError: no such slice.
  """
  family, _, number = name.partition("-")
  if family not in SLICES:
    raise ValueError(
      f"unknown TPU type {name!r}; expected KIND-NUMBER, KIND one of"
      f" {', '.join(SLICES)}"
    )
  kind = SLICES[family]
  sizes = {
    str(kind.cores * math.prod(map(int, text.split("x")))): text
    for text in kind.topologies.split()
  }
  if number not in sizes:
    names = ", ".join(f"{family}-{size}" for size in sizes)
    raise ValueError(f"unknown TPU type {name!r}; there are {names}")

  topology = sizes[number]
  shape = tuple(map(int, topology.split("x")))
  chips = math.prod(shape)
  host = _host(shape)
  rings = (
    [all(side % 4 == 0 for side in shape)] * 3
    if len(shape) == 3
    else [side == 16 for side in shape] + [False]
  )
  keywords = {
    "chip_config_name": kind.config,
    "chips_per_host_bounds": host,
    "wrap": tuple(rings),
  }
  hosts = chips // math.prod(host)
  return Slice(
    name,
    kind.hardware,
    chips,
    topology,
    hosts,
    (f"{kind.aot}:{topology}", keywords),
  )


class Target(NamedTuple):
  """Slices of one type that work on one program.

  Attributes:
    slice: one of them.
    count: how many, joined by the data centre's network.
  """

  slice: Slice
  count: int = 1

  @property
  def name(self) -> str:
    """ "v4-128", or "2xv4-128"."""
    several = f"{self.count}x" if self.count > 1 else ""
    return f"{several}{self.slice.name}"

  @property
  def chips(self) -> int:
    """Of all of them."""
    return self.count * self.slice.chips


def target(name: str) -> Target:
  """What a name such as "v4-128" or "2xv4-128" asks for.

  Raises:
    ValueError: no such slice, or no number of them.
  """
  found = re.fullmatch(r"(?:(\d+)x)?(v\d.*)", name)
  if not found or found[1] == "0":
    raise ValueError(
      f"unknown slice {name!r}; expected a TPU type such as v4-128, or "
      "several of one, 2xv4-128"
    )
  return Target(slice_of(found[2]), int(found[1] or 1))


def links(chip: Slice) -> int:
  """Links of a chip that a slice's shape makes use of.

  Two along an axis that is a ring, one (at its end) along one that is not.
  """
  shape = [int(side) for side in chip.topology.split("x")]
  rings = chip.aot[1]["wrap"]
  return sum(
    0 if side == 1 else 2 if ring and side > 2 else 1
    for side, ring in zip(shape, rings, strict=False)
  )


def _host(shape):
  """The block of chips on one host: 2x2, or a whole slice of up to eight."""
  if len(shape) == 2 and math.prod(shape) <= 8:
    return (*shape, 1)
  return (2, 2, 1)


def aot_devices(target: Slice, slices: int = 1) -> list[Any]:
  """Devices to compile for, of slices that need not be there.

  Meant for a machine without a TPU, with JAX_PLATFORMS=cpu.

  Args:
    target: from `slice_of`.
    slices: how many of them, joined by the data centre's network.

  Raises:
    ValueError: libtpu, the compiler, is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"compiling for {target.name} needs libtpu, which is not installed;"
      " run `pip install 'cc_jax[tpu]'`"
    )
  # libtpu would ask the machine which TPU it has, and lock it.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # Or it complains that the machine does not say.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", target.name)
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  from jax.experimental import topologies

  name, keywords = target.aot
  found = topologies.get_topology_desc(
    name, platform="tpu", num_slices=slices, **keywords
  )
  return list(found.devices)
