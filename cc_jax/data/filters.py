# SPDX-License-Identifier: Apache-2.0
"""Filters by columns of a source: "nsfw<0.3", "aesthetic>=4.5", "language==en".

Columns are called as in the source. A row that fails a filter is a reject
"filter_nsfw"; one that has no value to compare is "filter_nsfw_missing", since
nothing is known of it.
"""

from collections.abc import Callable, Iterable, Mapping
import operator
import re
from typing import Any, NamedTuple

from cc_jax.data import passes, rows

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
  "<": operator.lt,
  "<=": operator.le,
  ">": operator.gt,
  ">=": operator.ge,
  "==": operator.eq,
  "!=": operator.ne,
}
_FILTER = re.compile(r"\s*([\w.\- ]*[\w\-])\s*(<=|>=|==|!=|<|>)\s*(\S.*?)\s*")


class Filter(NamedTuple):
  """Rows pass whose `column` compares so; a `bound` is a number or a word."""

  column: str
  compare: str
  bound: float | str


def parse(texts: Iterable[str]) -> tuple[Filter, ...]:
  """Reads filters.

  Raises:
    ValueError: for one that is not COLUMN COMPARISON VALUE, or that orders by a
      word.
  """
  return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Filter:
  match = _FILTER.fullmatch(text)
  if not match:
    raise ValueError(
      f"filter {text!r} of catalogue.filters; expected a column, one of "
      f"{' '.join(_COMPARE)} and a value, such as 'nsfw<0.3'"
    )
  column, compare, bound = match.groups()
  number = _number(bound)
  if number is None and compare not in ("==", "!="):
    raise ValueError(
      f"filter {text!r} of catalogue.filters orders by {bound!r}; expected a "
      "number"
    )
  return Filter(column, compare, bound if number is None else number)


def _number(text: str) -> float | None:
  try:
    number = float(text)
  except ValueError:
    return None
  return None if number != number else number


def apply(
  filters: Iterable[Filter], more: Mapping[str, Any]
) -> passes.Reject | None:
  """The reject of the first filter that a row does not pass; None for none.

  Args:
    filters: from `parse`.
    more: values by the source's names.
  """
  for one in filters:
    reason = "filter_" + re.sub(r"\W+", "_", one.column)
    text = rows.text(more.get(one.column))
    value = text if isinstance(one.bound, str) else _number(text)
    if value is None or text == "":
      detail = text and f"{text!r} is not a number"
      return passes.Reject(f"{reason}_missing", detail=detail)
    if not _COMPARE[one.compare](value, one.bound):
      return passes.Reject(reason, detail=text)
  return None
