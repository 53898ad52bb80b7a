# SPDX-License-Identifier: Apache-2.0
"""libtpu is loaded in another process here; see core/schedules.py."""

import importlib.util

import jax
from jax.experimental import pallas
import jax.numpy as jnp
import pytest

from cc_jax.core import flops, hardware, schedules

V4 = hardware.slice_of("v4-8")


def test_bundles_of_a_kernel_are_told_from_those_of_other_operations(tmp_path):
  text = "Schedule analysis:\n\ttotal scheduled bundles:    {}\n\tempty: 1\n"
  write = lambda name, text: (tmp_path / name).write_text(text)
  of = lambda name: f"17-{name}-00-schedule-analysis_{schedules.LABEL}.txt"
  write(of("attention_forward.5"), text.format(1148))
  write(of("attention"), text.format(7))
  write(of("attention_backward"), "no schedule")
  write("17-attention_forward-hlo.txt", text.format(3))
  kept = tmp_path / "0.bin"
  kept.touch()
  take = lambda: schedules.take(str(tmp_path), "attention_forward")
  assert take() == 1148
  assert take() == 0
  assert list(tmp_path.iterdir()) == [kept]


def test_libtpu_is_told_where_to_write_beside_what_it_is_told(monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_given=true")
  told = schedules._environment("there")["LIBTPU_INIT_ARGS"]
  given, place, label = told.split()
  assert given == "--xla_given=true"
  assert place == "--xla_jf_dump_to=there"
  assert label.endswith(f"={schedules.LABEL}")


def doubled(rows, name):
  """A kernel that doubles [rows 128], 64 rows a step."""

  def body(x_ref, o_ref):
    o_ref[...] = 2 * x_ref[...]

  spec = pallas.BlockSpec((64, 128), lambda i: (i, 0))
  shape = jax.ShapeDtypeStruct((rows, 128), jnp.float32)
  run = pallas.pallas_call(
    body,
    grid=(rows // 64,),
    in_specs=[spec],
    out_specs=spec,
    out_shape=shape,
    name=name,
  )
  return jax.make_jaxpr(lambda x: run(x) + run(x))(shape).jaxpr


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no libtpu"
)
def test_each_kernel_has_the_bundles_of_one_step():
  (long,) = schedules.of(doubled(640, "double"), V4).items()
  kernel, work = long
  assert kernel == flops.Kernel("double", ((640, 128), (640, 128)))
  assert work.steps == 10
  # Eight registers are read and written, one a bundle.
  assert 8 <= work.bundles < 200
  (short,) = schedules.of(doubled(64, "double"), V4).values()
  assert short.bundles <= work.bundles


def test_what_libtpu_does_not_compile_has_no_schedule_and_is_named(
  monkeypatch, capsys
):
  monkeypatch.setattr(schedules.sys, "executable", "false")
  (work,) = schedules.of(doubled(64, "double"), V4).values()
  assert (work.steps, work.bundles) == (1, 0)
  assert "no schedule of double" in capsys.readouterr().out


def test_a_program_without_kernels_starts_no_process(monkeypatch):
  monkeypatch.setattr(schedules.sys, "executable", "not there")
  assert schedules.of(jax.make_jaxpr(jnp.sin)(1.0).jaxpr, V4) == {}
