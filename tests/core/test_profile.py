# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp

from cc_jax.core import profile


def test_the_slowest_operation_is_named_with_its_scope_and_shape():
  def f(a, b):
    with jax.named_scope("small"):
      b = b @ b
    with jax.named_scope("large"):
      return a @ a, b

  a, b = jnp.ones((1024, 1024)), jnp.ones((16, 16))
  compiled = jax.jit(f).lower(a, b).compile()
  found = profile.slowest(lambda: compiled(a, b), compiled.as_text(), 3)
  what, seconds = found[0]
  assert what == "large/dot_general f32[1024,1024]"
  assert 0 < seconds < 60
  assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


def test_as_many_are_named_as_were_asked_for():
  compiled = jax.jit(lambda a: (a @ a, jnp.sum(a))).lower(jnp.ones((64, 64)))
  compiled = compiled.compile()
  run = lambda: compiled(jnp.ones((64, 64)))
  assert len(profile.slowest(run, compiled.as_text(), 1)) == 1


def test_an_operation_without_a_scope_is_told_by_what_it_computes():
  text = """
%fused.1 (p: f32[2,3]) -> f32[2,3] {
  %p = f32[2,3]{1,0} parameter(0)
  ROOT %convolution.7 = f32[2,3]{1,0} convolution(%p, %p), window={size=8x8}
}

ENTRY %main (p: f32[2,3]) -> f32[2,3] {
  %p.1 = f32[2,3]{1,0} parameter(0)
  ROOT %fusion.2 = f32[2,3]{1,0} fusion(%p.1), kind=kCustom, calls=%fused.1
}
"""
  found = profile.scopes(text)
  assert found["fusion.2"] == "convolution window={size=8x8} f32[2,3]"
