# SPDX-License-Identifier: Apache-2.0
"""Titles and tags that people gave their photographs, made fit for captions.

What CommonCanvas calls alt-text (arXiv 2310.16825, §4): two photographs in
three have none, since "IMG_1234" says nothing.
"""

from collections.abc import Iterable
import html
import re

_SUFFIX = re.compile(
  r"\.(jpe?g|png|gif|bmp|tiff?|webp|hei[cf]|cr2|nef|arw|dng|raw)$", re.I
)
# Names that cameras, scanners and telephones give, before a number.
_CAMERA = re.compile(
  r"(?:_?(?:img|imag|imgp|image|mg|dsc[fn]?|dscn|sdc|cimg|pict?|photo|picture"
  r"|sam|gopr|mvi|mov|vid|hpim|kif|pxl|wp|dcp|dcim|scan|screenshot|untitled"
  r"|stitch|panorama|pano|file|p)[\s_-]*)"
  r"(?:\d[\d\s_().-]*\d{2}|\(?\d{2,}\)?)(?:-wa\d+)?(?=\s|$)",
  re.I,
)
_NUMBERS = re.compile(r"[\d\s_().:-]*\d[\d\s_().:-]*")
_HASH = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){2,}-?[0-9a-f]*", re.I)
_URL = re.compile(r"(?:https?://|www\.)\S+", re.I)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.I)
_BLANK = re.compile(r"[\x00-\x1f\x7f\u200b\u2060\ufeff\s_]+")
_MACHINE = re.compile(r"\w+:\w+=")


def clean(text: str) -> str:
  """A title or tag as a person would write it; "" where it says nothing.

  Entities and tags of HTML, addresses, names of files, underscores and blanks
  go. A number of four digits or fewer stays: it may be a year.

  >>> clean("DSC_0042.JPG"), clean("IMG_1234 Sunset &amp; sea_gulls  ")
  ('', 'Sunset & sea gulls')
  """
  for _ in range(2):  # "&amp;quot;" is found as well.
    text = html.unescape(text)
  text = _URL.sub(" ", _TAG.sub(" ", text))
  text = text.strip()
  bare = _SUFFIX.sub("", text)
  is_file = bare != text
  bare = _CAMERA.sub("", bare, count=1) if _CAMERA.match(bare) else bare
  digits = sum(map(str.isdigit, bare))
  if _NUMBERS.fullmatch(bare) and (is_file or digits > 4):
    return ""
  if _HASH.fullmatch(bare):
    return ""
  return _BLANK.sub(" ", bare).strip(" -\u2013\u2014|,;")


def clean_tags(tags: Iterable[str]) -> list[str]:
  """Tags that say something, each once; none that a machine reads.

  >>> clean_tags(["black_cat", "Black cat", "geo:lat=52.1", "dsc00042", "sea"])
  ['black cat', 'sea']
  """
  found: dict[str, str] = {}
  for tag in tags:
    if not _MACHINE.match(tag) and (kept := clean(tag)):
      found.setdefault(kept.casefold(), kept)
  return list(found.values())
