# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from cc_jax.data import filters, passes


def apply(text, **more):
  return filters.apply(filters.parse([text]), more)


@pytest.mark.parametrize(
  ("text", "passing", "failing"),
  [
    ("x<0.3", 0.29, 0.3),
    ("x<=0.3", 0.3, 0.31),
    ("x > -1", 0, "-1"),
    ("x>=4.5", "4.5", 4),
    ("x==en", "en", "de"),
    ("x!=en", "de", " en "),
    ("x==1", 1.0, 2),
    ("x!=1", "2", "1.0"),
  ],
)
def test_rows_pass_by_what_their_columns_say(text, passing, failing):
  assert apply(text, x=passing) is None
  assert apply(text, x=failing) == passes.Reject(
    "filter_x", detail=str(failing).strip()
  )


@pytest.mark.parametrize("value", [None, "", " ", math.nan, "much"])
def test_what_cannot_be_compared_is_missing(value):
  assert apply("x<0.3", x=value).reason == "filter_x_missing"
  assert apply("x<0.3").reason == "filter_x_missing"


def test_the_first_filter_that_fails_is_the_reason():
  made = filters.parse(["nsfw<0.3", "is art==yes"])
  assert filters.apply(made, {"nsfw": 1}).reason == "filter_nsfw"
  refused = filters.apply(made, {"nsfw": 0, "is art": "no"})
  assert refused.reason == "filter_is_art"


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("nsfw", "expected a column, one of < <= > >= == !="),
    ("nsfw=0.3", "expected a column"),
    ("<0.3", "expected a column"),
    ("nsfw<", "expected a column"),
    ("nsfw<low", "orders by 'low'; expected a number"),
    ("nsfw<nan", "orders by 'nan'"),
  ],
)
def test_an_unknown_filter_is_one_line(text, words):
  with pytest.raises(ValueError, match=f"filter {text!r} .*{words}"):
    filters.parse([text])
