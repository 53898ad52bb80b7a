# SPDX-License-Identifier: Apache-2.0
"""One HTML page of a dataset: numbers, charts and a gallery, in one file.

The page needs neither a network nor JavaScript, which only filters and turns
pages; its content security policy forbids both other scripts and all requests.
Titles, authors and addresses come from strangers: everything is escaped here,
and only http addresses become links. page.html is its frame, page.js its
script.
"""

import base64
from collections.abc import Mapping, Sequence
import hashlib
import html
import math
import pathlib
import string
from typing import NamedTuple

import numpy as np

_HERE = pathlib.Path(__file__).parent
# Places of ticks within a factor of ten.
_TICKS = (1, 1.5, 2, 3, 4, 5, 6, 8)
_WIDE = 400  # Of charts, in pixels.
RIGHT = ' class="right"'
PAGE = 48
"""Pictures that are shown at once."""


class Picture(NamedTuple):
  """One picture of the gallery.

  Attributes:
    image: a small WebP.
    width: of the original, in pixels.
    height: of the original.
    text: its caption, or its title.
    author: "" for none.
    licence: its id.
    licence_url: of the deed.
    page_url: where it came from; "" for nowhere.
  """

  image: bytes
  width: int
  height: int
  text: str
  author: str
  licence: str
  licence_url: str
  page_url: str


def escape(value: object) -> str:
  """Text as HTML, in elements and in quoted attributes."""
  return html.escape(str(value), quote=True)


def link(url: str, text: str) -> str:
  """A link, or only its text where the address is none to follow."""
  if not url.lower().startswith(("http://", "https://")):
    return escape(text)
  return f'<a href="{escape(url)}" rel="noreferrer">{escape(text)}</a>'


def totals(values: Mapping[str, str]) -> str:
  """Numbers in large type, each over its name."""
  rows = (
    f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
    for name, value in values.items()
  )
  return f'<dl class="totals">{"".join(rows)}</dl>'


def section(title: str, *parts: str) -> str:
  """A heading and what is under it, side by side where there is room."""
  divs = "".join(f"<div>{part}</div>" for part in parts if part)
  return (
    f"<section><h2>{escape(title)}</h2>"
    f'<div class="parts">{divs}</div></section>\n'
  )


def bars(
  title: str,
  counts: Mapping[str, int],
  urls: Mapping[str, str] | None = None,
  of: int | None = None,
) -> str:
  """A table with a bar a row, the largest first.

  Args:
    title: over the table.
    counts: by name.
    urls: what names link to, where they do.
    of: of what shares are; the sum of the counts when None.
  """
  whole = max(1, sum(counts.values()) if of is None else of)
  most = max([*counts.values(), 1])
  rows = []
  for name, count in sorted(counts.items(), key=lambda x: (-x[1], x[0])):
    label = link((urls or {}).get(name, ""), name)
    rows.append(
      f'<tr><th scope="row">{label}</th><td class="track">'
      f'<span style="width:{100 * count / most:.1f}%"></span></td>'
      f'<td class="number">{count:,}</td>'
      f'<td class="number share">{_percent(count / whole)}</td></tr>'
    )
  body = "".join(rows)
  return f"<table><caption>{escape(title)}</caption>{body}</table>"


def _percent(share: float) -> str:
  if 0 < share < 0.001:
    return "&lt; 0.1 %"
  return f"{100 * share:.1f} %"


def histogram(
  title: str,
  values: Sequence[float],
  *,
  logarithmic: bool = False,
  names: Mapping[float, str] | None = None,
) -> str:
  """An SVG of how values are distributed, with their median in its title.

  Args:
    title: over the chart.
    values: one or more, above 0 where `logarithmic`.
    logarithmic: whether steps are factors.
    names: ticks, instead of round numbers.
  """
  array = np.asarray(values, np.float64)
  low, high = float(array.min()), float(array.max())
  to = np.log if logarithmic else np.array
  if logarithmic:
    # One value alone would fill the chart.
    low, high = low / 1.15, high * 1.15
    edges = np.exp(np.linspace(np.log(low), np.log(high), 33))
  else:
    # Whole numbers each get a bar, or bars of as many of them.
    step = max(1, math.ceil((high - low + 1) / 40))
    low, high = low - 0.5, high + 0.5
    edges = low + step * np.arange(math.ceil((high - low) / step) + 1)
    high = float(edges[-1])
  counts, _ = np.histogram(array, edges)
  left, right = float(to(low)), float(to(high))
  place = lambda x: _WIDE * (float(to(x)) - left) / (right - left)
  shapes = []
  for start, end, count in zip(edges, edges[1:], counts, strict=False):
    if count:
      x, tall = place(start), max(1.5, 118 * count / counts.max())
      said = f"{_number(float(start))} to {_number(float(end))}: {count:,}"
      shapes.append(
        f'<rect x="{x + 0.75:.1f}" y="{134 - tall:.1f}" '
        f'width="{max(1, place(end) - x - 1.5):.1f}" height="{tall:.1f}">'
        f"<title>{said}</title></rect>"
      )
  top = int(np.argmax(counts))
  x = (place(float(edges[top])) + place(float(edges[top + 1]))) / 2
  anchor = "start" if x < 24 else "end" if x > _WIDE - 24 else "middle"
  shapes.append(
    f'<text x="{x:.1f}" y="9" text-anchor="{anchor}">{counts.max():,}</text>'
  )
  shapes.append(f'<line x1="0" x2="{_WIDE}" y1="134.5" y2="134.5"/>')
  ticks = names or {x: _number(x) for x in _ticks(low, high, logarithmic)}
  taken = -99.0
  for value, name in sorted(ticks.items()):
    x = place(value) if low <= value <= high else -1
    # Neither outside nor on the one before.
    if 0 <= x <= _WIDE and x - taken > 44:
      taken = x
      anchor = "start" if x < 16 else "end" if x > _WIDE - 16 else "middle"
      shapes.append(
        f'<text x="{x:.1f}" y="152" text-anchor="{anchor}">'
        f"{escape(name)}</text>"
      )
  middle = _number(float(np.median(array)))
  label = escape(f"{title}: {len(array):,} values, median {middle}")
  return (
    f'<h3>{escape(title)} <span class="soft">· median {middle}</span></h3>'
    f'<svg viewBox="0 0 {_WIDE} 158" role="img" aria-label="{label}">'
    f"{''.join(shapes)}</svg>"
  )


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
  """Round numbers in a range."""
  if not logarithmic:
    steps = (k * 10**ten for ten in range(9) for k in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= 8)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(step * i) for i in range(first, last + 1)]
  tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  found = [tick * 10.0**ten for ten in tens for tick in _TICKS]
  found = [tick for tick in found if low <= tick <= high]
  if len(found) > 9:
    found = [x for x in found if f"{x:e}"[0] in "125" and f"{x:e}"[2] == "0"]
  return found


def _number(value: float) -> str:
  if value >= 100 or value == round(value):
    return f"{value:,.0f}"
  return f"{value:.2g}"


def words(title: str, counts: Mapping[str, int]) -> str:
  """Words with how often they occur, in the order given."""
  items = (f"<li>{escape(w)} <b>{n:,}</b></li>" for w, n in counts.items())
  return f'<h3>{escape(title)}</h3><ul class="words">{"".join(items)}</ul>'


def paragraph(text: str) -> str:
  """A sentence or more."""
  return f"<p>{escape(text)}</p>"


def figure(picture: Picture) -> str:
  """One picture of the gallery with what is owed to its author."""
  data = base64.b64encode(picture.image).decode()
  owed = [link(picture.licence_url, picture.licence)]
  if picture.page_url:
    owed.append(link(picture.page_url, "source"))
  owed.append(f"{picture.width} &times; {picture.height}")
  text = picture.text or "untitled"
  author = picture.author or "author not stated"
  return (
    f'<figure data-licence="{escape(picture.licence)}">'
    f'<img src="data:image/webp;base64,{data}" alt="{escape(text)}" '
    'decoding="async">'
    f'<figcaption><span class="text">{escape(text)}</span>'
    f'<span class="from">{escape(author)}</span>'
    f'<span class="from">{" · ".join(owed)}</span>'
    "</figcaption></figure>\n"
  )


def gallery(pictures: Sequence[Picture], sample: str) -> str:
  """Pictures with what is owed to their authors, a page of them at a time.

  Args:
    pictures: in order.
    sample: a sentence over them.
  """
  held = sorted({picture.licence for picture in pictures})
  options = "".join(f"<option>{escape(licence)}</option>" for licence in held)
  return string.Template((_HERE / "gallery.html").read_text()).substitute(
    sample=escape(sample),
    options=options,
    figures="".join(figure(picture) for picture in pictures),
    page=PAGE,
  )


def table(
  title: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  """A table with names on the left; cells are text.

  Args:
    title: over it.
    head: of the columns; () for none.
    rows: of as many cells.
  """
  cell = lambda text: f'<td class="number">{escape(text)}</td>'
  top = ""
  if head:
    names = "".join(
      f'<th scope="col"{RIGHT if i else ""}>{escape(name)}</th>'
      for i, name in enumerate(head)
    )
    top = f"<thead><tr>{names}</tr></thead>"
  body = "".join(
    f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(cell, row[1:]))}'
    "</tr>"
    for row in rows
  )
  return (
    f"<table><caption>{escape(title)}</caption>{top}"
    f"<tbody>{body}</tbody></table>"
  )


def code(text: str) -> str:
  """Text as it is typed."""
  return f"<pre>{escape(text)}</pre>"


def picture(image: bytes, text: str, kind: str = "webp") -> str:
  """A picture as large as there is room, with a line under it.

  Args:
    image: a file.
    text: for the line, and for those who do not see it.
    kind: of the file.
  """
  data = base64.b64encode(image).decode()
  return (
    f'<figure class="wide"><img src="data:image/{kind};base64,{data}" '
    f'alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'
  )


def whole(title: str, *parts: str) -> str:
  """A heading and parts under one another, over the whole width."""
  return (
    f"<section><h2>{escape(title)}</h2>{''.join(filter(None, parts))}"
    "</section>\n"
  )


def render(
  title: str,
  subtitle: str,
  numbers: Mapping[str, str],
  sections: Sequence[str],
  footer: str,
  provenance: str,
  *,
  shown: str = "",
  source: str = "provenance.json",
) -> str:
  """The whole page.

  Args:
    title: of the page.
    subtitle: a sentence under it.
    numbers: for `totals`.
    sections: made by `section` and `whole`.
    footer: a sentence at the end.
    provenance: JSON text.
    shown: the `gallery`; "" for none, and then there is no script.
    source: the name of the JSON text.
  """
  script = (_HERE / "page.js").read_text() if shown else ""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return string.Template((_HERE / "page.html").read_text()).substitute(
    script=f"<script>{script}</script>\n" if shown else "",
    script_hash=f"sha256-{digest}",
    title=escape(title),
    subtitle=escape(subtitle),
    totals=totals(numbers),
    sections="".join(sections),
    gallery=shown,
    footer=escape(footer),
    provenance=escape(provenance),
    source=escape(source),
  )
