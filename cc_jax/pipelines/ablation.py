# SPDX-License-Identifier: Apache-2.0
"""What each of several changes to a config is worth, one on top of the other.

The figure of CommonCanvas (arXiv 2310.16825, figure 6), which builds its
speed-up step by step, for whatever measures a config: a plan or a machine.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax import saxutils

import ml_collections

from cc_jax.core import config as configs
from cc_jax.core import files


class Change(NamedTuple):
  """A step of an ablation: what it is called, and the fields that it sets."""

  name: str
  fields: tuple[tuple[str, str], ...]


def changes(texts: Sequence[str]) -> list[Change]:
  """Reads "NAME: field=value field=value".

  Raises:
    ValueError: a text of another form, or none at all.
  """
  made = []
  for text in texts:
    name, colon, rest = text.partition(":")
    fields = tuple(tuple(word.split("=", 1)) for word in rest.split())
    if not colon or not fields or any(len(field) != 2 for field in fields):
      raise ValueError(
        f"ablation has {text!r}; expected 'NAME: field=value field=value'"
      )
    made.append(Change(name.strip(), fields))
  if not made:
    raise ValueError("ablation is empty; expected 'NAME: field=value', ...")
  return made


def run(
  config: ml_collections.ConfigDict,
  measure: Callable[[ml_collections.ConfigDict], Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Measures a config with the first of its changes, the first two, and so on.

  Args:
    config: with `ablation`.
    measure: a config -> "images_per_s_per_chip", and what else is to be kept;
      without it where that config cannot run.

  Returns:
    For each step its name, figures, "speedup" over the first that runs and
    "step" over the one before.
  """
  made = config.copy_and_resolve_references()
  rows: list[dict[str, Any]] = []
  first = before = None
  for change in changes(config.ablation):
    with made.unlocked():
      for field, value in change.fields:
        configs.override(made, f"config.{field}", value)
    found = measure(made)
    rate = found.get("images_per_s_per_chip")
    first = rate if first is None else first
    rows.append(
      {
        "name": change.name,
        "fields": dict(change.fields),
        "images_per_s_per_chip": rate,
        "speedup": rate and rate / first,
        "step": rate and before and rate / before,
        "figures": dict(found),
      }
    )
    before = rate or before
  return rows


def write(result: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """The picture, as ablation.svg beside the file of results."""
  folder = result.rpartition("/")[0] or "."
  files.write_atomic(f"{folder}/ablation.svg", picture(rows))


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """A table of Markdown."""
  table = ["| step | images/s a chip | times | in all |", "|---|---|---|---|"]
  for row in rows:
    rate = row["images_per_s_per_chip"]
    cells = (
      [f"{rate:.1f}", f"{row['step'] or 1:.2f}", f"{row['speedup']:.2f}"]
      if rate
      else ["does not fit", "", ""]
    )
    table.append(f"| {row['name']} | {' | '.join(cells)} |")
  return table


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
  """Bars of the speed-up, as SVG."""
  most = max([row["speedup"] or 0 for row in rows] + [1])
  height, left, width = 28, 220, 420
  bars = []
  for number, row in enumerate(rows):
    y, speed = 10 + number * height, row["speedup"] or 0
    label = f"{speed:.2f}x" if speed else "does not fit"
    length = width * speed / most
    bars.append(
      f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">'
      f"{saxutils.escape(row['name'])}</text>"
      f'<rect x="{left}" y="{y}" width="{length:.1f}" height="20" '
      'fill="#4a7ab5"/>'
      f'<text x="{left + length + 6:.1f}" y="{y + 14}">{label}</text>'
    )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 100}" '
    f'height="{20 + len(rows) * height}" font-family="sans-serif" '
    f'font-size="13">\n{chr(10).join(bars)}\n</svg>\n'
  )
