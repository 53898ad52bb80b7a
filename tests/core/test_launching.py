# SPDX-License-Identifier: Apache-2.0
import importlib.util
import shlex

import jax
import jax.numpy as jnp
import pytest

from cc_jax.core import hardware, launching


@pytest.mark.parametrize(
  ("name", "slices", "hosts", "devices"),
  [
    ("v4-8", 1, 1, 4),
    ("v4-128", 1, 16, 64),
    ("v4-512", 2, 128, 512),
    ("v5p-128", 1, 16, 64),
    ("v5e-8", 1, 1, 8),
    ("v6e-64", 3, 48, 192),
  ],
)
def test_hosts_and_devices_are_those_of_the_slice(name, slices, hosts, devices):
  found = launching.environment(name, slices)
  assert found["CC_JAX_HOSTS"] == str(hosts)
  assert found["CC_JAX_DEVICES"] == str(devices)


def test_every_kind_of_slice_has_its_flags():
  kinds = {kind.hardware.name for kind in hardware.SLICES.values()}
  assert kinds == set(launching.LIBTPU)
  assert set(launching.MEGACORE) <= kinds
  for flags in launching.LIBTPU.values():
    assert all(flag.startswith("xla_") and "=" in flag for flag in flags)


def test_the_lines_are_for_a_shell(capsys):
  assert launching.main(["v5p-8", "2"]) == 0
  out = capsys.readouterr().out
  words = [shlex.split(line) for line in out.splitlines()]
  assert all(len(line) == 2 and line[0] == "export" for line in words)
  found = dict(line[1].split("=", 1) for line in words)
  assert found == launching.environment("v5p-8", 2)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "expected TYPE [SLICES]"),
    (["v4-8", "two"], "expected TYPE [SLICES]"),
    (["v4-9"], "unknown TPU type 'v4-9'"),
    (["v4-8", "0"], "slices=0"),
  ],
)
def test_a_wrong_command_is_one_line(words, message, capsys):
  assert launching.main(words) == 2
  err = capsys.readouterr().err
  assert message in err
  assert err.count("\n") == 1


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no libtpu"
)
@pytest.mark.parametrize("name", ["v4-8", "v5p-8", "v5e-4", "v6e-4"])
def test_libtpu_knows_the_flags(name):
  target = hardware.slice_of(name)
  device = hardware.aot_devices(target)[0]
  layout = jax.sharding.SingleDeviceSharding(device)
  shape = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=layout)
  lowered = jax.jit(lambda x: x + 1).lower(shape)
  flags = launching.LIBTPU[target.hardware.name]
  options = dict(flag.split("=") for flag in flags)
  lowered.compile(compiler_options=options)
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such"):
    lowered.compile(compiler_options={"xla_tpu_no_such_flag": "true"})
