# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import pytest

from cc_jax.core import estimate, hardware, hlo_cost, sharding

GIB = 2**30


def cost(cycles=0, collectives=(), kernels=()):
  made = dict.fromkeys(hlo_cost.KINDS, 0) | {"matmul": cycles}
  return hlo_cost.Cost(made, {}, [], list(collectives), list(kernels), 0)


def test_a_second_is_as_many_cycles_as_the_clock_has():
  target = hardware.target("v4-8")
  assert estimate.seconds(cost(1_050_000_000), target)["compute"] == 1


def test_collectives_take_the_links_that_the_shape_has():
  size = 10**9
  one = hlo_cost.Collective("all-reduce", size, 4, 3, False)
  # A square of four: two of six links of 45 GB/s each way.
  small = estimate.seconds(cost(collectives=[one]), hardware.target("v4-8"))
  assert small["collectives"] == pytest.approx(3 * 2 * 0.75 * 1e9 / 90e9)
  # A torus: all six.
  large = estimate.seconds(cost(collectives=[one]), hardware.target("v4-128"))
  assert large["collectives"] == pytest.approx(small["collectives"] / 3)
  hidden = [one._replace(hidden=True)]
  found = estimate.seconds(cost(collectives=hidden), hardware.target("v4-8"))
  assert sum(found.values()) == 0


def test_slices_talk_over_the_network_of_the_data_centre():
  one = hlo_cost.Collective("send", 6_250_000_000, 8, 2, False)
  found = estimate.seconds(cost(collectives=[one]), hardware.target("2xv4-8"))
  assert found["network"] == 2
  assert found["collectives"] == 0


def test_kernels_take_their_bundles_or_half_of_peak_or_all_of_the_memory():
  kernels = [
    hlo_cost.Kernel("unknown", int(275e12), 0, 2),
    hlo_cost.Kernel("copy", 0, int(1.2e12), 3),
    # Two cores share them.
    hlo_cost.Kernel("attention", int(275e12), 0, 1, int(2 * 1.05e9)),
  ]
  found = estimate.seconds(cost(kernels=kernels), hardware.target("v4-8"))
  assert found["kernels"] == pytest.approx(2 * 2 + 3 + 1)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 41.20G "
      "of 30.75G hbm. Exceeded hbm capacity by 10.45G.",
      (41.2, 30.75),
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (1.50T) exceeds available HBM (15.75G).",
      (1536, 15.75),
    ),
  ],
)
def test_the_compilers_refusal_is_two_numbers(text, expected):
  found = estimate.refusal(text)
  assert found.needed / GIB == pytest.approx(expected[0])
  assert found.usable / GIB == expected[1]


def test_other_errors_are_no_refusals():
  assert estimate.refusal("INTERNAL: Used 41G of 30G hbm") is None
  assert estimate.refusal("RESOURCE_EXHAUSTED: quota") is None

  class Broken:
    def compile(self, compiler_options):
      raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    estimate.compile(Broken(), "v4")


def test_a_plan_is_compiled_with_the_flags_of_the_hosts():
  given = []

  class Lowered:
    def compile(self, compiler_options):
      given.append(compiler_options)

  for chip in ("v4", "another"):
    estimate.compile(Lowered(), chip)
  assert given == [{"xla_enable_async_all_gather": "true"}, {}]


def test_bytes_of_a_program_are_those_of_its_parts_and_the_rest():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  weights = {"kernel": jax.ShapeDtypeStruct((1024, 64), jnp.float32)}
  weights = sharding.with_layouts(weights, mesh)
  rows = jax.ShapeDtypeStruct(
    (16, 1024), jnp.bfloat16, sharding=sharding.batch_layout(mesh)
  )
  f = jax.jit(lambda w, x: jnp.tanh(x.astype(jnp.float32) @ w["kernel"]))
  parts = {"weights": weights, "batch": rows}
  compiled = f.lower(weights, rows).compile()
  found = estimate.memory(compiled, parts)
  assert found["weights"] == 1024 * 64 * 4 / 4
  assert found["batch"] == 16 * 1024 * 2 / 8
  analysis = compiled.memory_analysis()
  arguments = found["weights"] + found["batch"] + found["padding"]
  assert arguments == analysis.argument_size_in_bytes
  assert found["temporary"] == analysis.temp_size_in_bytes


def test_energy_is_of_chips_and_of_what_cools_them():
  found = estimate.energy(1000, 170, 1.1, 0.37)
  assert found["kwh"] == pytest.approx(187)
  assert found["kg_co2"] == pytest.approx(187 * 0.37)
  assert estimate.energy(1000, None, 1.1, 0.37) == {}


@pytest.mark.parametrize("each", [0.7, 3.1, 40.0])
@pytest.mark.parametrize("first", [1, 8, 1000])
def test_the_largest_that_fits_is_found_in_a_few_tries(each, first):
  # Not quite a line, as memory is not.
  takes = lambda n: 10 + each * n + 0.2 * each * (n % 3)
  best, tries = estimate.largest(takes, first, 500, 10)
  assert takes(best) <= 500
  slack = max(1, best // 16)
  assert any(takes(best + n) > 500 for n in range(1, slack + 2))
  assert len(tries) <= 9


def test_none_fits_where_one_does_not():
  assert estimate.largest(lambda n: 600.0 + n, 4, 500, 0)[0] == 0
