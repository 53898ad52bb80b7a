# SPDX-License-Identifier: Apache-2.0
"""Costs of hand-written programs, whose sums a reader can check."""

import pytest

from cc_jax.core import flops, hardware, hlo, hlo_cost

HEAD = """\
FunctionNames
1 "step"
2 "GroupNorm.__call__"
3 "tree_norm"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=7 end_line=7 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}

"""


def estimate(name, cycles, scope="", frame=1, calls="none", result="f32[8]"):
  """A fusion with an estimate."""
  return (
    f"  %{name} = {result}{{0:T(128)}} fusion(%p), kind=kLoop, calls=%{calls}, "
    f'metadata={{op_name="{scope}" stack_frame_id={frame}}}, backend_config='
    f'{{"window_config":{{"estimated_cycles":"{cycles}"}}}}\n'
  )


def fused(name, inner):
  return f"%{name} (q: f32[8]) -> f32[8] {{\n{inner}}}\n\n"


def program(*lines, before=""):
  body = "".join(lines)
  return (
    f"{HEAD}{before}ENTRY %main (p: f32[8]) -> f32[8] {{\n"
    f"  %p = f32[8]{{0:T(128)}} parameter(0)\n{body}}}\n"
  )


def product(operation, scope):
  return (
    f"  %q = f32[8]{{0}} parameter(0)\n  %c = f32[8]{{0}} {operation}(%q, %q), "
    f'window={{size=1}}, metadata={{op_name="{scope}"}}\n'
    '  ROOT %r = f32[8]{0} add(%c, %q), metadata={op_name="jit(f)/add"}\n'
  )


def test_cycles_are_of_the_product_that_is_fused_or_else_of_the_place():
  before = (
    fused("a", product("convolution", "jit(f)/up/conv_general_dilated"))
    + fused("b", product("convolution", "jit(f)/up/mlp/dot_general"))
    + fused("c", product("dot", "jit(f)/up/attn1/attention_op/dot_general"))
    + fused("none", "  ROOT %q = f32[8]{0} parameter(0)\n")
  )
  text = program(
    estimate("one", 1, "jit(f)/jvp(up)/add", calls="a"),
    estimate("two", 20, "jit(f)/jvp(up)/add", calls="b"),
    estimate("three", 300, "jit(f)/jvp(up)/add", calls="c"),
    estimate("four", 4000, "jit(f)/transpose(jvp(up))/mul", frame=2),
    estimate("five", 50_000, "jit(f)/optimizer/mul"),
    estimate("six", 600_000, "jit(f)/reduce_sum", frame=3),
    estimate("seven", 7_000_000, "jit(f)/jvp(text)/clip_text/add"),
    estimate("unknown", 2**63 - 1, "jit(f)/add"),
    before=before,
  )
  found = hlo_cost.cost(text)
  assert found.cycles == {
    "conv": 1,
    "matmul": 20,
    "attention": 300,
    "norm": 4000,
    "optimizer": 650_000,
    "rest": 7_000_000,
  }
  # Forward and backward are one scope, and an operation is none.
  assert found.scopes == {
    "up": 4321,
    "optimizer": 50_000,
    "": 600_000,
    "text": 7_000_000,
  }


def test_the_slowest_operations_come_first_alike_ones_as_one():
  text = program(
    estimate("a", 30, "jit(f)/jvp(up)/mul"),
    estimate("b", 25, "jit(f)/jvp(mid)/mul", result="bf16[2,4]"),
    estimate("c", 30, "jit(f)/jvp(up)/mul"),
  )
  first, second = hlo_cost.cost(text).slowest
  assert first == ("jvp(up)/mul f32[8]", "rest", 60, 2)
  assert second == ("jvp(mid)/mul bf16[2,4]", "rest", 25, 1)


def collective(name, code, result, rest):
  return f"  %{name} = {result} {code}(%p), channel_id=1, {rest}\n"


def test_collectives_are_found_in_all_their_spellings():
  mesh = "replica_groups=mesh['a'=2,'b'=1,'c'=32], device_ids=([32,2]T(1,0))"
  text = program(
    collective("a", "all-reduce", "(f32[4], bf16[2])", mesh + " {'c'}, x=1"),
    collective(
      "b", "all-gather", "f32[8]", "replica_groups={{0,1,2},{3,4,5}}, x=1"
    ),
    collective("c", "reduce-scatter", "f32[8]", "replica_groups=[2,4]<=[8]"),
    collective(
      "d", "all-reduce-start", "f32[8]", "replica_groups={{0,1}}, x=1"
    ),
    collective("e", "all-reduce-done", "f32[8]", "x=1"),
    collective(
      "f", "send", "(f32[8], u32[], token[])", "is_host_transfer=true"
    ),
    collective("g", "send", "(f32[8], u32[], token[])", "x=1"),
  )
  found = hlo_cost.cost(text, devices=64).collectives
  assert found == [
    ("all-reduce", 20, 32, 1, False),
    ("all-gather", 32, 3, 1, False),
    ("reduce-scatter", 128, 4, 1, False),
    ("all-reduce", 32, 2, 1, True),
    ("send", 32, 64, 1, False),
  ]
  traffic = [one.traffic() for one in found]
  assert traffic == [2 * 20 * 31 / 32, 32 * 2 / 3, 128 * 3 / 4, 32, 32]
  rows = hlo_cost.summary(hlo_cost.cost(text, devices=64))
  assert sum(row["count"] for row in rows) == 5
  assert rows[0] == {
    "kind": "reduce-scatter",
    "devices": 4,
    "hidden": False,
    "count": 1,
    "bytes": 128,
  }


def test_a_sum_that_is_split_is_told_from_a_whole_one():
  group = "replica_groups={{0,1,2,3}}, x=1"
  inner = collective("a", "all-reduce", "f32[32]", group)
  text = program(
    "  %f = f32[8] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1\n",
    before=fused("all-reduce-scatter.1", inner),
  )
  found = hlo_cost.cost(text, devices=4).collectives
  assert found == [("reduce-scatter", 128, 4, 1, False)]


def test_a_gather_within_products_is_counted_once_and_they_as_products():
  group = "replica_groups={{0,1,2,3}}, x=1"
  gather = collective("a", "all-gather", "f32[32]", group)
  text = program(
    "  %async-collective-start = f32[8] fusion(%p), calls=%started\n",
    estimate("f", 7, calls="async_collective_fusion.1"),
    "  %async-collective-done.2 = f32[8] fusion(%p), calls=%started\n",
    before=fused("started", gather)
    + fused("async_collective_fusion.1", gather + product("dot", "jit(f)/mul")),
  )
  found = hlo_cost.cost(text, devices=4)
  assert found.collectives == [("all-gather", 128, 4, 1, True)]
  assert found.cycles["matmul"] == 7


def test_kernels_are_reckoned_from_operations_and_bytes():
  text = program(
    "  %k = (f32[8]{0:T(128)}, bf16[2,16]{1,0}) custom-call(%p), "
    'custom_call_target="tpu_custom_call", metadata={op_name='
    '"jit(f)/attention_op/splash/splash_fwd/pallas_call"}\n'
  )
  key = flops.Kernel("splash_fwd", ((8,), (8,), (2, 16)))
  known = {key: flops.Work(1000, steps=6)}
  (one,) = hlo_cost.cost(text, kernels=known).kernels
  assert one == ("splash_fwd", 1000, 32 + 32 + 64, 1, 0)
  # At half of peak, or the full bandwidth, whichever takes longer.
  chip = hardware.Hardware("chip", flops=100, bandwidth=1e9, clock=3, cores=2)
  assert one.seconds(chip) == 1000 / 50
  assert one.seconds(chip._replace(flops=1e9, bandwidth=64)) == 2
  # A schedule says better; each step of the grid has all of it.
  known = {key: flops.Work(1000, steps=6, bundles=70)}
  (one,) = hlo_cost.cost(text, kernels=known).kernels
  assert one.bundles == 6 * 70
  assert one.seconds(chip) == 420 / 2 / 3
  # One with the same results of other arguments is another.
  key = key._replace(shapes=((32,), *key.shapes[1:]))
  (other,) = hlo_cost.cost(text, kernels={key: known.popitem()[1]}).kernels
  assert other.flops == other.bundles == 0


def test_what_has_no_name_is_told_by_what_is_fused_in_it():
  inner = product("convolution", "jit(f)/up/conv_general_dilated")
  text = program(estimate("a", 5, calls="x"), before=fused("x", inner))
  assert hlo_cost.cost(text).cycles["conv"] == 5


def test_a_constant_says_nothing_about_what_it_is_fused_into():
  inner = (
    "  %q = f32[8]{0} parameter(0)\n  %zero = f32[] constant(0), "
    'metadata={op_name="jit(f)/optimizer/mul"}\n'
    "  ROOT %r = f32[] reduce(%q, %zero), dimensions={0}, "
    'metadata={op_name="jit(f)/jvp(up)/norm1/reduce_sum"}\n'
  )
  text = program(
    estimate("a", 5, "jit(f)/jvp(up)/reduce_sum", calls="x"),
    before=fused("x", inner),
  )
  cycles = hlo_cost.cost(text).cycles
  assert (cycles["norm"], cycles["optimizer"]) == (5, 0)


@pytest.mark.parametrize(
  ("scope", "expected"),
  [
    ("jit(update)/transpose(jvp(up_1))/resnet/mul", "up_1"),
    ("jit(update)/jvp()/gather", ""),
    ("jit(f)/jvp(jit(silu))/mul", "silu"),
    ("", ""),
  ],
)
def test_the_outermost_scope_is_without_what_jax_did_to_it(scope, expected):
  assert hlo_cost.outermost(scope) == expected


def test_a_loop_counts_as_often_as_it_is_said_to_where_nothing_else_says_it():
  state = "(s32[], f32[8])"
  before = (
    f"%cond (s: {state}) -> pred[] {{\n  %s = {state} parameter(0)\n"
    "  ROOT %d = pred[] custom-call(%s)\n}\n\n"
    f"%body (t: {state}) -> {state} {{\n"
    + estimate("w", 10, "jit(f)/while/body/mul")
    + "}\n\n"
  )
  text = program(
    f"  %l = {state} while(%p), condition=%cond, body=%body\n", before=before
  )
  found = hlo_cost.cost(text, trips=29)
  assert (found.unknown, found.cycles["rest"]) == (1, 290)
  assert hlo.parse(text).entry == "main"
