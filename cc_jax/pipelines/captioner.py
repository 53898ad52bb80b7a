# SPDX-License-Identifier: Apache-2.0
"""Images to captions: so far from what their source says of them."""

from collections.abc import Mapping, Sequence
import string
from typing import Any

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


def from_metadata(example: Mapping[str, Any], templates: Sequence[str]) -> str:
  """A caption from one of the templates, "a photo of {title}" say.

  Which one depends on the image's key alone, so that a second run, or a run
  over other shards, writes the same.
  """
  template = templates[int(example["key"][:8], 16) % len(templates)]
  values = {field: example[field] for field in FIELDS}
  return template.format(**{**values, "tags": ", ".join(values["tags"])})
