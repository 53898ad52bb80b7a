# SPDX-License-Identifier: Apache-2.0
"""The page of pairs, by hand and in a browser, and what votes say."""

import json
import re

import browser
import numpy as np
import pytest
import toys

from cc_jax.core import files
from cc_jax.data import generated, prompt_sets
from cc_jax.metrics import intervals
from cc_jax.pipelines import pairwise

COUNT = 12


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """Two folders of images of twelve prompts, and the page of them."""
  place = tmp_path_factory.mktemp("pairwise")
  rows = [
    {
      "prompt": f"prompt {i} </script><b>",
      "Category": "Arts" if i % 2 else "World",
    }
    for i in range(COUNT)
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (place / "prompts.jsonl").write_text(text)
  prompts = prompt_sets.open(str(place / "prompts.jsonl"))
  for name, red in (("a", 0.0), ("b", 1.0)):
    folder = str(place / name)
    recipe = {"prompts": prompts.hash, "each": 1, "model": name}
    generated.begin(folder, recipe)
    for i in range(COUNT):
      image = np.full((8, 8, 3), i / COUNT, np.float32)
      image[..., 0] = red
      if name == "b" and i == 3:
        image[0, 0, 0] = np.nan
      generated.write(folder, i, image)
  assert run(place) == 0
  return place


def run(place, *words):
  return toys.run(
    "report",
    place,
    place,
    "--config.report.kind=pairwise",
    f"--config.report.pairwise=('{place}/a', '{place}/b')",
    "--config.report.names=('ours', 'theirs')",
    "--config.report.pairs=0",
    f"--config.evaluate.prompts={place}/prompts.jsonl",
    *words,
  )


def pairs(text):
  found = re.search(r'type="application/json">(.*?)</script>', text).group(1)
  return json.loads(found)


def test_the_page_does_not_say_which_model_is_where(work):
  text = (work / "report.html").read_text()
  key = files.read_json(work / "pairwise.key.json")
  whole = pairs(text)
  assert whole["id"] == key["id"]
  # One had no picture of prompt 3.
  assert len(whole["pairs"]) == len(key["pairs"]) == COUNT - 1
  assert {row["index"] for row in key["pairs"].values()} == {*range(COUNT)} - {
    3
  }
  sides = [row["left"] for row in key["pairs"].values()]
  assert set(sides) == {"a", "b"}
  assert "ours" not in text
  assert "theirs" not in text
  assert str(work) not in text
  assert key["models"]["b"]["name"] == "theirs"
  for pair in whole["pairs"]:
    assert set(pair) == {"id", "prompt", "left", "right"}
    assert pair["left"] != pair["right"]
  for tag in re.findall(r"(?:src|href)=\"([^\"]*)\"", text):
    assert tag.startswith("data:")
  assert "default-src 'none'; img-src data:;" in text


def test_another_seed_draws_other_sides(work, tmp_path):
  found = []
  for seed in (17, 17, 18):
    words = (
      f"--config.seed={seed}",
      f"--config.report.page={tmp_path}/page.html",
      f"--config.report.key={tmp_path}/key.json",
    )
    assert run(work, *words) == 0
    found.append((tmp_path / "key.json").read_text())
  assert found[0] == found[1] != found[2]


# The side of the redder picture, and what is shown besides.
RED = """(async () => {
  const red = [];
  for (const side of ["left", "right"]) {
    const image = document.getElementById(side + "-image");
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const brush = canvas.getContext("2d");
    brush.drawImage(image, 0, 0, 1, 1);
    red.push(brush.getImageData(0, 0, 1, 1).data[0]);
  }
  return red[0] > red[1] ? "left" : "right";
})()"""
SHOWN = """["count", "prompt"].map(
  (name) => document.getElementById(name).textContent)"""
ARROWS = {"left": "ArrowLeft", "right": "ArrowRight"}


def test_votes_are_kept_by_the_browser_and_exported(work, tmp_path):
  # One tie; one undone; then the redder picture always, once by a click. Half
  # way the page is reloaded, and the browser closed and opened again.
  address, profile = (work / "report.html").as_uri(), tmp_path / "browser"
  last = COUNT - 1
  with browser.opened(address, profile) as page:
    page.press("ArrowDown")
    page.press("ArrowLeft")
    page.press("Backspace")
    page.click(page.run(RED))
    for _ in range(2, 5):
      page.press(ARROWS[page.run(RED)])
    before = page.run(SHOWN)
    assert before[0] == f"5 of {last}"
    page.reload()
    assert page.run(SHOWN) == before
  with browser.opened(address, profile) as page:
    assert page.run(SHOWN) == before
    for _ in range(5, last):
      page.press(ARROWS[page.run(RED)])
    assert page.run(SHOWN)[0] == f"{last} of {last}"
    page.press("ArrowLeft")  # Of no pair: nothing happens.
    page.reload()
    assert page.run("document.getElementById('main').hidden")
    (tmp_path / "votes").mkdir()
    name, text = page.downloaded(
      tmp_path / "votes", lambda: page.click("export")
    )
  exported = json.loads(text)
  assert name == f"votes-{exported['page']}-{exported['voter']}.json"
  assert exported["complete"]
  assert len({vote["pair"] for vote in exported["votes"]}) == last
  status = toys.run(
    "votes",
    work,
    tmp_path,
    f"--config.votes.key={work}/pairwise.key.json",
    f"--config.votes.files=('{tmp_path}/votes',)",
  )
  assert status == 0
  found = files.read_json(tmp_path / "votes.json")
  # b is red everywhere.
  wins = found["prefers_b"]
  assert (wins["wins"], wins["losses"], wins["ties"]) == (COUNT - 2, 0, 1)
  assert wins["p"] == pytest.approx(2 * 0.5 ** (COUNT - 2))
  assert set(found["by_category"]) == {"Arts", "World"}
  assert found["models"] == {"a": "ours", "b": "theirs"}


def test_the_page_runs_under_its_own_policy(work, tmp_path):
  address = (work / "report.html").as_uri()
  text = browser.dom(address, tmp_path / "browser")
  assert f"0 of {COUNT - 1}" in text
  assert re.search(r'<p id="prompt">prompt \d+ &lt;/script&gt;&lt;b&gt;<', text)
  assert re.search(r'id="left-image"[^>]* src="data:image/webp', text)


def votes(key, choices, voter="v"):
  """A file of votes for a model ("a", "b" or "")."""
  made = []
  for pair, choice in choices.items():
    left = key["pairs"][pair]["left"]
    side = "neither" if not choice else "left" if choice == left else "right"
    made.append({"pair": pair, "choice": side, "seconds": 1})
  return {"page": key["id"], "voter": voter, "votes": made}


def test_the_majority_of_voters_is_one_vote(work):
  key = files.read_json(work / "pairwise.key.json")
  names = list(key["pairs"])
  one = votes(key, dict.fromkeys(names[:6], "b"), "1")
  two = votes(key, dict.fromkeys(names[:4], "b"), "2")
  three = votes(key, dict.fromkeys(names[:8], "a"), "3")
  again = votes(key, dict.fromkeys(names[:2], "a"), "1")
  other = {**one, "page": "x"}
  strange = {**one, "voter": "4", "votes": [{"pair": "99", "choice": "left"}]}
  found = pairwise.count_votes(key, [again, one, two, three, other, strange])
  # Pairs 0 to 3: b by two to one; 4 and 5: one each; 6 and 7: a.
  expected = intervals.preference([1] * 4 + [0] * 2 + [-1] * 2)
  assert found["prefers_b"] == expected._asdict()
  assert found["votes"] == 6 + 4 + 8
  assert found["pairs_all_voters_agree_on"] == [0, 6]
  assert found["refused"] == {
    "exported_again": 2,
    "another_page": 6,
    "unknown_pair": 1,
  }


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("[]", "is no file of votes"),
    ('{"page": "x", "voter": "1", "votes": [{}]}', "has the vote {}"),
    ('{"page": "x", "voter": "1", "votes": []}', "no vote of page"),
    ("{", "is not JSON"),
  ],
)
def test_what_is_no_vote_is_refused(work, tmp_path, capsys, text, words):
  (tmp_path / "x.json").write_text(text)
  status = toys.run(
    "votes",
    work,
    tmp_path,
    f"--config.votes.key={work}/pairwise.key.json",
    f"--config.votes.files=('{tmp_path}/x.json',)",
  )
  toys.check_refused(capsys, status, words)


def test_folders_that_are_no_pair_are_refused(work, tmp_path, capsys):
  same = f"--config.report.pairwise=('{work}/a', '{work}/a')"
  toys.check_refused(capsys, run(work, same), "are of one recipe")
  none = "--config.report.pairwise=('', '')"
  toys.check_refused(capsys, run(work, none), "expected two folders")
  many = "--config.report.pairs=12"
  toys.check_refused(capsys, run(work, many), "11 prompts of which both")
  (tmp_path / "p.txt").write_text("a hat\n")
  other = f"--config.evaluate.prompts={tmp_path}/p.txt"
  toys.check_refused(capsys, run(work, other), "is of other prompts")
