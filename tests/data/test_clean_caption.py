# SPDX-License-Identifier: Apache-2.0
"""T5's cleaning rules, on hard strings and beside diffusers' own.

diffusers' code needs bs4 and ftfy, which are not here: it runs with our reader
of HTML and our repairs in their places, so that all other rules are compared.
"""

import types

from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as theirs
import pytest

from cc_jax.data import clean_caption

HARD = [
  "",
  "   ",
  "A Red Hat",
  "a photo of a cat, sitting on a mat.",
  "see https://example.com/a/b?c=d for more",
  "www.example.com/shop and example.co.uk/x and mail me@example.com",
  "<b>Bold</b> &amp; <i>italic</i><br/>text <!-- no --> &quot;quoted&quot;",
  "<person> with <person>",
  "@nickname says hi @other_one",
  "一只猫 a cat ㊙ ㍿ 㐀 ䷀ ㇀ ㇰ",
  "en\u2013dash em\u2014dash minus\u2212sign hyphen\u2010bullet \u301c \u30fc",
  "\u201ccurly\u201d \u2018single\u2019 \u00abguillemets\u00bb `back`",
  "\u00b4acute\u00b4 \u00a8",
  "server at 192.168.0.1 is up, meet at 5:30 ",
  r"line\nbreak and \\n more",
  "#12 #1234 #12345 #123456 1234567 2020",
  "IMG_2041.JPG and report.pdf and movie.mp4!",
  '"""AUSVERKAUFT""" ***SALE*** ... #sale ~~~ [x] {y} (z) | a/b \\ c',
  "this-is-my-cute-cat and a_b",
  "two-part name_here",
  "jc6640 jc6640vc 6640vc231 j2d1a2a a1b2c3",
  "worldwide free shipping, free download, click on this, click for more",
  "png image, jpg images, page 12 of 30",
  "12x18 poster, 3.5\u00d74.5 cm, 10\u044515",
  "title : subtitle : more",
  "a,b;c.d e/f 3.14 1,000",
  "'quoted whole'",
  '"also quoted"',
  "-leading and trailing-",
  ":start and end:",
  ".hidden",
  "Caf%C3%A9+au+lait 100%25",
  "trailing comma,",
  "multiple   spaces\tand\ttabs\nand lines",
  "A Very LONG caption " + "with words " * 40,
  "ünïcödé naïve façade",
  "emoji 😀🎉 stay",
  "&lt;tag&gt; &#39;apos&#39; &amp;amp;",
  "1 . 2 . 3",
  "x" * 300,
  "it's o'clock, they're here",
]


@pytest.fixture
def reference(monkeypatch):
  soup = lambda text, features: types.SimpleNamespace(
    text=clean_caption.plain(text)
  )
  fixer = types.SimpleNamespace(fix_text=clean_caption.repair)
  monkeypatch.setattr(theirs, "BeautifulSoup", soup, raising=False)
  monkeypatch.setattr(theirs, "ftfy", fixer, raising=False)
  pipe = types.SimpleNamespace(
    bad_punct_regex=theirs.PixArtAlphaPipeline.bad_punct_regex
  )
  return lambda text: theirs.PixArtAlphaPipeline._clean_caption(pipe, text)


@pytest.mark.parametrize("text", HARD)
def test_hard_strings_are_cleaned_as_diffusers_does(text, reference):
  assert clean_caption.once(text) == reference(text)
  assert clean_caption.clean(text) == reference(reference(text))


@pytest.mark.parametrize(
  ("text", "cleaned"),
  [
    ("A Cat", "a cat"),
    ("<p>A <b>cat</b></p>", "a cat"),
    ("a cat https://example.com/cat for you", "a cat for you"),
    ("DSC_0012.JPG", ""),
    ("一只猫", ""),
    ("\ufb01ne art", "fine art"),
    ("cafe\u0301", "caf\u00e9"),
  ],
)
def test_what_is_no_description_goes(text, cleaned):
  assert clean_caption.clean(text) == cleaned


def test_a_cleaned_caption_is_plain_text_of_one_line():
  for text in HARD:
    found = clean_caption.clean(text)
    assert found == found.strip()
    assert found == found.lower()
    assert not set("\n\t#@[]{}|\\*") & set(found)
