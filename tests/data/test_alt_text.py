# SPDX-License-Identifier: Apache-2.0
import pytest

from cc_jax.data import alt_text

NOTHING = """
IMG_1234
IMG_1234.JPG
img-20130405-wa0012.jpg
DSC00042
DSC_0042.NEF
_DSC1234
_MG_0042
DSCN1234
DSCF0042
P1010234
PICT0042
CIMG0042
IMG_20130405_123456
2013-04-05 12.34.56
20130405_123456
0012345
001.jpg
Scan 12
Photo 123
Image (12)
GOPR0042.jpg
Screenshot 2013-04-05 12.34.56
a1b2c3d4-1234-4abc-8def-0123456789ab
d41d8cd98f00b204e9800998ecf8427e
https://example.org/a/b.html
_ - _
&nbsp;
""".strip().splitlines()


@pytest.mark.parametrize("title", ["", "   ", *NOTHING])
def test_names_of_files_and_addresses_say_nothing(title):
  assert alt_text.clean(title) == ""


@pytest.mark.parametrize(
  ("title", "expected"),
  [
    ("Sunset at the beach", "Sunset at the beach"),
    ("sunset_at_the__beach.jpg", "sunset at the beach"),
    ("IMG_1234 Sunset", "Sunset"),
    ("DSC00042 - Sunset", "Sunset"),
    ("Tom &amp; Jerry&#39;s", "Tom & Jerry's"),
    ("&amp;quot;Hi&amp;quot;", '"Hi"'),
    ("<b>Bold</b> <a href='x'>sea</a>", "Bold sea"),
    ("I <3 Paris", "I <3 Paris"),
    ("Sea, see http://example.org/x?y=1 now", "Sea, see now"),
    ("two \n lines\t here\u200b", "two lines here"),
    ("1984", "1984"),
    ("Summer 2013", "Summer 2013"),
    ("image of a dog", "image of a dog"),
    ("Photograph 51 of DNA", "Photograph 51 of DNA"),
    ("Pier 39", "Pier 39"),
    ("R2D2", "R2D2"),
    ("St. John's", "St. John's"),
    ("Нева́ 花", "Нева́ 花"),
    ("deadbeef", "deadbeef"),
  ],
)
def test_titles_of_people_stay(title, expected):
  assert alt_text.clean(title) == expected
  assert alt_text.clean(expected) == expected


def test_tags_are_kept_once_and_without_those_of_machines():
  tags = ["new_york", "New York", "geo:lon=13.4", "IMG_1234", "night", ""]
  assert alt_text.clean_tags(tags) == ["new york", "night"]
