# SPDX-License-Identifier: Apache-2.0
"""Which of the T timesteps a sampler visits, and alpha and sigma there.

  trailing  T - 1, T - 1 - T/steps, ...: starts at full noise whatever `steps`,
            and so is the default, and the one for zero terminal SNR
  leading   ..., 2 T/steps, T/steps, 0, all plus `steps_offset`: starts below
            full noise (Stable Diffusion's setting, with an offset of 1)
  linspace  evenly from T - 1 to 0

after Lin et al. 2305.08891, table 2. Everything here is numpy in float64: it
runs once, before tracing.
"""

from jaxtyping import Float64
import numpy as np

from cc_jax.diffusion import schedule as schedules

SPACINGS = ("trailing", "leading", "linspace")


def spaced(
  schedule: schedules.Schedule,
  steps: int,
  spacing: str,
  steps_offset: int,
  *,
  whole: bool = True,
  open_end: bool = False,
) -> Float64[np.ndarray, "steps"]:
  """Falling timesteps.

  Args:
    schedule: has T = schedule.steps.
    steps: how many.
    spacing: see above.
    steps_offset: added by leading; of no effect on the other two.
    whole: round linspace to integers; the other two are integers already.
    open_end: divide by steps + 1 and leave out the end at t = 0; of no effect
      on trailing, which never visits 0.

  Raises:
    ValueError: an unknown spacing, or steps that do not fit the schedule.
  """
  T = schedule.steps
  if spacing not in SPACINGS:
    raise ValueError(
      f"unknown spacing {spacing!r}; diffusion/timesteps.py has "
      + ", ".join(SPACINGS)
    )
  if not 1 <= steps <= T:
    raise ValueError(f"steps={steps}; expected 1 to {T}, the schedule's steps")
  points = steps + open_end
  if spacing == "trailing":
    t = np.round(T - np.arange(steps) * (T / steps)) - 1
  elif spacing == "leading":
    t = np.arange(points)[::-1] * (T // points) + steps_offset
  else:
    # float32 as in diffusers, since the network is given these numbers.
    t = np.linspace(0, T - 1, points, dtype=np.float32)[::-1]
    t = np.round(t) if whole else t
  t = t[:steps].astype(np.float64)
  if t[0] < T // 2:
    raise ValueError(
      f"steps={steps} with spacing={spacing!r} would start at t={t[0]:g}, not "
      "at noise; use spacing='trailing'"
    )
  if t[0] > T - 1 or (np.diff(t) >= 0).any():
    raise ValueError(
      f"steps={steps} with spacing={spacing!r} and steps_offset={steps_offset} "
      f"do not fit a schedule of {T} steps; use fewer"
    )
  return t


def at(
  schedule: schedules.Schedule, t: np.ndarray
) -> tuple[Float64[np.ndarray, "steps"], Float64[np.ndarray, "steps"]]:
  """alpha and sigma at integer timesteps."""
  return schedule.alpha[t].astype(float), schedule.sigma[t].astype(float)


def between(
  schedule: schedules.Schedule, t: Float64[np.ndarray, "steps"]
) -> tuple[Float64[np.ndarray, "steps"], Float64[np.ndarray, "steps"]]:
  """alpha and sigma at any timesteps: sigma/alpha is linear between two.

  At zero terminal SNR alpha is taken as 2^-12, as in diffusers, so that
  sigma/alpha and log(alpha/sigma) are finite.
  """
  alpha, sigma = at(schedule, np.arange(schedule.steps))
  if schedule.zero_snr:
    alpha[-1], sigma[-1] = 2.0**-12, np.sqrt(1 - 2.0**-24)
  ratio = np.interp(t, np.arange(schedule.steps), sigma / alpha)
  alpha = 1 / np.sqrt(1 + ratio**2)
  return alpha, ratio * alpha
