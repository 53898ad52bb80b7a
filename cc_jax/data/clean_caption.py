# SPDX-License-Identifier: Apache-2.0
"""The rules by which captions are cleaned for T5.

Of DeepFloyd IF, with which PixArt-alpha's captions were encoded, and which
diffusers' pipelines know as `clean_caption`: lower case, without addresses,
markup, names of files and articles, Chinese characters and the words of shops.
They are applied twice, since one removal may lay open another.

diffusers needs two packages for it. Here HTML is read by Python's own parser,
and of what ftfy repairs only ligatures and composed letters are.
"""

import html
from html import parser
import re
import unicodedata
import urllib.parse

_DOMAIN = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
  "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
  "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
# Strokes, phonetic extensions, enclosed and compatible letters, hexagrams, and
# the ideographs themselves.
_CJK = "\u31c0-\u31ef\u31f0-\u31ff\u3200-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff"

# What is done before markup is read, and after it, in this order.
_ADDRESSES = (
  (r"<person>", "person"),
  (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
  (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
)
_MARKS = (
  (r"@\w+\b", ""),
  (rf"[{_CJK}]+", ""),
  (rf"[{_DASHES}]+", "-"),
  ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
  ("[\u2018\u2019]", "'"),
  (r"&quot;?", ""),
  (r"&amp", ""),
  # Addresses of machines, times at the end, line breaks that were written out.
  (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
  (r"\d:\d\d\s+$", ""),
  (r"\\n", " "),
  # Numbers of articles.
  (r"#\d{1,3}\b", ""),
  (r"#\d{5,}\b", ""),
  (r"\b\d{6,}\b", ""),
  (rf"\S+\.(?:{_FILES})", ""),
  (r"[\"']{2,}", '"'),
  (r"\.{2,}", " "),
  (
    "[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~"
    r")(\]\[}{|\\/*]+",
    " ",
  ),
  (r"\s+\.\s+", " "),
)
_WORDS = (
  (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
  (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
  (r"\b\d+[a-zA-Z]+\d+\b", ""),
  (r"(worldwide\s+)?(free\s+)?shipping", ""),
  (r"(free\s)?download(\sfree)?", ""),
  (r"\bclick\b\s(?:for|on)\s\w+", ""),
  (rf"\b(?:{_FILES})(\simages?)?", ""),
  (r"\bpage\s+\d+\b", ""),
  (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
  ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),
  (r"\b\s+:\s+", ": "),
  (r"(\D[,./])\b", r"\1 "),
  (r"\s+", " "),
  # What is left around the whole: quotes, and marks that join nothing.
  (r"^[\"']([\w\W]+)[\"']$", r"\1"),
  (r"^['_,\-:;]", ""),
  (r"['_,\-:+]$", ""),
  (r"^\.\S+$", ""),
)
_LIGATURES = str.maketrans(
  {
    "\ufb00": "ff",
    "\ufb01": "fi",
    "\ufb02": "fl",
    "\ufb03": "ffi",
    "\ufb04": "ffl",
    "\ufb05": "st",
    "\ufb06": "st",
  }
)


class _Text(parser.HTMLParser):
  """Collects what is outside of tags."""

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.found = []

  def handle_data(self, data):
    self.found.append(data)


def clean(caption: str) -> str:
  """A caption as T5 read those of PixArt-alpha.

  >>> clean("<b>A CAT</b> on a mat &amp; IMG_2041.jpg (free shipping)")
  'a cat on a mat'
  """
  return once(once(caption))


def once(caption: str) -> str:
  """All rules, one after another."""
  text = urllib.parse.unquote_plus(caption).strip().lower()
  text = _apply(_ADDRESSES, text)
  text = _apply(_MARKS, plain(text))
  # this-is-my-cute-cat
  if len(re.findall("[-_]", text)) > 3:
    text = re.sub("[-_]", " ", text)
  text = html.unescape(html.unescape(repair(text)))
  return _apply(_WORDS, text).strip()


def plain(text: str) -> str:
  """The text of HTML, without its tags and comments."""
  reader = _Text()
  reader.feed(text)
  reader.close()
  return "".join(reader.found)


def repair(text: str) -> str:
  """Text with one spelling for what has several in Unicode."""
  return unicodedata.normalize("NFC", text.translate(_LIGATURES))


def _apply(rules: tuple[tuple[str, str], ...], text: str) -> str:
  for pattern, instead in rules:
    text = re.sub(pattern, instead, text)
  return text
