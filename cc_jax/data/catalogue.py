# SPDX-License-Identifier: Apache-2.0
"""The gate: which images may enter, and what is remembered of each.

Every image that enters keeps its original bytes, their hash as its key, its
licence, its author and the page it came from; every one that does not is a
reject with a reason. Only the row's own statement counts, never that of the
collection it came in.
"""

from collections.abc import Collection, Sequence
import hashlib
from typing import Any

from cc_jax.data import filters, images, licences, opt_out, passes, rows

FEATURES = {
  "key": "text",
  "image": "image",
  "width": "int32",
  "height": "int32",
  "licence": "text",
  "licence_url": "text",
  "author": "text",
  "title": "text",
  "tags": ("text", (None,)),
  "page_url": "text",
  "photo_id": "text",
  "source": "text",
}
"""What the dataset folder of a catalogue holds, as in data/records.py."""


def examine(
  row: rows.Row,
  *,
  collection: str,
  licence: str = "",
  allow: Collection[str] = (),
  opted: opt_out.OptOut = opt_out.NONE,
  tests: Sequence[filters.Filter] = (),
  min_side: int = 1,
  max_pixels: int = images.MAX_PIXELS,
) -> dict[str, Any] | passes.Reject:
  """An example of the catalogue, or why it is left out.

  Args:
    row: from a source.
    collection: "commercial" or "non-commercial", see data/licences.py.
    licence: an id or URL for rows that state none; "" for none.
    allow: ids of `licences.rule`, which decide in place of the collection.
    opted: whose pictures are left out, from data/opt_out.py.
    tests: what the row's other columns must pass, from data/filters.py.
    min_side: least height and width, in pixels.
    max_pixels: most pixels that are decoded.

  Returns:
    The features of `FEATURES`, or a reject: one of `licences.REASONS`,
    "opted_out", "filter_COLUMN", "filter_COLUMN_missing", "hash_mismatch",
    `images.REASONS` after "image_", or "too_small".

  Raises:
    ValueError: there is no such collection.
  """
  url, name = row.licence_url, row.licence_name
  if not url and not name:
    url = licence
  granted = licences.gate(
    collection, licence_url=url, licence_name=name, allow=allow
  )
  if isinstance(granted, str):
    return passes.Reject(granted, row.where, url or name)
  key = hashlib.sha256(row.image).hexdigest()
  if why := opt_out.match(opted, row._asdict() | {"key": key}):
    return passes.Reject(opt_out.REASON, row.where, why)
  if (failed := filters.apply(tests, row.more)) is not None:
    return failed._replace(where=row.where)
  if row.sha256 and row.sha256.lower() != key:
    return passes.Reject("hash_mismatch", row.where, f"stated {row.sha256}")
  try:
    header = images.probe(row.image, max_pixels=max_pixels)
    small = min(header.height, header.width) < min_side
    if not small:
      # Only a decoder can tell that a file is whole; an eighth is enough.
      images.decode(row.image, at_least=(1, 1), max_pixels=max_pixels)
  except images.ImageError as error:
    return passes.Reject(f"image_{error.reason}", row.where, str(error))
  if small:
    size = f"{header.height} x {header.width}"
    return passes.Reject("too_small", row.where, size)
  return {
    "key": key,
    "image": row.image,
    "width": header.width,
    "height": header.height,
    "licence": granted.id,
    "licence_url": granted.url,
    "author": row.author,
    "title": row.title,
    "tags": list(row.tags),
    "page_url": row.page_url,
    "photo_id": row.photo_id,
    "source": row.where,
  }
