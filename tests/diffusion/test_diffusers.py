# SPDX-License-Identifier: Apache-2.0
"""Every sampler against diffusers' scheduler, call by call.

The network is one numpy function that both sides call and that notes what it
was given, so that each intermediate xt and t is compared, not the result alone.
Our loop runs uncompiled for that (and faster: each compilation would serve one
test); test_samplers.py runs it compiled. The scheduler is made from the config
that we export.
"""

import functools
import json

import diffusers
from diffusers.schedulers import scheduling_ddpm
from diffusers.utils import logging
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from cc_jax.diffusion import samplers, schedule, scheduler_config

SHAPE = (2, 3, 3, 4)
# Schedulers compute in float32 from a product of a thousand float32 factors.
TOLERANCE = parity.MODEL
WEIGHTS = np.random.default_rng(0).standard_normal((4, 4)) / 2
XT = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
KEY = jax.random.key(3)

logging.set_verbosity_error()

# diffusers 0.42.1 calls np.array on a tensor, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation:DeprecationWarning"
)


def network(calls):
  """A smooth nonlinear network that notes its inputs in `calls`."""

  def apply(xt, t):
    calls.append((np.array(xt), float(np.ravel(t)[0])))
    shift = np.sin(float(np.ravel(t)[0]) / 150)
    return (np.tanh(xt @ WEIGHTS) + 0.3 * shift).astype(np.float32)

  return apply


def ours(name, scales, steps, **options):
  calls = []
  apply = network(calls)
  denoise = lambda xt, t: jnp.asarray(apply(np.asarray(xt), t))
  sampler = samplers.by_name(name)
  with jax.disable_jit():
    x0 = sampler(denoise, jnp.asarray(XT), scales, steps=steps, **options)
  return np.asarray(x0), calls


@functools.cache
def noise(i):
  return jax.random.normal(jax.random.fold_in(KEY, i), SHAPE)


def theirs(config, steps, eta, patch):
  calls = []
  apply = network(calls)
  scheduler = getattr(diffusers, config["_class_name"]).from_config(
    json.loads(json.dumps(config))
  )
  scheduler.set_timesteps(steps)
  draws = (torch.tensor(np.asarray(noise(i))) for i in range(steps))
  draw = lambda *_, **__: next(draws)
  patch.setattr(scheduling_ddpm, "randn_tensor", draw)
  x = torch.tensor(XT) * scheduler.init_noise_sigma
  for t in scheduler.timesteps:
    output = torch.tensor(apply(scheduler.scale_model_input(x, t).numpy(), t))
    extra = {"eta": eta, "variance_noise": draw()} if eta else {}
    x = scheduler.step(output, t, x, **extra).prev_sample
  return x.numpy(), calls


def compare(patch, name, scales, steps, eta=0.0, **options):
  config = scheduler_config.write(name, scales, **options)
  expected, their_calls = theirs(config, steps, eta, patch)
  if eta:
    options["eta"] = eta
  got, our_calls = ours(name, scales, steps, key=KEY, **options)
  assert len(our_calls) == len(their_calls)
  for (x, t), (their_x, their_t) in zip(our_calls, their_calls, strict=True):
    assert t == their_t
    parity.check(x, their_x, TOLERANCE)
  parity.check(got, expected, TOLERANCE)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", list(samplers.SAMPLERS))
def test_each_call_is_as_in_diffusers(name, prediction, spacing, monkeypatch):
  scales = schedule.scaled_linear()
  options = {"prediction": prediction, "spacing": spacing}
  for steps in (7, 20):
    compare(monkeypatch, name, scales, steps, **options)


@pytest.mark.parametrize("name", list(samplers.SAMPLERS))
def test_other_schedules_are_as_in_diffusers(name, monkeypatch):
  for scales in (schedule.linear(), schedule.scaled_linear(steps=50)):
    compare(monkeypatch, name, scales, 7, prediction="v")
  compare(monkeypatch, name, schedule.linear(), 20, spacing="leading")
  if name not in ("euler", "heun"):
    # sigma/alpha ends at 20,000, where diffusers' float32 has two digits left.
    compare(monkeypatch, name, schedule.cosine(), 7, prediction="v")


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "dpm_solver_pp"])
def test_zero_terminal_snr_is_as_in_diffusers(name, monkeypatch):
  scales = schedule.zero_terminal_snr(schedule.scaled_linear())
  # One step of diffusers' Euler from sigma/alpha = 4096 is rounded to 1/8192.
  for steps in (7, 20) if name == "euler" else (1, 7, 20):
    compare(monkeypatch, name, scales, steps, prediction="v")
  compare(monkeypatch, name, scales, 7, prediction="x0")


@pytest.mark.parametrize("name", list(samplers.SAMPLERS))
def test_one_step_is_as_in_diffusers(name, monkeypatch):
  compare(monkeypatch, name, schedule.scaled_linear(), 1, prediction="v")


def test_ddims_settings_are_as_in_diffusers(monkeypatch):
  scales = schedule.scaled_linear()
  for eta in (0.0, 0.5, 1.0):
    for offset in (0, 1):
      compare(
        monkeypatch,
        "ddim",
        scales,
        20,
        eta,
        spacing="leading",
        steps_offset=offset,
        set_alpha_to_one=False,
      )
  compare(monkeypatch, "ddim", scales, 50, 0.7, prediction="v")


def test_guidance_rescale_is_as_in_diffusers():
  module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
  rng = np.random.default_rng(0)
  cond, uncond = rng.standard_normal((2, *SHAPE)).astype(np.float32)
  cfg = uncond + 7.5 * (cond - uncond)
  for rescale in (0.0, 0.3, 1.0):
    expected = module.rescale_noise_cfg(
      torch.tensor(cfg), torch.tensor(cond), rescale
    )
    denoise = samplers.guided(
      lambda xt, t, context: context,
      jnp.asarray(cond),
      jnp.asarray(uncond),
      7.5,
      rescale,
    )
    got = denoise(jnp.zeros(SHAPE), jnp.zeros(SHAPE[0]))
    parity.check(got, expected.numpy(), parity.LAYER)
