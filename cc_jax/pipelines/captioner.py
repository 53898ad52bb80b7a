# SPDX-License-Identifier: Apache-2.0
"""Captions from what the source of an image says of it.

Those of networks that look at it are in pipelines/image_captioner.py.
"""

from collections.abc import Mapping, Sequence
import string
from typing import Any

from cc_jax.data import alt_text

FIELDS = ("title", "author", "tags", "source")


def check_templates(templates: Sequence[str]) -> None:
  """Refuses templates that name what no record has.

  Raises:
    ValueError: there is no template, or one with an unknown field.
  """
  if not templates:
    raise ValueError("caption.templates is empty; give at least one template")
  for template in templates:
    try:
      parts = list(string.Formatter().parse(template))
    except ValueError as error:
      raise ValueError(
        f"template {template!r}: {error}; write it as 'a photo of {{title}}'"
      ) from error
    for _, field, _, _ in parts:
      if field is not None and field not in FIELDS:
        raise ValueError(
          f"template {template!r} names {field!r}; records have "
          + ", ".join(FIELDS)
        )


def from_metadata(
  example: Mapping[str, Any], templates: Sequence[str], clean: bool = False
) -> str:
  """A caption from one of the templates, "a photo of {title}" say.

  Which one depends on the image's key alone, so that a second run, or a run
  over other shards, writes the same.

  Args:
    example: a record of the catalogue.
    templates: that `check_templates` accepts.
    clean: puts title and tags through data/alt_text.py first. There is then no
      caption where a template needs a title or tags and there are none.
  """
  template = templates[int(example["key"][:8], 16) % len(templates)]
  values = {field: example[field] for field in FIELDS}
  if clean:
    values["title"] = alt_text.clean(values["title"])
    values["tags"] = alt_text.clean_tags(values["tags"])
    named = {field for _, field, _, _ in string.Formatter().parse(template)}
    if any(not values[field] for field in named & {"title", "tags"}):
      return ""
  return template.format(**{**values, "tags": ", ".join(values["tags"])})
