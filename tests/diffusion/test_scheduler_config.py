# SPDX-License-Identifier: Apache-2.0
import inspect
import json

import diffusers
import pytest

from cc_jax.diffusion import samplers, schedule, scheduler_config

# diffusers 0.42.1 calls np.array on a tensor, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation:DeprecationWarning"
)

# As on the hub: stabilityai/stable-diffusion-2-base, 2 and xl-base-1.0.
SD2_BASE = {
  "_class_name": "PNDMScheduler",
  "_diffusers_version": "0.8.0",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": False,
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
}
SD2_V = SD2_BASE | {
  "_class_name": "DDIMScheduler",
  "prediction_type": "v_prediction",
}
SDXL = SD2_BASE | {
  "_class_name": "EulerDiscreteScheduler",
  "interpolation_type": "linear",
  "sample_max_value": 1.0,
  "timestep_spacing": "leading",
  "use_karras_sigmas": False,
}


def test_published_configs_are_read():
  recipe = scheduler_config.read(SD2_V)
  assert recipe.sampler == "ddim"
  assert recipe.schedule == schedule.scaled_linear()
  assert recipe.options == {
    "prediction": "v",
    "spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
  }
  assert scheduler_config.read(SDXL).options["prediction"] == "eps"
  training = scheduler_config.read_training(SD2_BASE)
  assert training == (schedule.scaled_linear(), "eps")


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_reading_gives_back_what_was_written(sampler):
  scales = [schedule.linear(0.001, 0.01, 50), schedule.cosine()]
  if sampler != "heun":
    scales.append(schedule.zero_terminal_snr(schedule.scaled_linear()))
  options = {"prediction": "v", "spacing": "linspace", "steps_offset": 0}
  if sampler == "ddim":
    options["set_alpha_to_one"] = False
  for one in scales:
    text = json.dumps(scheduler_config.write(sampler, one, **options))
    recipe = scheduler_config.read(json.loads(text))
    assert recipe == (sampler, one, options)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_diffusers_own_files_are_read(sampler, tmp_path):
  ours = scheduler_config.write(sampler, schedule.scaled_linear())
  theirs = getattr(diffusers, ours["_class_name"]).from_config(ours)
  theirs.save_config(tmp_path)
  saved = json.loads((tmp_path / "scheduler_config.json").read_text())
  recipe = scheduler_config.read(saved)
  assert (recipe.sampler, recipe.schedule) == (
    sampler,
    schedule.scaled_linear(),
  )
  assert ours == scheduler_config.write(
    sampler, recipe.schedule, **recipe.options
  )


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_absent_fields_have_the_defaults_of_diffusers(sampler):
  name = scheduler_config.CLASSES[sampler]
  arguments = inspect.signature(getattr(diffusers, name).__init__).parameters
  config = {"_class_name": name}
  if sampler in ("ddim", "ddpm"):
    with pytest.raises(ValueError, match="clip_sample=True is not supported"):
      scheduler_config.read(config)
    config["clip_sample"] = False
  recipe = scheduler_config.read(config)
  written = scheduler_config.write(sampler, recipe.schedule, **recipe.options)
  for field, value in written.items():
    if field not in config:
      assert value == arguments[field].default, field


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"_class_name": "PNDMScheduler"}, "no sampler for .* 'PNDMScheduler'"),
    ({"beta_scedule": "linear"}, "unknown fields .* beta_scedule"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' is not supported"),
    (
      {"prediction_type": "flow_prediction"},
      "prediction_type='flow_prediction'",
    ),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
    ({"clip_sample": True}, "clip_sample=True is not supported"),
    ({"thresholding": True}, "thresholding=True is not supported"),
    ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "SNR"),
  ],
)
def test_what_is_not_supported_is_said(change, message):
  with pytest.raises(ValueError, match=message):
    scheduler_config.read(SD2_V | change)


def test_heun_takes_no_zero_terminal_snr():
  zero = schedule.zero_terminal_snr(schedule.scaled_linear())
  with pytest.raises(ValueError, match="no zero terminal SNR"):
    scheduler_config.write("heun", zero, prediction="v")
  config = {"_class_name": "HeunDiscreteScheduler"}
  with pytest.raises(ValueError, match="no zero terminal SNR"):
    scheduler_config.read(config | {"rescale_betas_zero_snr": True})


def test_options_of_no_config_are_said():
  scales = schedule.scaled_linear()
  with pytest.raises(ValueError, match="eta: not in the config of ddim"):
    scheduler_config.write("ddim", scales, eta=1.0)
  with pytest.raises(ValueError, match="unknown sampler 'pndm'"):
    scheduler_config.write("pndm", scales)
  with pytest.raises(ValueError, match="without beta_schedule"):
    scheduler_config.read_training(
      {
        "beta_start": 0.1,
        "beta_end": 0.2,
        "num_train_timesteps": 10,
        "prediction_type": "epsilon",
      }
    )
