# SPDX-License-Identifier: Apache-2.0
import contextvars

import pytest

from cc_jax.core import scoped


def test_a_value_holds_inside_and_the_one_before_it_afterwards():
  variable = contextvars.ContextVar("variable", default=0)
  with scoped.holding(variable, 1):
    with scoped.holding(variable, 2):
      assert variable.get() == 2
    assert variable.get() == 1
  assert variable.get() == 0


def test_it_ends_with_an_error_too():
  variable = contextvars.ContextVar("variable", default=0)

  def fail():
    with scoped.holding(variable, 1):
      raise ValueError("inside")

  with pytest.raises(ValueError, match="inside"):
    fail()
  assert variable.get() == 0
