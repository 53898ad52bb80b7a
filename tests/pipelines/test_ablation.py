# SPDX-License-Identifier: Apache-2.0
from xml.etree import ElementTree

import ml_collections
import pytest

from cc_jax.pipelines import ablation


def config(*texts):
  return ml_collections.ConfigDict(
    {"ablation": texts, "train": {"dtype": "x", "remat": "none", "size": 1}}
  )


def test_changes_are_made_one_on_top_of_the_other():
  made = config(
    "naive: train.dtype=float32 train.size=2",
    "bfloat16: train.dtype=bfloat16",
    "large: train.size=6",
  )
  seen = []

  def measure(tried):
    seen.append((tried.train.dtype, tried.train.size, tried.train.remat))
    speed = {"float32": 1.0, "bfloat16": 2.0}[tried.train.dtype]
    return {"images_per_s_per_chip": speed * tried.train.size, "other": 1}

  rows = ablation.run(made.lock(), measure)
  assert seen == [
    ("float32", 2, "none"),
    ("bfloat16", 2, "none"),
    ("bfloat16", 6, "none"),
  ]
  assert made.train.dtype == "x"
  assert [row["speedup"] for row in rows] == [1, 2, 6]
  assert [row["step"] for row in rows] == [None, 2, 3]
  assert rows[2]["figures"]["other"] == 1
  assert ablation.lines(rows)[-1] == "| large | 12.0 | 3.00 | 6.00 |"


def test_what_cannot_run_is_left_out_of_the_sums():
  made = config("a: train.size=1", "b: train.size=2", "c: train.size=3")
  rates = {1: None, 2: 5.0, 3: 10.0}
  measure = lambda tried: (
    {"images_per_s_per_chip": rates[tried.train.size]}
    if rates[tried.train.size]
    else {"fits": False}
  )
  rows = ablation.run(made, measure)
  assert [row["speedup"] for row in rows] == [None, 1, 2]
  assert "does not fit" in ablation.lines(rows)[2]


def test_the_picture_has_a_bar_for_each_as_long_as_it_is_fast():
  made = config("<a>: train.size=1", "b: train.size=4")
  measure = lambda tried: {"images_per_s_per_chip": float(tried.train.size)}
  root = ElementTree.fromstring(ablation.picture(ablation.run(made, measure)))
  bars = [float(e.get("width")) for e in root if e.tag.endswith("rect")]
  assert bars[1] == pytest.approx(4 * bars[0])
  texts = [e.text for e in root if e.tag.endswith("text")]
  assert texts == ["<a>", "1.00x", "b", "4.00x"]


@pytest.mark.parametrize("text", ["train.size=1", "a: train.size", "a:"])
def test_texts_of_another_form_are_refused(text):
  with pytest.raises(ValueError, match="expected 'NAME: field=value"):
    ablation.changes([text])
  with pytest.raises(ValueError, match="ablation is empty"):
    ablation.changes([])
