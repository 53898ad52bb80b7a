# SPDX-License-Identifier: Apache-2.0
"""The page of a dataset: as text, and in a browser where there is one."""

import html.parser
import pathlib
import re

import browser
import numpy as np
import pytest
import toys

from cc_jax.core import files
from cc_jax.data import shards, tokenize
from cc_jax.pipelines import dataset_report
from cc_jax.stages import report

HOSTILE = '<script>document.title="had"</script>'
QUOTES = "\"' onerror='document.title=1' x=\"&lt;"
CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """60 pictures of two licences, with captions, some by strangers."""
  place = tmp_path_factory.mktemp("report")
  rows = [
    toys.row(
      f"{i}.png",
      title=f"hat {i}" if i % 3 else f"shoe {i}",
      licenseurl=CC0 if i % 4 == 0 else toys.LICENCE,
      pageurl=f"https://example.org/{i}?a=1&b=2",
      split="train" if i % 5 else "validation",
    )
    for i in range(60)
  ]
  rows[7] |= {"title": HOSTILE, "author": QUOTES}
  rows[8] |= {"pageurl": "javascript:document.title=2", "author": HOSTILE}
  rows[9] |= {"licenseurl": "mine", "title": "refused"}
  held = {f"{i}.png": toys.picture(i, side=16 + i) for i in range(60)}
  toys.write_source(place / "source", rows, held)
  words = [
    f"--config.catalogue.source={place}/source",
    f"--config.catalogue.folder={place}/catalogue",
    f"--config.caption.images={place}/catalogue",
    f"--config.caption.folder={place}/captions",
    "--config.caption.vocabulary=0",
  ]
  assert toys.run("catalogue", place, place, *words) == 0
  assert toys.run("caption", place, place, *words) == 0
  files.write_json(
    place / "duplicates.jsonl.summary.json",
    {"settings": {"threshold": 36}, "read": 59, "exact": 2, "near": {"12": 3}},
  )
  assert run(place) == 0
  return place


def run(work, *words):
  return toys.run(
    "report",
    work,
    work,
    f"--config.report.images={work}/catalogue",
    f"--config.report.captions={work}/captions",
    *words,
  )


class Page(html.parser.HTMLParser):
  """Elements with their attributes, and the text outside of style."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.texts = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append(data)

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]

  def __str__(self):
    return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def page(work):
  return Page((work / "report.html").read_text())


def test_the_page_says_what_the_dataset_holds(work, page):
  text = str(page)
  counts = shards.open(work / "catalogue").provenance["counts"]
  assert "59 images" in text
  for licence, count in counts["licences"].items():
    assert re.search(rf"{licence} {count} ", text)
  assert re.search(r"licence_unknown 1 1\.7 %", text)
  assert "59 captions" in text
  assert "the same bytes 2 3.4 %" in text
  assert "10 to 19 bits 3 5.1 %" in text
  assert "Most frequent words" in text
  # Photo, hat and shoe: all seen often, two in each caption but of a stranger.
  assert re.search(r"valid nouns \d", text)
  assert "nouns an image" in text
  assert len(page.all("svg")) == 4
  assert all(
    svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg")
  )


def test_every_picture_has_its_author_licence_and_page(page):
  assert len(page.all("figure")) == len(page.all("img")) == 59
  assert all(img["alt"] for img in page.all("img"))
  addresses = [a.get("href") for a in page.all("a")]
  assert toys.LICENCE in addresses
  assert CC0 in addresses
  assert "https://example.org/3?a=1&b=2" in addresses


def test_the_page_asks_the_network_for_nothing(page):
  for tag, attrs in page.elements:
    assert tag not in ("link", "iframe", "object", "base")
    assert not attrs.get("src") or attrs["src"].startswith("data:image/webp")
  (policy,) = (
    meta["content"] for meta in page.all("meta") if "http-equiv" in meta
  )
  assert policy.startswith("default-src 'none'; img-src data:;")
  assert re.search(r"script-src 'sha256-[\w+/]{43}='$", policy)


def test_strangers_write_text_only(page):
  assert len(page.all("script")) == 1
  assert HOSTILE in str(page)
  assert QUOTES in str(page)
  for _, attrs in page.elements:
    assert not any(name.startswith("on") for name in attrs)
    assert not str(attrs.get("href", "http")).startswith("javascript")
  assert str(page).count("source") >= 58


def test_the_same_seed_draws_the_same_pictures(work, tmp_path):
  pages = []
  for seed in (17, 17, 18):
    path = tmp_path / "page.html"
    status = run(
      work,
      f"--config.report.page={path}",
      "--config.report.gallery=5",
      "--config.report.records=20",
      f"--config.seed={seed}",
    )
    assert status == 0
    pages.append(path.read_text())
  assert pages[0] == pages[1] != pages[2]
  assert "20 drawn at random" in pages[0]
  assert pages[0].count("<figure") == 5


def test_what_cannot_be_reported_is_refused(work, capsys):
  images = f"--config.report.images={work}/captions"
  toys.check_refused(capsys, run(work, images), "has no feature 'author'")
  captions = f"--config.report.captions={work}/catalogue"
  toys.check_refused(capsys, run(work, captions), "no feature caption_")


def test_a_dataset_without_captions_shows_titles(work, tmp_path):
  path = tmp_path / "page.html"
  words = (f"--config.report.page={path}", "--config.report.captions=")
  assert run(work, *words) == 0
  text = str(Page(path.read_text()))
  assert "Most frequent words" not in text
  assert "hat 1" in text


def test_flags_lengths_and_what_limits_are_shown(work, tmp_path):
  tokenizer = tmp_path / "tokenizer"
  tokenize.train(["a photo of a hat"], str(tokenizer), vocabulary=514)
  words = [
    f"--config.caption.images={work}/catalogue",
    f"--config.caption.folder={tmp_path}/captions",
    "--config.caption.vocabulary=0",
    f"--config.caption.flags.tokenizer={tokenizer}",
    "--config.caption.flags.tokens=30",
  ]
  assert toys.run("caption", work, tmp_path, *words) == 0
  counts = shards.open(tmp_path / "captions").provenance["counts"]
  seconds = {"read": 0.5, "decode": 9.0, "device": 0.25, "compile": 3.0}
  noted = {"stage": "encode", "images": 59, "threads": 4, "seconds": seconds}
  files.write_json(tmp_path / "encode.seconds.json", noted)
  flags = (
    f"--config.report.captions={tmp_path}/captions",
    f"--config.report.page={tmp_path}/page.html",
    f"--config.report.seconds=('{tmp_path}/encode.seconds.json', 'none')",
  )
  assert run(work, *flags) == 0
  text = str(Page((tmp_path / "page.html").read_text()))
  assert "Tokens in a caption" in text
  assert counts["flags"]["too_long"]
  for flag, count in counts["flags"].items():
    assert f"{flag} {count} " in text
  assert "Speed of cc-jax encode" in text
  assert "Decode limits: 6.1 images/s over the 59 images" in text
  assert "decode 152,542 92.3 %" in text


def test_words_are_counted_in_any_script():
  words = ["Ein Hut", "don't, Ω-Ω!", "帽子 ein"]
  text = str(Page(dataset_report.captions(words)))
  assert "3 captions, 3 of them different; 5 different words" in text
  assert "ein 2" in text


def test_a_histogram_holds_every_value():
  for values in ([5.0], [1.0, 1e6], list(np.linspace(1, 3, 100))):
    for logarithmic in (False, True):
      made = report.page.histogram("x", values, logarithmic=logarithmic)
      counted = re.findall(r": ([\d,]+)</title>", made)
      assert sum(int(n.replace(",", "")) for n in counted) == len(values)
      places = [float(x) for x in re.findall(r' x="([\d.-]+)"', made)]
      assert all(0 <= x <= 401 for x in places)


def opened(work, fragment):
  """The page in a browser, after its script: (shown, status, element)."""
  address = (pathlib.Path(work) / "report.html").as_uri()
  text = browser.dom(f"{address}{fragment}", f"{work}/browser")
  shown = [f for f in Page(text).all("figure") if "hidden" not in f]
  status = re.search(r'id="status"[^>]*>([^<]*)<', text).group(1)
  return shown, status, text


def test_a_browser_shows_a_page_at_a_time(work):
  shown, status, text = opened(work, "")
  assert (len(shown), status) == (48, "1 to 48 of 59")
  assert "<title>tiny: 59 images</title>" in text
  assert not re.search('<form id="controls"[^>]*hidden', text)
  shown, status, _ = opened(work, "#page=2")
  assert (len(shown), status) == (11, "49 to 59 of 59")
  # As near to what is asked for as there is.
  assert opened(work, "#page=99")[1] == "49 to 59 of 59"
  assert opened(work, "#page=-1&q=%")[1] == "no picture matches"


def test_a_browser_filters_by_licence_and_words(work):
  shown, status, _ = opened(work, "#licence=CC0-1.0")
  assert {figure["data-licence"] for figure in shown} == {"CC0-1.0"}
  assert (len(shown), status) == (15, "1 to 15 of 15")
  shown, status, _ = opened(work, "#licence=CC0-1.0&q=SHOE%20photo")
  assert (len(shown), status) == (5, "1 to 5 of 5")
  assert opened(work, "#q=%3Cscript%3E")[1] == "1 to 2 of 2"
