# SPDX-License-Identifier: Apache-2.0
"""The numbers of an evaluation as a table and as a picture."""

from collections.abc import Mapping
import json
import os
from typing import Any

from cc_jax.data import charts, page
from cc_jax.metrics import numbers
from cc_jax.pipelines import card


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
      if name == "memorisation" and value["copies"] is None:
        cells.append("none")
        reasons["count of copies"] = value["why"]
      elif name == "memorisation":
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
  title = "FID over CLIP score, a point for each guidance, 95 % intervals"
  return charts.chart(title, {"guidance": points}, x="CLIP score", y="FID")


def section(found: Mapping[str, Any]) -> str:
  """A part of a page: all of metrics.json, with the intervals of images."""
  evaluation = found.get("evaluation", {})
  parts = []
  rows = sweep(evaluation)
  if rows:
    names = dict.fromkeys(name for row in rows.values() for name in row)
    body = [
      (name, *(_cell(row.get(name)) for row in rows.values()))
      for name in names
      if name != "memorisation"
    ]
    parts.append(
      page.table(
        "Over guidance",
        ("metric", *(f"{one:g}" for one in rows)),
        body,
      )
    )
    told = evaluation["prompts"]
    parts.append(
      page.paragraph(
        f"Images of {told['of']:,} prompts of {os.path.basename(told['name'])} "
        f"(sha256 {told['hash'][:12]}), seed {evaluation['recipe']['seed']}. "
        "In brackets 95 % bootstrap intervals over images."
      )
    )
    reasons = {
      value["why"]
      for row in rows.values()
      for value in row.values()
      if isinstance(value, Mapping) and value.get("why")
    }
    parts += [page.paragraph(f"{one}.") for one in sorted(reasons)]
    if drawn := draw(evaluation):
      parts.append(f'<div class="chart">{drawn}</div>')
  plain = [
    (name, _cell(value))
    for name, value in card.flat(
      {k: v for k, v in found.items() if k != "evaluation"}
    )
  ]
  if plain:
    parts.append(page.table("Of the checkpoint", (), plain))
  return page.whole("Metrics", *parts) if parts else ""


def _cell(value: Any) -> str:
  if isinstance(value, Mapping):
    return numbers.text(value) if "value" in value else json.dumps(value)
  if isinstance(value, float):
    return f"{value:.4g}"
  if isinstance(value, int):
    return f"{value:,}"
  return "" if value is None else str(value)
