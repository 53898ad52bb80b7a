# SPDX-License-Identifier: Apache-2.0
"""A small catalogue with captions and latents beside it, for tests."""

import numpy as np

from cc_jax.data import catalogue, passes, shards

CODE = {"revision": "r", "packages": {}}
LENGTHS = {"train": (6, 0, 5, 7), "validation": (3,)}


def example(number):
  return {
    "key": f"{number:064x}",
    "image": b"image %d" % number,
    "width": np.int32(number + 1),
    "height": np.int32(2),
    "licence": ("CC-BY-2.0", "CC0-1.0", "CC-BY-2.0")[number % 3],
    "licence_url": "https://creativecommons.org/licenses/by/2.0/",
    "author": f"Author {number % 4}",
    "title": f"title {number}",
    "tags": ["a"],
    "page_url": f"https://e.org/{number}",
    "photo_id": str(100 + number),
    "source": f"line {number}",
  }


def pieces():
  made, start = [], 0
  for split, lengths in LENGTHS.items():
    for shard, count in enumerate(lengths):
      read = lambda a=start, n=count: iter(range(a, a + n))
      made.append(passes.Piece(split, shard, len(lengths), read, count))
      start += count
  return made


def fill(folder, out=()):
  """The catalogue, one in nine records refused; those in `out` opt out."""

  def one(number):
    if number in out:
      return passes.Reject("opted_out", f"{number:064x}")
    if number % 9 == 8:
      return passes.Reject("too_small", f"line {number}")
    return example(number)

  run(
    folder,
    stage="catalogue",
    features=catalogue.FEATURES,
    pieces=pieces(),
    fn=lambda batch: [one(number) for number in batch],
    inputs=[],
    attribute=True,
  )


def fill_beside(place):
  """captions/ and latents/ beside the catalogue/ in a folder."""
  images = shards.open(place / "catalogue")
  run(
    place / "captions",
    stage="caption",
    features={
      "key": "text",
      "caption_x": "text",
      "flags_x": ("text", (None,)),
    },
    pieces=passes.pieces([images]),
    inputs=passes.inputs([images]),
    fn=lambda batch: [
      {
        "key": x["key"],
        "caption_x": x["title"] + "!",
        "flags_x": ["even"] * int(x["width"] % 2 == 0) + ["any"],
      }
      for x in batch
    ],
    flags="flags_x",
    keep_all=True,
  )
  both = [images, shards.open(place / "captions")]
  run(
    place / "latents",
    stage="encode",
    features={"key": "text", "latent": ("float32", (2,))},
    pieces=passes.pieces(both),
    inputs=passes.inputs(both),
    fn=lambda batch: [
      {"key": x["key"], "latent": np.full(2, x["width"], np.float32)}
      for x in batch
    ],
  )
  return [str(place / name) for name in ("catalogue", "captions", "latents")]


def run(folder, **settings):
  return passes.run(
    folder, name="toy", batch_size=4, config={}, code=CODE, **settings
  )
