# SPDX-License-Identifier: Apache-2.0
"""A plan as a person reads it: lines of what plan.json holds."""

from collections.abc import Mapping
from typing import Any


def of_captions(found: Mapping[str, Any]) -> list[str]:
  """Of a captioner on the hosts of a slice."""
  made = [
    f"{found['parameters']:,} weights, {found['prompt_tokens']} tokens of "
    f"image and prompt, {found['caption_tokens']} of caption",
    _memory(found),
  ]
  if not found["fits"]:
    return [*made, "does not fit: try a smaller caption.batch_size"]
  scopes = found["cycles_share_of_scopes"].items()
  seconds = found["batch_s"]
  dollars = found["dollars"]
  return [
    *made,
    f"{found['batch_size']} images in {seconds:.2f} s: "
    + ", ".join(
      f"{name or 'rest'} {100 * share:.0f} %"
      for name, share in scopes
      if share >= 0.005
    ),
    f"{found['images_per_s_per_chip']:.1f} images/s a chip, "
    f"{100 * found['mfu']:.1f} % of peak; {found['images']:,} images in "
    f"{found['hours']:.1f} hours, "
    + (f"{dollars:,.0f} dollars" if dollars else "price unknown"),
  ]


def _memory(found: Mapping[str, Any]) -> str:
  parts = found["hbm_gib_parts"].items()
  return (
    f"HBM {found['hbm_gib']:.2f} GiB of {found['hbm_gib_usable']:g}: "
    + ", ".join(f"{name} {size:.2f}" for name, size in parts if size)
  )


def of_step(found: Mapping[str, Any]) -> list[str]:
  """Of a train step on a slice."""
  share = lambda parts, unit=1: ", ".join(
    f"{name} {value / unit:.2f}" for name, value in parts.items() if value
  )
  made = [
    f"{found['parameters']:,} weights, batch {found['batch_size']:,} "
    f"({found['images_per_chip']:g} a chip), "
    f"{found['tflop_per_image']:.3f} TFLOP an image",
    _memory(found),
  ]
  if not found["fits"]:
    advice = ", ".join(found["try"]) or "a larger slice"
    return [
      *made,
      f"needs {found['hbm_gib']:.1f} GiB of {found['hbm_gib_usable']:.1f}: try "
      + advice,
    ]
  total = max(found["cycles"], 1)
  parts = found["cycles_parts"].items()
  made += [
    f"{total / 1e6:,.1f} M cycles: "
    + ", ".join(f"{name} {100 * n / total:.1f} %" for name, n in parts if n),
    f"step {1e3 * found['step_s']:.1f} ms ("
    + share(found["step_s_parts"], 1e-3)
    + f"), {100 * found['mfu']:.1f} % of peak, "
    f"{found['images_per_s_per_chip']:.1f} images/s a chip",
  ]
  made += [
    f"{one['kind']} over {one['devices']}: {one['count']} times, "
    f"{one['bytes'] / 1e6:,.1f} MB" + (", hidden" if one["hidden"] else "")
    for one in found["collectives"]
  ]
  if found["kernels"]:
    seconds = found["step_s_parts"]["kernels"]
    known = all(one["bundles"] for one in found["kernels"])
    basis = "by their schedules" if known else "reckoned from FLOPs and bytes"
    made.append(
      f"{sum(one['times'] for one in found['kernels'])} custom kernels, "
      f"{basis}: {1e3 * seconds:.1f} ms"
    )
  made += [
    f"{100 * one['share']:.1f} % {one['kind']}: {one['what'][:120]}"
    for one in found["slowest"][:5]
  ]
  chip_days = found["dollars_parts"]["chip_hours"] / 24
  made.append(
    f"{found['steps']:,} steps of {found['batch_size']:,}: "
    f"{found['days']:.1f} days, {chip_days:,.1f} of one chip, "
    + _cost(found["energy"] | {"dollars": found["dollars"]})
  )
  if theirs := found["published"]:
    ours = theirs["planned_chip_days"]
    made.append(
      f"{theirs['what']}: {theirs['chip_days']:,.1f} days of one "
      f"{theirs['chip']}, {_cost(theirs['energy'] | theirs)}"
      + (f"; this plan: {ours:,.1f} of these days" if ours else "")
    )
  return made + [f"assumed: {one}" for one in found["assumptions"]]


def _cost(found: Mapping[str, Any]) -> str:
  """Dollars, energy and CO2, as far as they are known."""
  dollars = found["dollars"]
  made = f"{dollars:,.0f} dollars" if dollars else "price unknown"
  if "kwh" not in found:
    return made
  return f"{made}, {found['kwh']:,.0f} kWh, {found['kg_co2']:,.0f} kg CO2"
