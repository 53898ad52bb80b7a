# SPDX-License-Identifier: Apache-2.0
import hashlib
import re

import pytest

from cc_jax.pipelines import captioner

TEMPLATES = ("a photo of {title}", "{title} by {author}", "{title}: {tags}")


def example(number, **fields):
  key = hashlib.sha256(b"%d" % number).hexdigest()
  return {
    "key": key,
    "title": "a hat",
    "author": "Ann",
    "tags": ["red", "blue"],
    "source": "",
  } | fields


def test_templates_take_turns_by_the_images_key_alone():
  made = [captioner.from_metadata(example(i), TEMPLATES) for i in range(300)]
  counts = {caption: made.count(caption) for caption in made}
  assert set(counts) == {
    "a photo of a hat",
    "a hat by Ann",
    "a hat: red, blue",
  }
  assert min(counts.values()) > 70
  again = [captioner.from_metadata(example(i), TEMPLATES) for i in range(300)]
  assert again == made


def test_braces_in_a_title_are_only_text():
  title = "{author} {0.__class__}"
  made = captioner.from_metadata(example(1, title=title), ("{title}",))
  assert made == title


@pytest.mark.parametrize(
  ("templates", "words"),
  [
    ((), "templates is empty"),
    (("a {titel}",), "names 'titel'; records have title"),
    (("a {}",), "names ''"),
    (("a {title",), "'a {title'"),
    (("a }title",), "'a }title'"),
    (("a {title.__class__}",), "names 'title.__class__'"),
  ],
)
def test_templates_that_do_not_fit_are_refused(templates, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    captioner.check_templates(templates)


def test_titles_and_tags_are_cleaned_where_asked_for():
  dirty = example(1, title="IMG_1234 red_hat &amp; coat.jpg", tags=["a_b"] * 2)
  templates = ("a photo of {title}: {tags}",)
  made = captioner.from_metadata(dirty, templates, clean=True)
  assert made == "a photo of red hat & coat: a b"
  assert captioner.from_metadata(dirty, templates) == (
    "a photo of IMG_1234 red_hat &amp; coat.jpg: a_b, a_b"
  )


def test_a_title_that_says_nothing_gives_no_caption():
  nameless = example(1, title="DSC_0042.JPG")
  for template in ("a photo of {title}", "{title} by {author}"):
    assert captioner.from_metadata(nameless, (template,), clean=True) == ""
  by = captioner.from_metadata(nameless, ("by {author}",), clean=True)
  assert by == "by Ann"
  untagged = example(1, tags=["geo:lat=1"])
  assert captioner.from_metadata(untagged, ("{tags}",), clean=True) == ""
