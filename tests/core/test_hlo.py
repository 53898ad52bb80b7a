# SPDX-License-Identifier: Apache-2.0
"""Programs that a compiler here makes, and text of one for a TPU."""

import jax
import jax.numpy as jnp
import pytest

from cc_jax.core import hlo

TEXT = """\
HloModule jit_f, is_scheduled=true

FileNames
1 "layers.py"

FunctionNames
1 "main"
2 "GroupNorm.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %x = f32[4]{0:T(128)} get-tuple-element(%s), index=1
  ROOT %work = f32[4]{0:T(128)} fusion(%x), kind=kLoop, calls=%inner, \
metadata={op_name="jit(f)/up/while/body/mul" stack_frame_id=2}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
}

%condition (s.1: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(23)
  %s.1 = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main.1_spmd (p: f32[4]) -> f32[4] {
  %p = f32[4]{0:T(128)} parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %copy.1 = s32[]{:T(128)} copy(%three)
  %state = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%copy.1, /*index=1*/%p)
  %loop = (s32[]{:T(128)}, f32[4]{0:T(128)}) while(%state), \
condition=%condition, body=%body
  %kernel = f32[4]{0:T(128)} custom-call(%p), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/attention_op/splash/pallas_call" stack_frame_id=1}
  ROOT %end = f32[4]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


def test_a_program_is_its_operations_with_scopes_frames_and_estimates():
  program = hlo.parse(TEXT)
  assert program.entry == "main.1_spmd"
  (work,) = [one for one in program.computations["body"] if one.root]
  assert (work.code, work.cycles, work.operands) == ("fusion", 100, ("x",))
  assert work.scope == "jit(f)/up/while/body/mul"
  assert work.calls() == ("inner",)
  assert program.frames[work.frame] == ("GroupNorm.__call__", "main")
  # What braces of a kernel's metadata break over lines is one operation.
  (kernel,) = [r for r in hlo.runs(program) if r.operation.name == "kernel"]
  assert kernel.operation.scope.endswith("splash/pallas_call")


def test_a_loop_counts_from_its_start_to_its_condition():
  (work,) = [
    run for run in hlo.runs(hlo.parse(TEXT)) if run.operation.name == "work"
  ]
  assert work.times == 23 - 3


def test_a_loop_may_say_how_often_it_runs_or_not_at_all():
  known = TEXT.replace(
    "body=%body",
    'body=%body, backend_config={"known_trip_count":{"n":"5"}}',
  )
  endless = TEXT.replace("constant(23)", "parameter(1)")
  for text, unknown, expected in ((known, 1, 5), (endless, 7, 7)):
    runs = hlo.runs(hlo.parse(text), unknown)
    assert [r.times for r in runs if r.operation.name == "work"] == [expected]


def test_loops_in_loops_of_real_programs_are_counted():
  def f(x):
    inner = lambda x, _: (jnp.tanh(x @ x), None)
    outer = lambda x, _: jax.lax.scan(inner, jnp.sin(x), None, 5)
    return jax.lax.scan(outer, x, None, 3)[0]

  text = jax.jit(f).lower(jnp.ones((64, 64))).compile().as_text()
  times = {
    run.times
    for run in hlo.runs(hlo.parse(text))
    if "tanh" in run.operation.scope
  }
  assert times == {15}


def test_a_condition_with_a_bound_counts_to_it():
  def f(x):
    more = lambda state: (state[0] < 9) & jnp.any(state[1] < 0)
    return jax.lax.while_loop(more, lambda s: (s[0] + 1, s[1] @ x), (2, x))

  text = jax.jit(f).lower(jnp.ones((64, 64))).compile().as_text()
  program = hlo.parse(text)
  found = [
    hlo.trips(program, run.operation, run.inside)
    for run in hlo.runs(program)
    if run.operation.code == "while"
  ]
  assert found == [7]


def test_sizes_are_bytes_without_padding():
  assert hlo.size("bf16[2,3]{1,0:T(8,128)(2,1)S(3)}") == 12
  assert hlo.size("(s4[8], /*index=1*/pred[3], token[], u32[])") == 11


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("HloModule nothing")
