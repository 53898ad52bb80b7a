# SPDX-License-Identifier: Apache-2.0
import json
from xml.etree import ElementTree

import ml_collections
import pytest

from cc_jax.core import versions
from cc_jax.pipelines import ablation

ABOUT = {"device": "a machine"}


def config(*texts, **fields):
  return ml_collections.ConfigDict(
    {
      "ablate": True,
      "ablation": texts,
      "ablation_steps": (),
      "train": {"dtype": "x", "remat": "none", "size": 1},
    }
    | fields
  )


class Bench:
  """Measures `train.size`, or what `rates` says of it, and counts."""

  def __init__(self, folder, rates=None):
    self.result, self.rates, self.seen = f"{folder}/bench.json", rates, []

  def __call__(self, made, about=ABOUT):
    return ablation.run(made, self.measure, self.result, about)

  def measure(self, tried):
    self.seen.append(tried.train.size)
    size = tried.train.size
    rate = self.rates[size] if self.rates else float(size)
    return {"images_per_s_per_chip": rate} if rate else {"fits": False}


def test_changes_are_made_one_on_top_of_the_other(tmp_path):
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

  rows = ablation.run(made.lock(), measure, f"{tmp_path}/bench.json", ABOUT)
  assert seen == [
    ("float32", 2, "none"),
    ("bfloat16", 2, "none"),
    ("bfloat16", 6, "none"),
  ]
  assert made.train.dtype == "x"
  assert [row["speedup"] for row in rows] == [1, 2, 6]
  assert [row["times"] for row in rows] == [None, 2, 3]
  assert rows[2]["figures"]["other"] == 1
  assert ablation.lines(rows)[-1] == "| large | 12 | 3.00 | 6.00 |"


def test_what_cannot_run_is_left_out_of_the_sums(tmp_path):
  made = config("a: train.size=1", "b: train.size=2", "c: train.size=3")
  rows = Bench(tmp_path, {1: None, 2: 5.0, 3: 10.0})(made)
  assert [row["speedup"] for row in rows] == [None, 1, 2]
  assert "does not fit" in ablation.lines(rows)[2]


def test_a_row_that_was_measured_survives_a_process_that_is_killed(tmp_path):
  made = config("a: train.size=1", "b: train.size=2", "c: train.size=3")
  bench = Bench(tmp_path, {1: 1.0, 2: 2.0})
  with pytest.raises(KeyError):
    bench(made)
  kept = json.loads((tmp_path / "bench.json").read_text())
  assert kept["device"] == "a machine"
  assert [row["name"] for row in kept["ablation"]] == ["a", "b"]
  # Under another name it is the same.
  made.ablation = ("first: train.size=1", *made.ablation[1:])
  again = Bench(tmp_path)
  rows = again(made)
  assert again.seen == [3]
  assert [row["name"] for row in rows] == ["first", "b", "c"]
  assert [row["speedup"] for row in rows] == [1, 2, 3]
  assert Bench(tmp_path)(made) == rows


@pytest.mark.parametrize("what", ["field", "device", "code"])
def test_what_was_measured_of_something_else_is_measured_anew(
  tmp_path, monkeypatch, what
):
  made, about = config("a: train.size=1", "b: train.size=2"), ABOUT
  Bench(tmp_path)(made)
  if what == "field":
    made.train.remat = "full"
  elif what == "device":
    about = {"device": "another"}
  else:
    monkeypatch.setattr(versions, "digest", lambda: "other code")
  bench = Bench(tmp_path)
  bench(made, about)
  assert bench.seen == [1, 2]


def test_steps_that_were_not_measured_are_not_in_the_table(tmp_path):
  made = config(*(f"{n}: train.size={n}" for n in (1, 2, 3, 6)))
  made.ablation_steps = (2, 3)
  bench = Bench(tmp_path)
  rows = bench(made)
  assert bench.seen == [3, 6]
  # Of the first there is no figure, so that nothing is over it.
  assert [row["speedup"] for row in rows] == [None, None]
  assert [row["times"] for row in rows] == [None, 2]
  assert ablation.lines(rows)[2:] == ["| 3 | 3 |  |  |", "| 6 | 6 | 2.00 |  |"]
  made.ablation_steps = (0,)
  rows = bench(made)
  assert bench.seen == [3, 6, 1]
  assert [row["step"] for row in rows] == [0, 2, 3]
  assert [row["speedup"] for row in rows] == [1, 3, 6]
  assert [row["times"] for row in rows] == [None, None, 2]
  made.ablation_steps = (4,)
  with pytest.raises(ValueError, match="expected numbers from 0 to 3"):
    bench(made)


def test_the_picture_has_a_bar_for_each_as_long_as_it_is_fast(tmp_path):
  made = config("<a>: train.size=1", "b: train.size=4")
  Bench(tmp_path)(made)
  root = ElementTree.parse(tmp_path / "ablation.svg").getroot()
  bars = [float(e.get("width")) for e in root if e.get("class") == "bar"]
  assert bars[1] == pytest.approx(4 * bars[0])
  texts = ["".join(e.itertext()) for e in root if e.tag.endswith("text")]
  assert texts[-4:] == ["<a>", "1.00x", "b", "4.00x (times 4.00)"]


@pytest.mark.parametrize("text", ["train.size=1", "a: train.size", "a:"])
def test_texts_of_another_form_are_refused(text):
  with pytest.raises(ValueError, match="expected 'NAME: field=value"):
    ablation.changes([text])
  with pytest.raises(ValueError, match="ablation is empty"):
    ablation.changes([])
