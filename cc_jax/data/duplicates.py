# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates: which pictures are copies of another one.

A picture's signature is its luminance at 32 x 32. Its hash is the signs of the
16 x 16 lowest frequencies of a cosine transform of that without the mean, 256
bits, as in PDQ (Facebook, 2019), which compares with the median: with signs,
the hash of the mirrored picture is the same with every other frequency
inverted. The hashes of unlike pictures differ in about 128 bits.

Cropping moves everything, so a copy is compared also with parts of each
picture. The hash of a part comes from the same signature, with the cosines
stretched over the part; `WINDOWS` has the parts.

Comparing all pairs is out of the question. Hashes are cut into bands of about
log2(pictures) bits, and two are compared in full where a band agrees (Norouzi
et al., arXiv 1307.2982, without their search around a band). A copy is certain
to be found if it differs in fewer bits than there are bands, and likely beyond:
what changes is mostly the high frequencies, and bands are of similar ones.

tests/data/test_duplicates.py measures it on 3,409 photographs of clothes, many
of them of T-shirts on the same ground; its docstring has the table from which
`THRESHOLD` was chosen. Two million made-up hashes were searched at 125,000
probes a second on one core. At that speed 70 million pictures take 20 minutes
whole and mirrored, and 30 hours with the parts.
"""

from collections.abc import Callable, Iterable, Iterator
import itertools
from typing import NamedTuple

from jaxtyping import Bool, Float32, Int64, UInt8, UInt32, UInt64
import numpy as np
from PIL import Image

from cc_jax.data import images, licences

SIDE = 32
FREQUENCIES = 16
BITS = FREQUENCIES**2
THRESHOLD = 36
"""The most bits in which copies differ."""
FLAT = 2.0
"""Grey levels of deviation under which a hash would be of noise only."""

_WHOLE = (0.0, 1.0)
_BLOCK = 2**20  # Candidates that are compared at once: 72 MB.


def _windows() -> tuple[tuple[tuple[float, float], tuple[float, float]], ...]:
  made = []
  # The narrower the part, the more of them it takes.
  for size, count in ((0.95, 3), (0.9, 5), (0.8, 7)):
    starts = [(1 - size) * i / (count - 1) for i in range(count)]
    parts = [(start, start + size) for start in starts]
    made += itertools.product(parts, parts)
    for end in (parts[0], parts[-1]):
      made += [(_WHOLE, end), (end, _WHOLE)]
  return tuple(made)


WINDOWS = _windows()
"""Rows and columns of 95 parts: 95, 90 and 80 % of both sides or of one."""


class Pair(NamedTuple):
  """A copy and what is kept in its place, by row, and the bits between."""

  copy: int
  kept: int
  distance: int


def freedom(licence: str) -> int:
  """How much a licence asks: 0 is the freest, 18 for one that is unknown.

  Public domain, CC0, BY, BY-SA, BY-ND, BY-NC, BY-NC-SA, BY-NC-ND.
  """
  terms = licences.parse(licence)
  if terms is None:
    return 18
  asked = (
    8 * (not terms.commercial)
    + 4 * (not terms.derivatives)
    + 2 * terms.share_alike
    + terms.attribution
  )
  return 1 + asked if asked or terms.id == "CC0-1.0" else 0


def signature(
  data: bytes, *, max_pixels: int = images.MAX_PIXELS
) -> UInt8[np.ndarray, "32 32"]:
  """The luminance of a picture at 32 x 32, whatever its shape.

  Raises:
    images.ImageError: it cannot be decoded.
  """
  # A JPEG decoded at an eighth still has four times the pixels.
  side = 4 * SIDE
  image = images.decode(data, at_least=(side, side), max_pixels=max_pixels)
  return luminance(image)


def luminance(
  image: UInt8[np.ndarray, "H W 3"],
) -> UInt8[np.ndarray, "32 32"]:
  """The signature of a picture that is decoded."""
  grey = Image.fromarray(image).convert("L")
  return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def _cosines(low: float, high: float) -> Float32[np.ndarray, "16 32"]:
  """Cosines over a part of [0, 1], integrated over each of the values."""
  edges = np.clip((np.arange(SIDE + 1) / SIDE - low) / (high - low), 0, 1)
  k = np.arange(1, FREQUENCIES + 1)[:, None]
  return np.diff(np.sin(np.pi * k * edges) / (np.pi * k)).astype(np.float32)


# The lowest frequencies first.
_FREQUENCY = np.add.outer(np.arange(FREQUENCIES), np.arange(FREQUENCIES))
_ORDER = np.argsort(_FREQUENCY, axis=None, kind="stable")
# Cosines of odd frequency change their sign when the columns are reversed.
_MIRROR = (np.arange(BITS) % FREQUENCIES % 2 == 0)[_ORDER]


def bits(
  signatures: UInt8[np.ndarray, "n 32 32"],
  rows: tuple[float, float] = _WHOLE,
  columns: tuple[float, float] = _WHOLE,
) -> Bool[np.ndarray, "n 256"]:
  """The hashes of the parts of pictures, a bit in each place."""
  found = _cosines(*rows) @ signatures.astype(np.float32)
  found = (found @ _cosines(*columns).T).reshape(-1, BITS)
  return found[:, _ORDER] > 0


def mirrored(hashes: Bool[np.ndarray, "n 256"]) -> Bool[np.ndarray, "n 256"]:
  """The hashes of the same pictures, left and right exchanged."""
  return hashes ^ _MIRROR


def pack(hashes: Bool[np.ndarray, "n 256"]) -> UInt64[np.ndarray, "n 4"]:
  """32 bytes a hash."""
  packed = np.packbits(hashes, axis=1)
  return np.ascontiguousarray(packed).view(np.uint64)


def distance(
  a: UInt64[np.ndarray, "n 4"], b: UInt64[np.ndarray, "n 4"]
) -> Int64[np.ndarray, " n"]:
  """In how many bits packed hashes differ, one by one."""
  return np.bitwise_count(a ^ b).sum(1, dtype=np.int64)


def bands(
  hashes: Bool[np.ndarray, "n 256"], width: int
) -> UInt32[np.ndarray, "n bands"]:
  """Cuts hashes into whole numbers of `width` bits, 32 at most."""
  count = BITS // width
  padded = np.zeros((len(hashes), count, 32), bool)
  padded[..., 32 - width :] = hashes[:, : count * width].reshape(
    -1, count, width
  )
  return np.packbits(padded, axis=2).view(">u4")[..., 0].astype(np.uint32)


class Index(NamedTuple):
  """Hashes by the values of their bands.

  Attributes:
    hashes: packed.
    width: bits in a band.
    starts: for each band, where in its order each value begins.
    orders: for each band, the rows sorted by its value.
  """

  hashes: UInt64[np.ndarray, "n 4"]
  width: int
  starts: list[np.ndarray]
  orders: list[np.ndarray]


def index(hashes: UInt64[np.ndarray, "n 4"], width: int | None = None) -> Index:
  """Makes an index, by default of one hash a value of a band.

  It takes 4 bytes a hash and 4 a value for each band: 70 million hashes make 9
  bands of 27 bits, 7.4 GB, beside the hashes' own 2.2 GB.
  """
  width = width or min(27, max(12, (max(1, len(hashes) - 1)).bit_length()))
  count = BITS // width
  values = np.empty((count, len(hashes)), np.uint32)
  for low in range(0, len(hashes), _BLOCK):
    part = np.unpackbits(hashes[low : low + _BLOCK].view(np.uint8), axis=1)
    values[:, low : low + _BLOCK] = bands(part.astype(bool), width).T
  starts, orders = [], []
  for value in values:
    orders.append(np.argsort(value, kind="stable").astype(np.int32))
    sizes = np.bincount(value, minlength=2**width)
    starts.append(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
  return Index(hashes, width, starts, orders)


def search(
  table: Index, probes: Bool[np.ndarray, "n 256"], threshold: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields (probe, row, distance) of what shares a band and is near."""
  packed, values = pack(probes), bands(probes, table.width)
  for band, (starts, order) in enumerate(
    zip(table.starts, table.orders, strict=True)
  ):
    begin = starts[values[:, band]].astype(np.int64)
    sizes = starts[values[:, band].astype(np.int64) + 1] - begin
    ends = np.cumsum(sizes)
    # Many pictures may share a value; candidates are taken a block at a time.
    for low in range(0, int(ends[-1]) if len(ends) else 0, _BLOCK):
      place = np.arange(low, min(low + _BLOCK, int(ends[-1])))
      probe = np.searchsorted(ends, place, side="right")
      row = order[begin[probe] + place - (ends - sizes)[probe]]
      far = distance(packed[probe], table.hashes[row])
      near = far <= threshold
      yield probe[near], row[near].astype(np.int64), far[near]


def find(
  read: Callable[[], Iterable[UInt8[np.ndarray, "_ 32 32"]]],
  keys: np.ndarray,
  rank: Int64[np.ndarray, " n"],
  *,
  threshold: int = THRESHOLD,
  crops: bool = True,
  width: int | None = None,
) -> list[Pair]:
  """Finds what to leave out so that no two pictures left are near.

  The picture of the lowest rank is kept, then the next that is not near a kept
  one, and so on; so each copy is near what is kept in its place, and chains of
  pictures that are less and less alike do not become one.

  Args:
    read: yields the signatures in blocks, twice the same. They are not kept:
      memory is about 250 bytes a picture, for hashes, keys of 64 bytes, places
      and `index`.
    keys: of the pictures; equal ones are exact copies.
    rank: the lower, the rather kept; no two are equal.
    threshold: most bits between copies; under 0 finds exact copies only.
    crops: whether parts of pictures are compared too, at 96 times the work.
    width: bits in a band; None for what `index` chooses.

  Returns:
    The copies by row.
  """
  count = len(rank)
  kept = np.arange(count)
  between = np.zeros(count, np.int64)
  # Equal keys, then equal hashes, stand for each other.
  _, group = np.unique(keys, return_inverse=True)
  leader = _leaders(group.reshape(-1), rank)
  if threshold >= 0 and count:
    hashes, flat = _hash_all(read, count)
    packed = hashes.view([("", np.uint64)] * 4)[:, 0]
    _, group = np.unique(packed, return_inverse=True)
    group = np.where(flat, len(group) + leader, group.reshape(-1))
    leader = _leaders(np.unique(group, return_inverse=True)[1], rank)
    own = np.flatnonzero((leader == kept) & ~flat)
    table = index(hashes[own], width)
    for better, worse, far in _edges(read, table, own, rank, threshold, crops):
      if kept[better] == better and kept[worse] == worse:
        kept[worse], between[worse] = better, far
  copies = np.flatnonzero(kept[leader] != np.arange(count))
  return [
    Pair(int(row), int(kept[leader[row]]), int(between[leader[row]]))
    for row in copies
  ]


def _leaders(group: np.ndarray, rank: np.ndarray) -> np.ndarray:
  """For each row, the row of lowest rank in its group."""
  order = np.lexsort((rank, group))
  first = np.r_[True, np.diff(group[order]) != 0][: len(order)]
  leader = np.empty(len(group), np.int64)
  leader[order] = order[first][np.cumsum(first) - 1]
  return leader


def _hash_all(read, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Packed hashes of all signatures, and which are flat."""
  hashes, flat = np.empty((count, 4), np.uint64), np.empty(count, bool)
  low = 0
  for block in read():
    high = low + len(block)
    hashes[low:high] = pack(bits(block))
    flat[low:high] = block.std((1, 2)) < FLAT
    low = high
  if low != count:
    raise ValueError(f"{low} signatures; expected {count}, as there are keys")
  return hashes, flat


def _edges(
  read, table: Index, own: np.ndarray, rank: np.ndarray, threshold, crops
) -> list[tuple[int, int, int]]:
  """(better, worse, distance) of near pairs, the lowest ranks first."""
  windows = [(_WHOLE, _WHOLE), *(WINDOWS if crops else ())]
  found = [np.empty((0, 3), np.int64)]
  low = 0
  for block in read():
    inside = own[slice(*np.searchsorted(own, (low, low + len(block))))]
    chosen = block[inside - low]
    low += len(block)
    parts = []
    for rows, columns in windows if len(chosen) else ():
      plain = bits(chosen, rows, columns)
      for probes in (plain, mirrored(plain)):
        for probe, row, far in search(table, probes, threshold):
          one, other = inside[probe], own[row]
          swap = rank[one] > rank[other]
          better = np.where(swap, other, one)
          worse = np.where(swap, one, other)
          parts.append(np.stack([better, worse, far], 1)[one != other])
    if parts:
      found.append(np.unique(np.concatenate(parts), axis=0))
  edges = np.concatenate(found)
  better, worse, far = edges.T
  order = np.lexsort((far, rank[worse], rank[better]))
  return [tuple(edge) for edge in edges[order].tolist()]
