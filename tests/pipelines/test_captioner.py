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
