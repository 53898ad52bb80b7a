# SPDX-License-Identifier: Apache-2.0
"""The numbers of an evaluation as a table and as a picture."""

from collections.abc import Mapping
from typing import Any

from cc_jax.data import charts
from cc_jax.metrics import numbers


def sweep(found: Mapping[str, Any]) -> dict[float, Mapping[str, Any]]:
  """The numbers by guidance."""
  return {
    float(key.removeprefix("guidance_")): value
    for key, value in found.items()
    if key.startswith("guidance_")
  }


def table(found: Mapping[str, Any]) -> str:
  """All numbers as a table of Markdown, a row a metric."""
  rows = sweep(found)
  names = dict.fromkeys(name for one in rows.values() for name in one)
  head = ["metric", *(f"guidance {one:g}" for one in rows)]
  lines = [head, ["---"] * len(head)]
  reasons = {}
  for name in names:
    cells = []
    for one in rows.values():
      value = one.get(name)
      if name == "memorisation":
        cells.append(f"{value['copies']:,} copies")
      elif isinstance(value, Mapping):
        cells.append(numbers.text(value))
        if value["value"] is None:
          reasons[name] = value["why"]
      else:
        cells.append(f"{value:,}")
    lines.append([name, *cells])
  text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
  told = "".join(f"\nNo {name}: {why}.\n" for name, why in reasons.items())
  return (
    f"{found['model']}, {found['prompts']['of']:,} prompts of "
    f"{found['prompts']['name']}; 95 % bootstrap intervals over images.\n\n"
    f"{text}\n{told}"
  )


def curve(found: Mapping[str, Any]) -> str | None:
  """FID over CLIP score as a file; None where one of them is not there."""
  drawn = draw(found)
  return charts.alone(drawn) if drawn else None


def draw(found: Mapping[str, Any]) -> str | None:
  """The same as a part of a page."""
  points = []
  for guidance, row in sweep(found).items():
    y = next((row[n] for n in ("fid", "fid_blur_0") if n in row), None)
    x = next((row[n] for n in row if n.startswith("clip_score")), None)
    if x and y and x["value"] is not None and y["value"] is not None:
      bounds = [(one["low"], one["high"]) for one in (x, y)]
      points.append(
        charts.Point(x["value"], y["value"], f"{guidance:g}", *bounds)
      )
  if not points:
    return None
  title = "FID over CLIP score, a point for each guidance"
  return charts.chart(title, {"guidance": points}, x="CLIP score", y="FID")
