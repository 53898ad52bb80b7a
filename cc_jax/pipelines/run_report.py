# SPDX-License-Identifier: Apache-2.0
"""One HTML page of a training: what was done, with what, and what came out.

All of it comes from files of the work folder: metrics.jsonl, metrics.json,
previews/, config.json, and the provenance of the data. What is not there is
left out. Paths are shown without what is private in them.
"""

import collections
from collections.abc import Mapping, Sequence
import io
import itertools
import json
import math
import os
import re
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from cc_jax.core import files, hardware
from cc_jax.data import charts, licences, page, shards
from cc_jax.pipelines import card, evaluation_tables, memorisation

# Of a curve; more are averaged.
POINTS = 240
# Previews that are shown, from the first to the last.
PREVIEWS = 6
WIDE = 1100  # Pixels.
# A path of this machine, and its last part.
PRIVATE = re.compile(r"(?<![\w}/.:-])/(?:[^\s'\",:/]+/)*([^\s'\",:/]+)")


def is_noted(workdir: str) -> bool:
  """Whether a work folder says what was trained there."""
  place = files.path(workdir) / "config.json"
  return place.exists() and "train" in files.read_json(place)


def write(config: ml_collections.ConfigDict, workdir: str) -> str:
  """The page of the run of a work folder.

  Args:
    config: `report` has price and watts, `evaluate` the place of metrics.
    workdir: of the training.

  Raises:
    ValueError: nothing was trained there.
  """
  place = files.path(workdir)
  noted = files.read_json(place / "config.json")
  if "train" not in noted:
    raise ValueError(
      f"{workdir}/config.json notes no training; name the work folder of "
      "`cc-jax train`"
    )
  lines = read_lines(place / "metrics.jsonl")
  trained = noted["train"]
  used = trained["config"]
  spent = cost(config, trained, lines)
  found = {}
  if files.path(config.evaluate.metrics).exists():
    found = files.read_json(config.evaluate.metrics)
  totals = {}
  if lines:
    totals["steps"] = f"{lines[-1]['step']:,}"
    seen = lines[-1]["step"] * used["train"]["batch_size"]
    totals["images seen"] = f"{seen:,}"
  totals |= {name: value for name, value in spent[:1]}
  for name, value in headline(found).items():
    totals[name] = value
  sections = [
    curves(lines),
    samples(workdir),
    evaluation_tables.section(found),
    memorised(found, config.evaluate.folder),
    data(used),
    page.section(
      "Cost and energy",
      page.table("Devices and time", (), spent),
      page.paragraph(
        "Time is from the first to the last line of metrics.jsonl, pauses of "
        "more than ten minutes between lines left out. A price is on demand, "
        "of core/hardware.py or report.price; energy is that of the chips "
        "alone, or of whole machines without any, at report.watts each."
      ),
    ),
    commands(noted, workdir),
  ]
  code = trained.get("revision") or "unknown"
  return page.render(
    title=f"{used['name']}: a training",
    subtitle=f"{used['train']['task']}, cc_jax revision {code}.",
    numbers=totals,
    sections=[one for one in sections if one],
    footer="Made by cc-jax report --config.report.kind=run.",
    provenance=files.to_json(
      card.shown(
        {
          stage: {**one, "command": public(one.get("command", ""), workdir)}
          for stage, one in noted.items()
        },
        workdir,
      )
    ),
    source="config.json",
  )


def read_lines(path: Any) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; the last may be half written."""
  if not path.exists():
    return []
  text = path.read_text()
  whole = text[: text.rfind("\n") + 1].splitlines()
  return [json.loads(line) for line in whole if line.strip()]


def curves(lines: Sequence[Mapping[str, Any]]) -> str:
  """A chart of each metric over steps."""
  found: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
  for line in lines:
    for name, value in line.items():
      if name not in ("step", "time") and isinstance(value, int | float):
        found[name].append((float(line["step"]), float(value)))
  drawn = []
  for name, rows in found.items():
    if len(rows) > 1:
      points = [charts.Point(*row) for row in thinned(rows)]
      drawn.append(
        f"<h3>{page.escape(name.replace('_', ' '))} "
        f'<span class="soft">· last {rows[-1][1]:.4g}</span></h3>'
        + charts.chart(name, {name: points}, x="step", y=name, dots=False)
      )
  return page.section("Curves", *drawn) if drawn else ""


def thinned(rows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """At most POINTS of a curve, each the mean of as many neighbours."""
  parts = np.array_split(np.asarray(rows, np.float64), min(POINTS, len(rows)))
  return [tuple(part.mean(axis=0).tolist()) for part in parts]


def samples(workdir: str) -> str:
  """Previews over the training, and the last samples."""
  place = files.path(workdir)
  names = [one for one in files.listing(place / "previews") if one[0] != "."]
  chosen = np.unique(
    np.linspace(0, len(names) - 1, min(PREVIEWS, len(names))).round()
  ).astype(int)
  shown = []
  for number in chosen.tolist() if names else ():
    name = names[number]
    step = int(os.path.splitext(name)[0])
    shown.append(_figure(place / "previews" / name, f"After step {step:,}"))
  if (place / "samples.png").exists():
    shown.append(_figure(place / "samples.png", "Samples of the last weights"))
  return page.section("Samples over training", *shown) if shown else ""


def _figure(path: Any, text: str) -> str:
  picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
  picture.thumbnail((WIDE, 4 * WIDE), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, "WEBP", quality=85, method=4)
  return page.picture(file.getvalue(), text)


def headline(found: Mapping[str, Any]) -> dict[str, str]:
  """The numbers that a reader looks for first."""
  result = {}
  if isinstance(found.get("validation_loss"), float):
    result["validation loss"] = f"{found['validation_loss']:.4g}"
  rows = evaluation_tables.sweep(found.get("evaluation", {}))
  known = [
    (row["fid"]["value"], one)
    for one, row in rows.items()
    if row.get("fid", {}).get("value") is not None
  ]
  if known:
    best, guidance = min(known)
    result[f"FID, guidance {guidance:g}"] = f"{best:.4g}"
  return result


def memorised(found: Mapping[str, Any], folder: str) -> str:
  """What is most like a training image, and whose that is."""
  parts = []
  for one, row in evaluation_tables.sweep(found.get("evaluation", {})).items():
    told = row.get("memorisation")
    if not told:
      continue
    if told["copies"] is None:
      text = f"copies were not counted, since {told['why']}."
    else:
      text = (
        f"{told['copies']:,} of {told['copies_of']:,} images are copies of one "
        f"of {told['training_images']:,} training images by their hashes."
      )
    parts.append(page.paragraph(f"Guidance {one:g}: {text}"))
    inside = files.path(os.path.join(folder, f"guidance-{one:g}"))
    if (inside / memorisation.PICTURE).exists():
      parts.append(
        _figure(
          inside / memorisation.PICTURE,
          "Made, and beside it the training image most like it",
        )
      )
      listed = files.read_json(inside / memorisation.LIST)["nearest"]
      body = [
        (
          row["image"],
          f"{row['author'] or 'author not stated'}",
          row["licence"],
          row["page_url"] or row["key"][:12],
        )
        for row in listed
      ]
      parts.append(
        page.table(
          "Whose these training images are",
          ("image", "author", "licence", "page or key"),
          body,
        )
      )
  return page.whole("Nearest training images", *parts) if parts else ""


def data(used: Mapping[str, Any]) -> str:
  """Licences of what was trained on, and what was left out on the way."""
  folders = used["train"]["folders"]
  try:
    datasets = [shards.open(one) for one in folders]
  except ValueError:
    return page.whole(
      "Data",
      page.paragraph("The folders that it was trained on are gone."),
    )
  made = card.history(datasets)
  held: Mapping[str, int] = {}
  rows = []
  refused: collections.Counter[str] = collections.Counter()
  for folder, provenance in made:
    counts = (provenance or {}).get("counts", {})
    held = counts.get("licences") or held
    refused.update(counts.get("rejected", {}))
    rows.append(
      (
        f"{(provenance or {}).get('stage', 'gone')}: "
        f"{os.path.basename(folder)}",
        f"{counts.get('read', 0):,}",
        f"{counts.get('kept', 0):,}",
        f"{sum(counts.get('rejected', {}).values()):,}",
      )
    )
  urls = {one: t.url for one in held if (t := licences.parse(one))}
  attribution, share_alike, reserved = card.requirements(held)
  return page.section(
    "Data and licences",
    page.bars("Images by licence", held, urls)
    + page.paragraph(
      f"{attribution:,} require attribution, {share_alike:,} that adaptations "
      f"are shared alike, {reserved:,} may not be used commercially."
    ),
    page.table("How it was made", ("stage", "read", "kept", "refused"), rows)
    + (page.bars("Refused, by reason", refused) if refused else ""),
  )


def cost(
  config: ml_collections.ConfigDict,
  trained: Mapping[str, Any],
  lines: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str]]:
  """What a training took, as far as it is known."""
  rows = []
  gaps = [
    after["time"] - before["time"]
    for before, after in itertools.pairwise(lines)
  ]
  seconds = sum(gap for gap in gaps if 0 < gap < 600)
  if lines:
    rows.append(("time", _duration(seconds)))
  devices = trained.get("devices")
  if not devices:
    return [*rows, ("devices", "not noted")]
  rows.append(
    (
      "devices",
      f"{devices['count']} {devices['kind']}, hosts: {devices['hosts']}",
    )
  )
  chip = hardware.KINDS.get(devices["kind"], hardware.Hardware("unknown"))
  # A machine without accelerators shows as many devices as it is told to.
  unit, units = "chip", devices["count"] / chip.devices
  if devices["kind"] == "cpu":
    unit, units = "machine", devices["hosts"]
  hours = units * seconds / 3600
  rows.append((f"{unit}-hours", f"{hours:.4g}"))
  speeds = [one["images_per_second"] for one in lines if _speed(one)]
  if speeds:
    rows.append(("images a second", f"{float(np.median(speeds)):.4g}"))
  price = config.report.price or chip.price
  rows.append(
    ("cost", f"${hours * price:,.2f} at ${price:.2f} an hour and {unit}")
    if price
    else ("cost", "no price known; set report.price")
  )
  watts = config.report.watts
  rows.append(
    ("energy", f"{hours * watts / 1000:.4g} kWh at {watts:g} W a {unit}")
    if watts
    else ("energy", "no power known; set report.watts")
  )
  return rows


def _speed(line: Mapping[str, Any]) -> bool:
  value = line.get("images_per_second")
  return value is not None and math.isfinite(value)


def _duration(seconds: float | int) -> str:
  if seconds < 3600:
    return f"{seconds / 60:.1f} min"
  return f"{seconds / 3600:.1f} h"


def public(command: str, workdir: str) -> str:
  """A command without what is private in its paths."""
  return PRIVATE.sub(r"\1", command.replace(workdir, "{workdir}"))


def commands(noted: Mapping[str, Any], workdir: str) -> str:
  """The commands that made all of it, as they were typed."""
  lines = dict.fromkeys(
    public(one["command"], workdir)
    for one in noted.values()
    if one.get("command")
  )
  if not lines:
    return ""
  return page.whole(
    "Commands",
    page.paragraph(
      "The last command of each stage in this work folder; config.json, below, "
      "has every field they ran with."
    ),
    page.code("\n".join(lines)),
  )
