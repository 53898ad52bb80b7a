# SPDX-License-Identifier: Apache-2.0
"""The parts of a page of a dataset: sizes, captions, copies, speed."""

import collections
from collections.abc import Mapping, Sequence
import re
from typing import Any

import numpy as np

from cc_jax.data import nouns, page

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_RATIOS = {
  1 / 3: "1:3",
  1 / 2: "1:2",
  3 / 4: "3:4",
  1.0: "1:1",
  4 / 3: "4:3",
  2.0: "2:1",
  3.0: "3:1",
}


def sizes(found: list[tuple[int, int]]) -> str:
  """Charts of the sizes of pictures."""
  height, width = np.array(found, np.float64).T
  shorter = np.minimum(height, width).tolist()
  return page.section(
    "Sizes",
    page.histogram("Shorter side, pixels", shorter, logarithmic=True),
    page.histogram(
      "Megapixels", (height * width / 1e6).tolist(), logarithmic=True
    ),
    page.histogram(
      "Width to height",
      (width / height).tolist(),
      logarithmic=True,
      names=_RATIOS,
    ),
  )


def captions(
  texts: Sequence[str],
  lengths: Sequence[int] = (),
  flagged: Mapping[str, int] | None = None,
  total: int = 0,
) -> str:
  """Charts of the lengths of captions, of their words and their flags.

  Args:
    texts: captions that were drawn.
    lengths: of these, in tokens; or none.
    flagged: how many of all captions have each flag.
    total: of all captions.
  """
  split = [_WORD.findall(text.lower()) for text in texts]
  counts = collections.Counter(word for words in split for word in words)
  once = sum(count == 1 for count in counts.values())
  most = dict(sorted(counts.items(), key=lambda x: (-x[1], x[0]))[:40])
  different = len(set(texts))
  return page.section(
    "Captions",
    page.histogram("Words in a caption", [float(len(x)) for x in split])
    + page.paragraph(
      f"{len(texts):,} captions, {different:,} of them different; "
      f"{len(counts):,} different words, {once:,} of them seen once."
    ),
    page.histogram("Tokens in a caption", [float(n) for n in lengths])
    if lengths
    else "",
    page.bars("Flagged, by reason", flagged, of=total) if flagged else "",
    page.words("Most frequent words", most),
  )


def vocabulary(texts: list[str]) -> str:
  """The nouns of captions, in the numbers of PixArt-alpha's table 1."""
  found = nouns.vocabulary(texts)
  share = found.valid / max(1, found.distinct)
  each = found.total / max(1, found.captions)
  return page.section(
    "Nouns",
    page.totals(
      {
        "valid nouns": f"{found.valid:,}",
        "different nouns": f"{found.distinct:,}",
        "of them valid": f"{share:.1%}",
        "nouns": f"{found.total:,}",
        "nouns an image": f"{each:.1f}",
      }
    )
    + page.paragraph(
      f"A noun is valid that is seen more than {nouns.OFTEN} times in these "
      f"{found.captions:,} captions (arXiv 2310.00426, table 1). Nouns of "
      "English are found by rules, which err on about one in ten."
    ),
    page.words("Most frequent nouns", found.most) if found.most else "",
  )


def waited(noted: Mapping[str, Any]) -> str:
  """What a stage waited for, as `overlap.record` noted."""
  images, spent = noted["images"], dict(noted["seconds"])
  compiled = spent.pop("compile", 0.0)
  each = {name: round(1e6 * n / images) for name, n in spent.items()}
  slowest = max(each, key=lambda name: each[name])
  rate = images / max(sum(spent.values()), 1e-9)
  return page.section(
    f"Speed of cc-jax {noted['stage']}",
    page.bars("Waited for, microseconds an image", each),
    page.paragraph(
      f"{slowest.capitalize()} limits: {rate:,.1f} images/s over the "
      f"{images:,} images of the last run of its first process, which compiled "
      f"for {compiled:.1f} s besides. Its {noted['threads']} threads decoded "
      "while the device computed; what others hid is not counted."
    ),
  )


def copies(summary: dict[str, Any]) -> str:
  """What `cc-jax deduplicate` found."""
  near = {int(bits): count for bits, count in summary["near"].items()}
  found = {
    "the same bytes": summary["exact"],
    "0 to 9 bits apart": sum(n for b, n in near.items() if b < 10),
    "10 to 19 bits": sum(n for b, n in near.items() if 10 <= b < 20),
    "20 to 29 bits": sum(n for b, n in near.items() if 20 <= b < 30),
    "30 bits or more": sum(n for b, n in near.items() if b >= 30),
  }
  found = {name: count for name, count in found.items() if count}
  return page.section(
    "Copies",
    page.bars("Copies of another image", found, of=summary["read"])
    if found
    else page.paragraph("No image is a copy of another one."),
    page.paragraph(
      f"{summary['read']:,} images were compared by hashes of 256 bits; up to "
      f"{summary['settings']['threshold']} bits apart, one is a copy, and the "
      "one with the freest licence, then the largest, is kept."
    ),
  )
