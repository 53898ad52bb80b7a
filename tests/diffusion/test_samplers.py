# SPDX-License-Identifier: Apache-2.0
"""Samplers against what is known in closed form.

For data N(MU, S^2), x0 given xt is normal too, so the best denoiser is a
formula, and so is the flow it drives: with y = xt/alpha and r = sigma/alpha,
(y - MU) / sqrt(S^2 + r^2) is constant. Samplers are linear in xt here, so they
are compared by slope and mean.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.diffusion import samplers, schedule, timesteps

MU, S = 0.7, 0.4
SCALES = schedule.scaled_linear()


def circle():
  """phi of equation (4) falls evenly: all smooth, so that orders show."""
  scales = schedule.linear(steps=4800)
  phi = np.linspace(0.1, 1.3, scales.steps)
  vars(scales).update(
    alpha=np.cos(phi).astype(np.float32), sigma=np.sin(phi).astype(np.float32)
  )
  return scales


def x0_of(xt, alpha, sigma):
  """Mean of x0 given xt."""
  share = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
  return MU + share * (xt - alpha * MU)


def gaussian(scales, prediction="x0"):
  """The exact denoiser, at any t."""
  ratio_at = jnp.asarray(scales.sigma / scales.alpha)

  def denoise(xt, t):
    ratio = jnp.interp(t, jnp.arange(scales.steps), ratio_at)[:, None]
    alpha = 1 / jnp.sqrt(1 + ratio**2)
    sigma = alpha * ratio
    x0 = x0_of(xt, alpha, sigma)
    eps = (xt - alpha * x0) / sigma
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[prediction]

  return denoise


def line(name, scales, steps, prediction="x0"):
  """Slope of a deterministic sampler's result in xt, and its value at 0."""
  denoise = gaussian(scales, prediction)
  x0 = samplers.by_name(name)(
    denoise,
    jnp.array([[0.0], [2.0]]),
    scales,
    steps=steps,
    prediction=prediction,
  )
  return float(x0[1, 0] - x0[0, 0]) / 2, float(x0[0, 0])


def exact_line(name, scales, steps):
  """The exact flow to the last timestep, then the denoiser, which ends all."""
  t = timesteps.spaced(scales, steps, "trailing", 1)
  alpha, sigma = timesteps.between(scales, t[[0, -1]])
  first, last = sigma / alpha
  slope_y = S**2 / np.sqrt((S**2 + first**2) * (S**2 + last**2))
  start = sigma[0] if name in ("euler", "heun") else 1.0
  return slope_y * start / alpha[0], MU - slope_y * MU


@pytest.mark.parametrize(
  ("name", "order"),
  [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm_solver_pp", 2)],
)
def test_errors_shrink_at_the_order_of_the_method(name, order):
  scales = circle()
  errors = [
    line(name, scales, steps)[0] / exact_line(name, scales, steps)[0] - 1
    for steps in (120, 240)
  ]
  assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
  assert abs(errors[1]) < {1: 5e-3, 2: 1e-4}[order]


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm_solver_pp"])
def test_samplers_solve_the_flow_whatever_is_predicted(name, prediction):
  steps = 250
  slope, at_zero = line(name, SCALES, steps, prediction)
  expected, expected_at_zero = exact_line(name, SCALES, steps)
  tolerance = 0.003 if name in ("heun", "dpm_solver_pp") else 0.03
  assert slope == pytest.approx(expected, rel=tolerance)
  assert at_zero == pytest.approx(expected_at_zero, rel=tolerance)


@pytest.mark.parametrize(
  ("name", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0})]
)
def test_stochastic_samples_have_the_moments_of_the_posteriors(name, options):
  count, steps = 40_000, 50
  key, key_noise = jax.random.split(jax.random.key(0))
  xt = jax.random.normal(key, (count, 1))
  x0 = samplers.by_name(name)(
    gaussian(SCALES),
    xt,
    SCALES,
    steps=steps,
    prediction="x0",
    key=key_noise,
    **options,
  )
  # DDPM's equations (6) and (7), for a mean and a variance.
  t = timesteps.spaced(SCALES, steps, "trailing", 1).astype(int)
  alpha_bar = SCALES.alpha[t].astype(float) ** 2
  mean, variance = 0.0, 1.0
  for now, after in zip(alpha_bar, np.append(alpha_bar[1:], 1), strict=True):
    beta = 1 - now / after
    on_x0 = np.sqrt(after) * beta / (1 - now)
    on_xt = np.sqrt(now / after) * (1 - after) / (1 - now)
    ends = x0_of(np.array([0.0, 1.0]), np.sqrt(now), np.sqrt(1 - now))
    slope = on_xt + on_x0 * (ends[1] - ends[0])
    mean = slope * mean + on_x0 * ends[0]
    variance = slope**2 * variance + beta * (1 - after) / (1 - now)
  # Four standard errors.
  error = 4 * np.sqrt(variance / count)
  assert x0.mean() == pytest.approx(mean, abs=error)
  assert x0.std() == pytest.approx(np.sqrt(variance), abs=error / np.sqrt(2))
  assert mean == pytest.approx(MU, abs=0.05)
  assert np.sqrt(variance) == pytest.approx(S, rel=0.15)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "dpm_solver_pp"])
def test_zero_terminal_snr_reaches_the_mean_of_the_data(name):
  """Without it, exact_line is off MU by its slope: 0.02 of 0.7 is missing."""
  scales = schedule.zero_terminal_snr(SCALES)
  xt = jax.random.normal(jax.random.key(0), (1000, 1))
  xt = jnp.concatenate([xt, -xt])
  finite = scales.alpha > 0
  known = schedule.Schedule("linear", 0.1, 0.2, scales.steps)
  vars(known).update(
    alpha=np.where(finite, scales.alpha, 1e-6), sigma=scales.sigma
  )
  x0 = samplers.by_name(name)(
    gaussian(known, "v"),
    xt,
    scales,
    steps=50,
    prediction="v",
    key=jax.random.key(1),
  )
  assert x0.mean() == pytest.approx(MU, abs=0.04 if name == "ddpm" else 0.001)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_network_is_traced_once_whatever_the_steps(name):
  sizes = []
  for steps in (5, 50):
    calls = []

    def sample(xt, key, steps=steps, calls=calls):
      def denoise(xt, t):
        calls.append(None)
        return jnp.tanh(xt)

      sampler = samplers.by_name(name)
      return sampler(denoise, xt, SCALES, steps=steps, key=key)

    jaxpr = jax.make_jaxpr(sample)(jnp.ones((2, 4)), jax.random.key(0))
    sizes.append(len(str(jaxpr).splitlines()))
    assert len(calls) == 1
  assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_compiled_equals_uncompiled(name):
  def sample(xt, key):
    denoise = lambda xt, t: jnp.tanh(xt) * jnp.cos(t / 300)[:, None]
    sampler = samplers.by_name(name)
    return sampler(denoise, xt, SCALES, steps=6, prediction="v", key=key)

  xt = jax.random.normal(jax.random.key(0), (2, 5))
  compiled = jax.jit(sample)(xt, jax.random.key(1))
  with jax.disable_jit():
    plain = sample(xt, jax.random.key(1))
  np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-5)


def test_noise_comes_from_the_key():
  def sample(seed):
    key = jax.random.key(seed)
    return samplers.ddpm(gaussian(SCALES), xt, SCALES, steps=5, key=key)

  xt = jnp.zeros((3, 1))
  np.testing.assert_array_equal(sample(0), sample(0))
  assert (sample(0) != sample(1)).all()
  assert len(np.unique(sample(0))) == 3


def test_a_network_in_bfloat16_is_sampled_in_float32():
  seen = []

  def denoise(xt, t):
    seen.append((xt.dtype, t.dtype, t.shape))
    return xt.astype(jnp.bfloat16)

  xt = jnp.ones((2, 4), jnp.bfloat16)
  x0 = samplers.dpm_solver_pp(denoise, xt, SCALES, prediction="x0")
  assert x0.dtype == jnp.float32
  assert seen == [(jnp.float32, jnp.float32, (2,))]


def context_network(xt, t, context):
  return jnp.tanh(xt) * context["scale"] + t[:, None] * context["shift"]


def contexts():
  rng = np.random.default_rng(0)
  make = lambda: {
    "scale": jnp.asarray(rng.standard_normal((3, 5)), jnp.float32),
    "shift": jnp.asarray(rng.standard_normal((3, 1)), jnp.float32),
  }
  return make(), make()


def test_guidance_moves_away_from_the_empty_prompt():
  cond, uncond = contexts()
  xt, t = jax.random.normal(jax.random.key(0), (3, 5)), jnp.arange(3.0)
  given = context_network(xt, t, cond)
  without = context_network(xt, t, uncond)
  outputs = jax.jit(
    lambda guidance: samplers.guided(context_network, cond, uncond, guidance)(
      xt, t
    )
  )
  expected = without + 7.5 * (given - without)
  np.testing.assert_allclose(outputs(7.5), expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(outputs(0.0), without, rtol=1e-5, atol=1e-5)


def test_guidance_of_one_is_the_conditional_output_exactly():
  cond, uncond = contexts()
  xt, t = jax.random.normal(jax.random.key(0), (3, 5)), jnp.arange(3.0)
  given = context_network(xt, t, cond)
  for guidance in (1, 1.0, jnp.float32(1)):
    for rescale in (0.0, 0.7):
      got = samplers.guided(context_network, cond, uncond, guidance, rescale)(
        xt, t
      )
      np.testing.assert_array_equal(got, given)


def test_guidance_of_one_skips_the_empty_prompt():
  shapes = []

  def denoise(xt, t, context):
    shapes.append(xt.shape)
    return xt

  for guidance in (1.0, 2.0):
    one = jnp.ones((3, 1))
    samplers.guided(denoise, one, one, guidance)(one, jnp.ones(3))
  assert shapes == [(3, 1), (6, 1)]


def test_full_rescale_keeps_the_deviation_of_the_conditional_output():
  cond, uncond = contexts()
  xt, t = jax.random.normal(jax.random.key(0), (3, 5)), jnp.arange(3.0)
  given = context_network(xt, t, cond)
  got = samplers.guided(context_network, cond, uncond, 9.0, 1.0)(xt, t)
  np.testing.assert_allclose(got.std(1), given.std(1), rtol=1e-4)


def test_bad_input_is_said():
  denoise, xt = gaussian(SCALES), jnp.ones((2, 1))
  zero = schedule.zero_terminal_snr(SCALES)
  with pytest.raises(
    ValueError, match=r"unknown sampler 'pndm'.*dpm_solver_pp"
  ):
    samplers.by_name("pndm")
  with pytest.raises(ValueError, match="give it a key"):
    samplers.ddpm(denoise, xt, SCALES, steps=5)
  with pytest.raises(ValueError, match="give it a key"):
    samplers.ddim(denoise, xt, SCALES, steps=5, eta=0.5)
  with pytest.raises(ValueError, match="eta=2"):
    samplers.ddim(denoise, xt, SCALES, steps=5, eta=2.0)
  with pytest.raises(ValueError, match="unknown prediction 'score'"):
    samplers.euler(denoise, xt, SCALES, steps=5, prediction="score")
  with pytest.raises(ValueError, match="use prediction='v'"):
    samplers.dpm_solver_pp(denoise, xt, zero)
  with pytest.raises(ValueError, match="heun cannot start"):
    samplers.heun(denoise, xt, zero, steps=5, prediction="v")
  with pytest.raises(ValueError, match=r"gave \(2, 2\) for an xt of \(2, 1\)"):
    samplers.ddim(lambda xt, t: jnp.ones((2, 2)), xt, SCALES, steps=5)
  with pytest.raises(ValueError, match="rescale=2"):
    samplers.guided(context_network, xt, xt, 2.0, 2.0)
