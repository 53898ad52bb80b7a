# SPDX-License-Identifier: Apache-2.0
"""How attention_kernel.py's work is cut, such that it fits in fast memory."""

from typing import NamedTuple

LANES = 128
# Tokens up to which a length need not be a whole number of lanes.
SHORT = 512
# Tokens of a block at most, and elements of a head in one.
LONGEST, AREA = 1024, 1024 * 144
# Tokens of a piece, of which the products are in registers at once; and pieces
# of a program, which is longer to compile with each.
PIECE, PIECES = 256, 16
# Elements of a head's gradient of queries that are summed in fast memory.
SUMMED = 2**20


def fits(tokens: int, width: int, heads: int) -> bool:
  """Whether queries [D T] are regular enough."""
  return tokens % step(tokens) == 0 and width // heads % 8 == 0


def step(tokens: int) -> int:
  """What a number of tokens has to be a multiple of."""
  return 16 if tokens <= SHORT else LANES


class Cut(NamedTuple):
  """How the work is cut: a program has some heads, queries and keys.

  Attributes:
    size: K of a head.
    group: heads of a program.
    queries: of a program.
    keys: of a program.
    parts: of all queries, each with sums of its own for keys.
  """

  size: int
  group: int
  queries: int
  keys: int
  parts: int


def cut(
  width: int, tokens: int, sources: int, heads: int, itemsize: int
) -> Cut:
  """For queries [D T] and keys [D S] of so many bytes a number."""
  size = width // heads
  area = AREA * 2 // itemsize
  queries, keys = (block(length, area // size) for length in (tokens, sources))
  each = (queries // piece(queries)) * (keys // piece(keys))
  group = max(
    n
    for n in range(1, heads + 1)
    if heads % n == 0
    and (n == 1 or (n * each <= PIECES and n * size * tokens <= SUMMED))
  )
  blocks = tokens // queries
  parts = next(
    n
    for n in range(1, blocks + 1)
    if blocks % n == 0 and (n == blocks or size * tokens <= n * SUMMED)
  )
  return Cut(size, group, queries, keys, parts)


def block(tokens: int, most: int) -> int:
  """The longest block that tokens divide into."""
  most = max(min(most, LONGEST), LANES)
  if tokens <= min(most, SHORT):
    return tokens
  lanes = range(LANES, most + 1, LANES)
  return max((n for n in lanes if tokens % n == 0), default=tokens)


def piece(block: int) -> int:
  """Tokens of a block's pieces."""
  return next((n for n in (PIECE, LANES) if block % n == 0), block)


def pieces(cut: Cut) -> list[tuple[int, slice, slice, slice]]:
  """The pieces of a program: a head, its channels, queries and keys."""
  return [
    (n, head, t, s)
    for n, head in enumerate(heads(cut))
    for t in _slices(cut.queries)
    for s in _slices(cut.keys)
  ]


def heads(cut: Cut) -> list[slice]:
  """The channels of each head of a program."""
  return [slice(n * cut.size, (n + 1) * cut.size) for n in range(cut.group)]


def _slices(block: int) -> list[slice]:
  step = piece(block)
  return [slice(start, start + step) for start in range(0, block, step)]
