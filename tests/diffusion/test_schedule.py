# SPDX-License-Identifier: Apache-2.0
import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cc_jax.diffusion import schedule

# alphas_cumprod in diffusers is a product of a thousand float32 factors.
FLOAT32_PRODUCT = 2e-5
SCHEDULES = {
  "scaled_linear": schedule.scaled_linear(),
  "linear": schedule.linear(),
  "squaredcos_cap_v2": schedule.cosine(),
}


def arrays(seed=0, shape=(4, 3, 3, 2)):
  rng = np.random.default_rng(seed)
  x0, eps = rng.standard_normal((2, *shape)).astype(np.float32)
  return jnp.asarray(x0), jnp.asarray(eps), jnp.array([0, 250, 600, 999])


def close(got, expected, tolerance=1e-5):
  np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def ddpm_scheduler(kind, **options):
  scales = SCHEDULES[kind]
  return diffusers.DDPMScheduler(
    beta_schedule=kind,
    beta_start=scales.beta_start,
    beta_end=scales.beta_end,
    **options,
  )


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_equal_diffusers(kind):
  expected = ddpm_scheduler(kind).alphas_cumprod.numpy()
  scales = SCHEDULES[kind]
  np.testing.assert_allclose(scales.alpha**2, expected, FLOAT32_PRODUCT, 1e-9)
  np.testing.assert_allclose(scales.alpha**2 + scales.sigma**2, 1, rtol=1e-6)
  assert scales.alpha.dtype == scales.sigma.dtype == np.float32


@pytest.mark.parametrize("kind", SCHEDULES)
def test_zero_terminal_snr_equals_diffusers(kind):
  before = SCHEDULES[kind]
  scales = schedule.zero_terminal_snr(before)
  scheduler = ddpm_scheduler(kind, rescale_betas_zero_snr=True)
  expected = scheduler.alphas_cumprod.numpy()
  close(scales.alpha**2, expected)
  assert scales.alpha[-1] == 0
  assert scales.sigma[-1] == 1
  np.testing.assert_allclose(scales.alpha[0], before.alpha[0], rtol=1e-6)


def test_noise_and_velocity_equal_diffusers():
  x0, eps, t = arrays()
  scheduler = ddpm_scheduler("scaled_linear")
  theirs = [torch.tensor(np.asarray(a)) for a in (x0, eps, t)]
  scales = schedule.scaled_linear()
  xt = schedule.add_noise(scales, x0, eps, t)
  close(xt, scheduler.add_noise(*theirs).numpy())
  v = schedule.velocity(scales, x0, eps, t)
  close(v, scheduler.get_velocity(*theirs).numpy())


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_every_prediction_gives_back_data_and_noise(prediction):
  x0, eps, t = arrays()
  scales = schedule.scaled_linear()
  xt = schedule.add_noise(scales, x0, eps, t)
  output = schedule.target(scales, x0, eps, t, prediction)
  close(schedule.to_x0(scales, output, xt, t, prediction), x0, 2e-5)
  # At t = 0 eps is what little is left of xt, over a sigma of 0.03.
  close(schedule.to_eps(scales, output, xt, t, prediction), eps, 2e-5)


def test_v_gives_back_the_data_where_alpha_is_zero():
  x0, eps, t = arrays()
  scales = schedule.zero_terminal_snr(schedule.scaled_linear())
  xt = schedule.add_noise(scales, x0, eps, t)
  np.testing.assert_array_equal(xt[-1], eps[-1])
  v = schedule.target(scales, x0, eps, t, "v")
  close(schedule.to_x0(scales, v, xt, t, "v"), x0)


def test_min_snr_weights_equal_their_formulas():
  t = jnp.arange(1000)
  scales = schedule.scaled_linear()
  alpha_bar = scales.alpha.astype(float) ** 2
  snr = alpha_bar / (1 - alpha_bar)
  least = np.minimum(snr, 5.0)
  for prediction, expected in (
    ("eps", least / snr),
    ("v", least / (snr + 1)),
    ("x0", least),
  ):
    weight = schedule.loss_weight(scales, t, prediction, 5.0)
    np.testing.assert_allclose(weight, expected, rtol=1e-4)
    ones = schedule.loss_weight(scales, t, prediction)
    np.testing.assert_array_equal(ones, 1)
  np.testing.assert_allclose(schedule.snr(scales, t), snr, rtol=1e-4)


def test_weights_are_one_loss_whatever_the_prediction():
  """Equation (8): a network's weighted error does not depend on its output."""
  x0, eps, t = arrays()
  scales = schedule.scaled_linear()
  xt = schedule.add_noise(scales, x0, eps, t)
  guess = x0 + 0.1
  noise = schedule.to_eps(scales, guess, xt, t, "x0")
  outputs = {"eps": noise, "x0": guess}
  outputs["v"] = schedule.velocity(scales, guess, noise, t)
  losses = []
  for prediction, output in outputs.items():
    error = output - schedule.target(scales, x0, eps, t, prediction)
    weight = schedule.loss_weight(scales, t, prediction, 5.0)
    losses.append(weight * jnp.square(error).mean((1, 2, 3)))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
  np.testing.assert_allclose(losses[0], losses[2], rtol=1e-3)


def test_weights_are_finite_at_zero_terminal_snr():
  scales = schedule.zero_terminal_snr(schedule.scaled_linear())
  t = jnp.array([998, 999])
  for prediction in ("v", "x0"):
    weight = schedule.loss_weight(scales, t, prediction, 5.0)
    assert weight[0] > 0
    assert weight[1] == 0


def test_offset_noise_adds_a_constant_a_sample_and_channel():
  key = jax.random.key(0)
  shape = (4096, 4, 4, 2)
  eps = schedule.offset_noise(key, shape, 0.5)
  means = eps.mean((1, 2))
  # Variance of a mean over 16 pixels: 1/16 of its own and the constant's.
  np.testing.assert_allclose(means.var(), 0.25 + 1 / 16, rtol=0.05)
  np.testing.assert_allclose(eps.var((1, 2), ddof=1).mean(), 1.0, rtol=0.01)
  correlation = np.corrcoef(means[:, 0], means[:, 1])[0, 1]
  assert abs(correlation) < 0.05
  added = eps - schedule.offset_noise(key, shape, 0.0)
  np.testing.assert_allclose(added.std((1, 2)), 0, atol=1e-6)
  assert eps.mean() == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("stratified", [False, True])
def test_timesteps_are_uniform(stratified):
  scales = schedule.linear(steps=10)
  draw = jax.vmap(lambda key: schedule.sample_t(key, 5, scales, stratified))
  t = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
  for place in range(5):
    share = np.bincount(t[:, place], minlength=10) / 4000
    np.testing.assert_allclose(share, 0.1, atol=0.02)


def test_stratified_timesteps_cover_the_schedule():
  t = schedule.sample_t(jax.random.key(1), 100, schedule.linear(), True)
  np.testing.assert_array_equal(np.sort(t // 10), np.arange(100))


def test_schedules_are_values():
  scales = schedule.scaled_linear()
  assert scales == schedule.scaled_linear()
  assert scales != schedule.zero_terminal_snr(scales)
  noise = jax.jit(schedule.add_noise, static_argnums=0)
  x0, eps, t = arrays()
  close(noise(scales, x0, eps, t), schedule.add_noise(scales, x0, eps, t))
  with pytest.raises(dataclasses.FrozenInstanceError):
    scales.steps = 5
  with pytest.raises(ValueError, match="read-only"):
    scales.alpha[0] = 1


def test_bad_input_is_said():
  x0, eps, t = arrays()
  scales = schedule.scaled_linear()
  zero = schedule.zero_terminal_snr(scales)
  with pytest.raises(ValueError, match="unknown prediction 'noise'"):
    schedule.target(scales, x0, eps, t, "noise")
  with pytest.raises(ValueError, match="use prediction='v'"):
    schedule.target(zero, x0, eps, t, "eps")
  with pytest.raises(ValueError, match="use prediction='v'"):
    schedule.to_x0(zero, x0, eps, t, "eps")
  with pytest.raises(ValueError, match="min_snr_gamma=0"):
    schedule.loss_weight(scales, t, "v", 0.0)
  with pytest.raises(ValueError, match="unknown schedule 'sigmoid'"):
    schedule.Schedule("sigmoid", 0.1, 0.2, 10)
  with pytest.raises(ValueError, match="beta_start=0"):
    schedule.linear(beta_start=0.0)
  with pytest.raises(ValueError, match="steps=1"):
    schedule.linear(steps=1)
