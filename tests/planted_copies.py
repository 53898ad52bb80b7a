# SPDX-License-Identifier: Apache-2.0
"""How many planted copies of photographs are found among others.

  python tests/planted_copies.py FOLDER_OF_JPEGS

Training are all photographs but 200; of 200 of training the middle square of
256 pixels is planted, changed in each way, and the 200 others as they are.
"""

import io
import pathlib
import sys

import numpy as np
from PIL import Image, ImageOps

from cc_jax.data import duplicates, images
from cc_jax.pipelines import memorisation

PLANTED, SIDE = 200, 256


def middle(path, side):
  return images.decode_cover(path.read_bytes(), side, side).image


def jpeg(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=20)
  return np.asarray(Image.open(io.BytesIO(file.getvalue())))


def noisy(image):
  noise = np.random.default_rng(0).normal(0, 20, image.shape)
  return np.clip(image + noise, 0, 255).astype(np.uint8)


def blurred(image):
  small = Image.fromarray(image).resize((SIDE // 6, SIDE // 6))
  return np.asarray(small.resize((SIDE, SIDE)))


def part(share):
  side = int(SIDE * share)
  left, top = (SIDE - side) // 3, (SIDE - side) // 6
  box = (left, top, left + side, top + side)
  return lambda image: np.asarray(
    Image.fromarray(image).resize((SIDE, SIDE), box=box)
  )


WAYS = {
  "as it is": lambda image: image,
  "JPEG of quality 20": jpeg,
  "mirrored": lambda image: np.asarray(ImageOps.mirror(Image.fromarray(image))),
  "noise of 20 grey levels": noisy,
  "six times smaller and back": blurred,
  "contrast of 0.6": lambda image: (image * 0.6 + 40).astype(np.uint8),
  "a part of 90 % a side": part(0.9),
  "a part of 80 % a side": part(0.8),
}


def main(folder):
  paths = sorted(pathlib.Path(folder).rglob("*.jpg"))
  order = np.random.default_rng(0).permutation(len(paths))
  held, train = order[:PLANTED], order[PLANTED:]
  sign = duplicates.luminance
  known = [
    np.stack([sign(middle(paths[i], 128)) for i in train]),
    np.stack(
      [
        sign(images.decode(paths[i].read_bytes(), at_least=(128, 128)))
        for i in train
      ]
    ),
  ]

  def look(pictures):
    signs = np.stack([sign(picture) for picture in pictures])
    found = [memorisation.find_copies(one, signs) for one in known]
    best = np.argmin([one.bits for one in found], axis=0)
    return np.choose(best, [one.row for one in found])

  chosen = np.random.default_rng(1).permutation(len(train))[:PLANTED]
  planted = [middle(paths[train[i]], SIDE) for i in chosen]
  for name, change in WAYS.items():
    row = look([change(image) for image in planted])
    right, found = (row == chosen).sum(), (row >= 0).sum()
    print(f"{name:28} {right} found, {found - right} taken for another")
  row = look([middle(paths[i], SIDE) for i in held])
  print(f"{'not planted':28} {(row >= 0).sum()} found")


if __name__ == "__main__":
  main(*sys.argv[1:])
