# SPDX-License-Identifier: Apache-2.0
"""Values that hold inside a `with`, as how what is traced there is computed."""

from collections.abc import Iterator
import contextlib
import contextvars
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def holding(variable: contextvars.ContextVar[T], value: T) -> Iterator[None]:
  """Inside, `variable` has `value`; afterwards what it had before."""
  token = variable.set(value)
  try:
    yield
  finally:
    variable.reset(token)
