# SPDX-License-Identifier: Apache-2.0
"""What each of several changes to a config is worth, one on top of the other.

The figure of CommonCanvas (arXiv 2310.16825, figure 6), which builds its
speed-up step by step, for whatever measures a config: a plan or a machine.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax import saxutils

import ml_collections

from cc_jax.core import config as configs
from cc_jax.core import files, log, versions
from cc_jax.data import charts


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
  result: str,
  about: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """Measures a config with the first of its changes, the first two, and so on.

  Those of `config.ablation_steps`, and what `result` already has of others.
  Each is written as soon as it is known, so that a process that is killed loses
  none; what was measured of the same config by the same code is not again.

  Args:
    config: with `ablation` and `ablation_steps`.
    measure: a config -> "images_per_s_per_chip", and what else is to be kept;
      without it where that config cannot run.
    result: a file; the picture is ablation.svg beside it.
    about: where it is measured, for the file and as a part of what is the same.

  Returns:
    The rows of `table`.

  Raises:
    ValueError: a change that cannot be read, or a step that there is not.
  """
  listed = changes(config.ablation)
  chosen = config.ablation_steps or tuple(range(len(listed)))
  for step in chosen:
    if not isinstance(step, int) or not 0 <= step < len(listed):
      raise ValueError(
        f"ablation_steps={config.ablation_steps}; expected numbers from 0 to "
        f"{len(listed) - 1}"
      )
  tried = [
    (change, made, identity(made, about))
    for change, made in zip(listed, cumulative(config, listed), strict=True)
  ]
  before = known(result)
  found = {
    step: before[name]
    for step, (_, _, name) in enumerate(tried)
    if name in before
  }
  for step in sorted({*chosen}):
    change, made, name = tried[step]
    if step in found:
      log.announce("ablation", f"{change.name}: measured before")
      continue
    log.announce("ablation", change.name)
    found[step] = {"of": name, "figures": dict(measure(made))}
    if log.is_first():
      write(result, {**about, "ablation": table(listed, found)})
  rows = table(listed, found)
  if log.is_first():
    write(result, {**about, "ablation": rows})
  return rows


def cumulative(
  config: ml_collections.ConfigDict, listed: Sequence[Change]
) -> Iterator[ml_collections.ConfigDict]:
  """The config with the first change, the first two, and so on."""
  made = config.copy_and_resolve_references()
  for change in listed:
    made = made.copy_and_resolve_references()
    with made.unlocked():
      for field, value in change.fields:
        configs.override(made, f"config.{field}", value)
    yield made


def identity(
  config: ml_collections.ConfigDict, about: Mapping[str, Any]
) -> str:
  """A hash of all that a measured figure depends on."""
  fields = config.to_dict()
  for name in ("ablate", "ablation", "ablation_steps"):
    fields.pop(name, None)
  whole = [fields, dict(about), versions.digest()]
  return files.sha256(files.to_json(whole).encode())


def known(result: str) -> dict[str, dict[str, Any]]:
  """The rows of a file of results by their `identity`, if it has some."""
  if not files.path(result).exists():
    return {}
  rows = files.read_json(result).get("ablation", [])
  return {row["of"]: row for row in rows if "of" in row}


def table(
  listed: Sequence[Change], found: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Rows of those steps that were measured.

  Returns:
    Of each its number, name, fields and figures, "speedup" over the first that
    runs and "times" over the one before. Where steps before it have not been
    measured, they are None.
  """
  rows: list[dict[str, Any]] = []
  first = before = None
  for step, change in enumerate(listed):
    if step not in found:
      before = None
      continue
    figures = found[step]["figures"]
    rate = figures.get("images_per_s_per_chip")
    if rate and first is None and set(range(step)) <= found.keys():
      first = rate
    rows.append(
      {
        "step": step,
        "name": change.name,
        "fields": dict(change.fields),
        "images_per_s_per_chip": rate,
        "speedup": rate / first if rate and first else None,
        "times": rate / before if rate and before else None,
        "figures": dict(figures),
        "of": found[step]["of"],
      }
    )
    before = rate or before
  return rows


def write(result: str, found: Mapping[str, Any]) -> None:
  """Results, and the picture as ablation.svg beside them."""
  files.write_json(result, found)
  folder = result.rpartition("/")[0] or "."
  files.write_atomic(f"{folder}/ablation.svg", picture(found["ablation"]))


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """A table of Markdown."""
  made = ["| step | images/s a chip | times | in all |", "|---|---|---|---|"]
  share = lambda value: f"{value:.2f}" if value else ""
  for row in rows:
    rate = row["images_per_s_per_chip"]
    cells = (
      [f"{rate:.4g}", share(row["times"]), share(row["speedup"])]
      if rate
      else ["does not fit", "", ""]
    )
    made.append(f"| {row['name']} | {' | '.join(cells)} |")
  return made


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
  """Bars of the speed-up, as SVG; of images a second where it is not known."""
  rates = [row["images_per_s_per_chip"] or 0 for row in rows]
  height, top, left, width, right = 34, 16, 290, 330, 140
  tall = 2 * top + len(rows) * height
  shapes = []
  for number, (row, rate) in enumerate(zip(rows, rates, strict=True)):
    y = top + number * height
    label, more = "does not fit", ""
    if rate:
      label = f"{row['speedup']:.2f}x" if row["speedup"] else f"{rate:.4g}/s"
      more = f" (times {row['times']:.2f})" if row["times"] else ""
    length = width * rate / (max(rates) or 1)
    shapes.append(
      f'<text x="{left - 10}" y="{y + 21}" text-anchor="end">'
      f"{saxutils.escape(row['name'])}</text>"
      f'<rect class="bar" x="{left}" y="{y + 4}" width="{length:.1f}" '
      f'height="{height - 8}" rx="2"/>'
      f'<text x="{left + length + 8:.1f}" y="{y + 21}">'
      f'<tspan class="value">{label}</tspan>{more}</text>'
    )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + right}" '
    f'height="{tall}" role="img" aria-label="speed, step by step">'
    f"<style>{charts.STYLE}.bar{{fill:{charts.COLOURS[0]}}}"
    ".value{font-weight:600;fill:#2f2d29}</style>"
    '<rect width="100%" height="100%" fill="white"/>\n'
    f"{chr(10).join(shapes)}\n"
    f'<path class="axis" d="M{left} {top - 4}V{tall - top + 4}"/>\n</svg>\n'
  )
