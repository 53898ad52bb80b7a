# SPDX-License-Identifier: Apache-2.0
"""Chips by the names JAX gives them, slices by the names Google gives them."""

import importlib.util
import math
from typing import NamedTuple

import jax
import pytest

from cc_jax.core import hardware


class Device(NamedTuple):
  device_kind: str


def test_chips_are_found_by_their_device_kind():
  assert hardware.lookup("TPU v4").flops == 275e12
  assert hardware.lookup("TPU v5 lite").name == "v5e"
  assert hardware.lookup("TPU v5").name == "v5p"
  assert hardware.lookup("TPU v6 lite").name == "v6e"
  assert hardware.lookup("NVIDIA H200").flops == 989e12
  assert hardware.lookup(jax.devices()[0].device_kind).name == "CPU"
  with pytest.raises(
    ValueError, match=r"'TPU v9'; core/hardware.py has TPU v4"
  ):
    hardware.lookup("TPU v9")


def test_figures_are_in_plain_units():
  for chip in hardware.KINDS.values():
    if chip is hardware.CPU:
      continue
    # Operations for each byte read: of one order on all chips.
    assert 150 < chip.flops / chip.bandwidth < 600
    assert 10e9 < chip.hbm < 250e9


def test_utilisation_is_that_of_all_devices():
  v4 = [Device("TPU v4")] * 4
  # Google's v5p-16 run in MLPerf 4.1: 2.413 TFLOP an image, 86.4 a chip.
  v5p = [Device("TPU v5")] * 8
  assert hardware.mfu(4 * 275e12, 2.0, v4) == 0.5
  assert hardware.mfu(2.413e12 * 691, 1.0, v5p) == pytest.approx(
    0.454, abs=1e-3
  )
  # Two devices of TPU7x are one chip.
  assert hardware.mfu(2307e12, 1.0, [Device("TPU7x")] * 2) == 1.0
  assert hardware.mfu(1e12, 1.0) is None
  assert hardware.mfu(1e12, 1.0, [*v4, Device("NVIDIA T4")]) is None


def test_cost_is_by_the_chip_hour():
  assert hardware.cost(1800, [Device("TPU v4")] * 4) == pytest.approx(6.44)
  assert hardware.cost(1800, [Device("NVIDIA H200")]) is None
  assert hardware.cost(1800) is None


@pytest.mark.parametrize(
  ("name", "chips", "topology", "hosts"),
  [
    ("v4-8", 4, "2x2x1", 1),
    ("v4-128", 64, "4x4x4", 16),
    ("v4-256", 128, "4x4x8", 32),
    ("v4-512", 256, "4x8x8", 64),
    ("v4-2048", 1024, "8x8x16", 256),
    ("v5p-16", 8, "2x2x2", 2),
    ("v5e-8", 8, "2x4", 1),
    ("v5e-16", 16, "4x4", 4),
    ("v5litepod-256", 256, "16x16", 64),
    ("v6e-1", 1, "1x1", 1),
    ("v6e-256", 256, "16x16", 64),
  ],
)
def test_a_name_counts_cores_on_v4_and_v5p_and_chips_on_v5e_and_v6e(
  name, chips, topology, hosts
):
  target = hardware.slice_of(name)
  assert (target.chips, target.topology, target.hosts) == (
    chips,
    topology,
    hosts,
  )


def test_topologies_to_compile_for_are_what_libtpu_wants():
  name, keywords = hardware.slice_of("v4-128").aot
  assert name == "v4:4x4x4"
  assert keywords == {
    "chip_config_name": "megacore",
    "chips_per_host_bounds": (2, 2, 1),
    "wrap": (True, True, True),
  }
  assert hardware.slice_of("v4-64").aot[1]["wrap"] == (False,) * 3
  assert hardware.slice_of("v6e-128").aot[1]["wrap"] == (False, True, False)
  assert hardware.slice_of("v6e-128").aot[1]["chip_config_name"] == "default"


def test_every_slice_is_a_whole_number_of_hosts():
  for family, kind in hardware.SLICES.items():
    for topology in kind.topologies.split():
      chips = math.prod(map(int, topology.split("x")))
      target = hardware.slice_of(f"{family}-{chips * kind.cores}")
      per_host = math.prod(target.aot[1]["chips_per_host_bounds"])
      assert target.hosts * per_host == target.chips == chips


def test_unknown_slices_name_the_known():
  with pytest.raises(ValueError, match=r"'v9-8'; .* v4, v5e"):
    hardware.slice_of("v9-8")
  with pytest.raises(ValueError, match=r"'v4-4'; there are v4-8, v4-16"):
    hardware.slice_of("v4-4")


def test_compiling_without_libtpu_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"v4-8 needs libtpu.*cc_jax\[tpu\]"):
    hardware.aot_devices(hardware.slice_of("v4-8"))


def test_a_target_is_a_slice_or_several():
  assert hardware.target("v4-128").chips == 64
  two = hardware.target("2xv5e-16")
  assert (two.name, two.count, two.chips) == ("2xv5e-16", 2, 32)
  for wrong in ("0xv4-8", "H100", "x", "2x"):
    with pytest.raises(ValueError, match="unknown slice"):
      hardware.target(wrong)
  with pytest.raises(ValueError, match=r"'v4-9'; there are v4-8"):
    hardware.target("2xv4-9")


@pytest.mark.parametrize(
  ("name", "links"),
  [("v4-8", 2), ("v4-64", 3), ("v4-128", 6), ("v5e-16", 2), ("v5e-256", 4)],
)
def test_a_chip_uses_the_links_that_its_slices_shape_closes(name, links):
  assert hardware.links(hardware.slice_of(name)) == links


def test_what_a_plan_needs_is_known_of_all_slices():
  for kind in hardware.SLICES.values():
    chip = kind.hardware
    assert chip.usable < chip.hbm + hardware.GIB
    assert min(chip.clock, chip.interconnect, chip.links, chip.price) > 0
    # Multipliers that a cycle keeps busy: 32,768 or more, two operations each.
    assert 2**16 <= chip.flops / chip.clock <= 2**20
