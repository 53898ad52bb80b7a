# SPDX-License-Identifier: Apache-2.0
"""diffusers' scheduler_config.json: a schedule and a sampler with its options.

A scheduler in diffusers is our schedule, prediction and sampler in one class,
and its config.json holds the choices of all three. `read` turns one into a
`Recipe`, `write` writes the config of the class that gives our sampler's
numbers:

  recipe = read(json.loads(text))
  sampler = samplers.by_name(recipe.sampler)
  x0 = sampler(denoise, xt, recipe.schedule, steps=20, **recipe.options)

A field that is absent has the default of its class, and a field that our
samplers do not support must have the value in which it does nothing.
StableDiffusionPipeline sets steps_offset to 1 whatever the config says, so keep
our default of 1 for what it should open.
"""

import inspect
import math
from typing import Any, NamedTuple

from cc_jax.diffusion import samplers
from cc_jax.diffusion import schedule as schedules

KINDS = {
  "scaled_linear": "scaled_linear",
  "linear": "linear",
  "cosine": "squaredcos_cap_v2",
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
CLASSES = {
  "ddim": "DDIMScheduler",
  "ddpm": "DDPMScheduler",
  "euler": "EulerDiscreteScheduler",
  "heun": "HeunDiscreteScheduler",
  "dpm_solver_pp": "DPMSolverMultistepScheduler",
}

# Fields that say what we do, with each class's default.
_TRAINING = {
  "num_train_timesteps": 1000,
  "beta_start": 0.0001,
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "trained_betas": None,
  "prediction_type": "epsilon",
  "rescale_betas_zero_snr": False,
}
_SAMPLING = {"timestep_spacing": "linspace", "steps_offset": 0}
_DEFAULTS = {
  "ddim": _TRAINING
  | _SAMPLING
  | {"timestep_spacing": "leading", "set_alpha_to_one": True},
  "ddpm": _TRAINING | _SAMPLING | {"timestep_spacing": "leading"},
  "euler": _TRAINING | _SAMPLING,
  "heun": {
    name: value
    for name, value in (_TRAINING | _SAMPLING).items()
    if name != "rescale_betas_zero_snr"
  }
  | {"beta_start": 0.00085, "beta_end": 0.012},
  "dpm_solver_pp": _TRAINING | _SAMPLING,
}

# Fields of a class: (the only value our sampler has, the class's default).
_SIGMAS = {
  "use_karras_sigmas": (False, False),
  "use_exponential_sigmas": (False, False),
  "use_beta_sigmas": (False, False),
}
_FIXED = {
  "ddim": {"clip_sample": (False, True), "thresholding": (False, False)},
  "ddpm": {
    "clip_sample": (False, True),
    "thresholding": (False, False),
    "variance_type": ("fixed_small", "fixed_small"),
  },
  "euler": _SIGMAS
  | {
    "interpolation_type": ("linear", "linear"),
    "timestep_type": ("discrete", "discrete"),
    "final_sigmas_type": ("zero", "zero"),
  },
  "heun": _SIGMAS | {"clip_sample": (False, False)},
  "dpm_solver_pp": _SIGMAS
  | {
    "algorithm_type": ("dpmsolver++", "dpmsolver++"),
    "solver_order": (2, 2),
    "solver_type": ("midpoint", "midpoint"),
    "final_sigmas_type": ("zero", "zero"),
    "lambda_min_clipped": (-math.inf, -math.inf),
    "thresholding": (False, False),
    "use_dynamic_shifting": (False, False),
    "use_flow_sigmas": (False, False),
    "use_lu_lambdas": (False, False),
    "variance_type": (None, None),
  },
}

# Fields that do nothing at the values fixed above, or that belong to another
# class only (files on the hub keep those of the class they were made for, and
# diffusers drops them).
_INERT = {
  "clip_sample_range",
  "dynamic_thresholding_ratio",
  "euler_at_final",
  "flow_shift",
  "lower_order_final",
  "sample_max_value",
  "sigma_max",
  "sigma_min",
  "skip_prk_steps",
  "time_shift_type",
}.union(*_DEFAULTS.values(), *_FIXED.values())


class Recipe(NamedTuple):
  """How to sample: `by_name(sampler)(denoise, xt, schedule, **options)`.

  `options` are the sampler's keyword arguments that a config holds: prediction,
  spacing, steps_offset and, for ddim, set_alpha_to_one.
  """

  sampler: str
  schedule: schedules.Schedule
  options: dict[str, Any]


def read(config: dict[str, Any]) -> Recipe:
  """The recipe of a scheduler_config.json.

  Raises:
    ValueError: a class with no sampler here, a field that diffusers does not
      have, or a value that our samplers do not support.
  """
  theirs = config.get("_class_name")
  names = {theirs: ours for ours, theirs in CLASSES.items()}
  if theirs not in names:
    raise ValueError(
      f"no sampler for the scheduler class {theirs!r}; "
      "diffusion/scheduler_config.py has " + ", ".join(names)
    )
  sampler = names[theirs]
  fields = {name: v for name, v in config.items() if name[0] != "_"}
  unknown = sorted(set(fields) - _INERT)
  if unknown:
    raise ValueError(f"unknown fields in a {theirs}: {', '.join(unknown)}")
  for name, (only, default) in _FIXED[sampler].items():
    value = fields.get(name, default)
    if value != only:
      raise ValueError(
        f"{theirs} with {name}={value!r} is not supported; expected {only!r}"
      )
  defaults = _DEFAULTS[sampler]
  if fields.get("rescale_betas_zero_snr"):
    _check_zero_snr(sampler)
  fields = {name: fields.get(name, v) for name, v in defaults.items()}
  schedule, prediction = _training(fields)
  options = {
    "prediction": prediction,
    "spacing": fields["timestep_spacing"],
    "steps_offset": fields["steps_offset"],
  }
  if "set_alpha_to_one" in fields:
    options["set_alpha_to_one"] = fields["set_alpha_to_one"]
  return Recipe(sampler, schedule, options)


def read_training(
  config: dict[str, Any],
) -> tuple[schedules.Schedule, str]:
  """The schedule and prediction a network was trained with.

  For a config of any class, PNDMScheduler of Stable Diffusion 2 for one, whose
  way of sampling has no equal here: what concerns sampling is not read.

  Raises:
    ValueError: a field of the training schedule is absent (classes differ in
      their defaults) or has a value that we do not support.
  """
  optional = {"trained_betas", "rescale_betas_zero_snr"}
  absent = sorted(set(_TRAINING) - optional - set(config))
  if absent:
    raise ValueError(f"scheduler config without {', '.join(absent)}")
  return _training(_TRAINING | config)


def _check_zero_snr(sampler):
  if "rescale_betas_zero_snr" not in _DEFAULTS[sampler]:
    raise ValueError(f"{CLASSES[sampler]} has no zero terminal SNR")


def _training(fields):
  if fields["trained_betas"] is not None:
    raise ValueError("trained_betas in a scheduler config; expected None")
  kind = _ours(KINDS, "beta_schedule", fields)
  prediction = _ours(PREDICTIONS, "prediction_type", fields)
  if kind == "cosine":
    schedule = schedules.cosine(fields["num_train_timesteps"])
  else:
    ends = fields["beta_start"], fields["beta_end"]
    schedule = schedules.Schedule(kind, *ends, fields["num_train_timesteps"])
  if fields.get("rescale_betas_zero_snr"):
    schedule = schedules.zero_terminal_snr(schedule)
  schedules.check_prediction(schedule, prediction)
  return schedule, prediction


def _ours(names, field, fields):
  for ours, theirs in names.items():
    if fields[field] == theirs:
      return ours
  raise ValueError(
    f"{field}={fields[field]!r} is not supported; expected one of "
    + ", ".join(names.values())
  )


def write(
  sampler: str, schedule: schedules.Schedule, **options: Any
) -> dict[str, Any]:
  """The scheduler_config.json that makes diffusers sample as we do.

  Args:
    sampler: a name in samplers.SAMPLERS.
    schedule: what the network was trained with.
    **options: the sampler's keyword arguments; those left out have its
      defaults. `steps`, `eta` and `key` are arguments of diffusers' pipeline
      call and not in the file.

  Raises:
    ValueError: an unknown sampler or option, or what its class does not have.
  """
  samplers.by_name(sampler)
  if sampler not in CLASSES:
    raise ValueError(
      f"no scheduler of diffusers gives a pipeline the images of {sampler}; "
      f"set sample.sampler to one of {', '.join(CLASSES)}"
    )
  arguments = inspect.signature(samplers.by_name(sampler)).parameters
  known = {
    name: a.default
    for name, a in arguments.items()
    if a.kind == a.KEYWORD_ONLY and name not in ("steps", "eta", "key")
  }
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f"{', '.join(unknown)}: not in the config of {sampler}, which has "
      + ", ".join(known)
    )
  if schedule.zero_snr:
    _check_zero_snr(sampler)
  options = known | options
  schedules.check_prediction(schedule, options["prediction"])
  fields = {
    "num_train_timesteps": schedule.steps,
    "beta_start": schedule.beta_start,
    "beta_end": schedule.beta_end,
    "beta_schedule": KINDS[schedule.kind],
    "trained_betas": None,
    "prediction_type": PREDICTIONS[options["prediction"]],
    "rescale_betas_zero_snr": schedule.zero_snr,
    "timestep_spacing": options["spacing"],
    "steps_offset": options["steps_offset"],
    "set_alpha_to_one": options.get("set_alpha_to_one"),
  }
  fields = {name: fields[name] for name in _DEFAULTS[sampler]}
  # JSON has no infinity; the field is left at its default.
  fixed = {n: v for n, (v, _) in _FIXED[sampler].items() if v != -math.inf}
  return {"_class_name": CLASSES[sampler]} | fields | fixed
