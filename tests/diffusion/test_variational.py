# SPDX-License-Identifier: Apache-2.0
"""A learned variance against IDDPM's arithmetic, written again in torch.

The reference follows arXiv 2102.09672 and the layout of its public code: NCHW,
tables of betas in float64 that are looked up as float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cc_jax.diffusion import samplers, variational
from cc_jax.diffusion import schedule as schedules

T = 1000
SCHEDULE = schedules.linear()


class Reference:
  """Gaussian diffusion with linear betas and a learned range of variance."""

  def __init__(self, kept=None):
    betas = np.linspace(1e-4, 0.02, T, dtype=np.float64)
    bars = np.cumprod(1 - betas)
    self.kept = np.arange(T) if kept is None else np.asarray(kept)
    previous, new = 1.0, []
    for t in self.kept:
      new.append(1 - bars[t] / previous)
      previous = bars[t]
    self.betas = np.array(new)
    self.bars = np.cumprod(1 - self.betas)
    self.before = np.append(1.0, self.bars[:-1])
    variance = self.betas * (1 - self.before) / (1 - self.bars)
    self.low = np.log(np.append(variance[1], variance[1:]))
    self.high = np.log(self.betas)
    self.c_start = self.betas * np.sqrt(self.before) / (1 - self.bars)
    self.c_noised = (1 - self.before) * np.sqrt(1 - self.betas)
    self.c_noised /= 1 - self.bars

  def at(self, table, t, like):
    return torch.from_numpy(table)[t].to(like.dtype)[:, None, None, None]

  def noised(self, x, t, noise):
    keep, add = np.sqrt(self.bars), np.sqrt(1 - self.bars)
    return self.at(keep, t, x) * x + self.at(add, t, x) * noise

  def start(self, xt, t, eps):
    recip = np.sqrt(1 / self.bars)
    recip_minus = np.sqrt(1 / self.bars - 1)
    return self.at(recip, t, xt) * xt - self.at(recip_minus, t, xt) * eps

  def mean(self, start, xt, t):
    return self.at(self.c_start, t, xt) * start + (
      self.at(self.c_noised, t, xt) * xt
    )

  def log_variance(self, values, t):
    share = (values + 1) / 2
    return share * self.at(self.high, t, values) + (1 - share) * self.at(
      self.low, t, values
    )

  def losses(self, output, x, noise, t, snr=False):
    """(mse, bound in bits) of each row."""
    xt = self.noised(x, t, noise)
    eps, values = output.chunk(2, dim=1)
    mean = self.mean(self.start(xt, t, eps.detach()), xt, t)
    log_variance = self.log_variance(values, t)
    true_mean, low = self.mean(x, xt, t), self.at(self.low, t, x)
    kl = 0.5 * (
      -1.0
      + log_variance
      - low
      + torch.exp(low - log_variance)
      + (true_mean - mean) ** 2 * torch.exp(-log_variance)
    )
    centred, scale = x - mean, torch.exp(-0.5 * log_variance)
    cdf = lambda a: (
      0.5 * (1 + torch.tanh((2 / np.pi) ** 0.5 * (a + 0.044715 * a**3)))
    )
    plus = cdf(scale * (centred + 1 / 255))
    minus = cdf(scale * (centred - 1 / 255))
    log = lambda p: torch.log(p.clamp(min=1e-12))
    inside = torch.where(x > 0.999, log(1 - minus), log(plus - minus))
    nll = -torch.where(x < -0.999, log(plus), inside)
    first = (t == 0)[:, None, None, None]
    bits = torch.where(first, nll, kl) / np.log(2.0)
    target = noise
    if snr:
      late = (t > 249)[:, None, None, None]
      target = torch.where(late, noise, x)
      eps = torch.where(late, eps, self.start(xt, t, eps))
    axes = (1, 2, 3)
    return ((target - eps) ** 2).mean(axes), bits.mean(axes)


def inputs(error, rows=12, seed=0):
  """x0, eps, t, and an output that is off by `error`; channels-last."""
  rng = np.random.default_rng(seed)
  x0, eps, off, values = rng.normal(size=(4, rows, 4, 6, 3))
  t = np.array([0, 1, 2, 5, 30, 249, 250, 251, 500, 750, 998, 999])
  x0[0] *= 0.7  # Some of it is beyond the outermost bins, at t = 0.
  output = np.concatenate([eps + error * off, values], axis=-1)
  return *(x.astype(np.float32) for x in (x0, eps, output)), t


def theirs(array):
  return torch.tensor(np.asarray(array).transpose(0, 3, 1, 2))


def ours(output, x0, eps, t, snr=False):
  """(mse, bound) of each row, as the task puts them together."""
  xt = schedules.add_noise(SCHEDULE, x0, eps, t)
  guess, between = jnp.split(output, 2, axis=-1)
  mse = jnp.mean(jnp.square(guess - eps), axis=(1, 2, 3))
  if snr:
    mse *= variational.snr_weight(SCHEDULE, t, "eps")
  predicted = schedules.to_x0(SCHEDULE, guess, xt, t, "eps")
  bits = variational.bound(SCHEDULE, predicted, between, x0, xt, t)
  return mse, jnp.mean(bits, axis=(1, 2, 3))


@pytest.mark.parametrize("error", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("snr", [False, True])
def test_both_parts_of_the_loss_are_iddpms(error, snr):
  x0, eps, output, t = inputs(error)
  mse, bits = ours(*map(jnp.asarray, (output, x0, eps, t)), snr)
  # In double precision: what ours loses in single is seen here, too.
  wide = [theirs(x).double() for x in (output, x0, eps)]
  expected = Reference().losses(*wide, torch.tensor(t), snr)
  scale = dict(rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(bits, expected[1], **scale)
  if error:
    np.testing.assert_allclose(mse, expected[0], **scale)


def test_gradients_are_iddpms_and_the_bound_does_not_move_the_mean():
  x0, eps, output, t = inputs(0.3)
  arrays = [jnp.asarray(x) for x in (x0, eps, t)]
  total = lambda output: sum(jnp.sum(x) for x in ours(output, *arrays))
  found = jax.grad(total)(jnp.asarray(output))
  leaf = theirs(output).double().requires_grad_()
  wide = [theirs(x).double() for x in (x0, eps)]
  sum(
    x.sum() for x in Reference().losses(leaf, *wide, torch.tensor(t))
  ).backward()
  expected = leaf.grad.numpy().transpose(0, 2, 3, 1)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  bits = lambda output: jnp.sum(ours(output, *arrays)[1])
  found = jax.grad(bits)(jnp.asarray(output))
  assert not np.any(found[..., :3])
  assert np.all(np.any(found[..., 3:], axis=(1, 2, 3)))


def test_the_snr_loss_is_one_loss_whatever_is_predicted():
  t = jnp.array([3, 249, 250, 900])
  rng = np.random.default_rng(1)
  x0, eps, off = jnp.asarray(rng.normal(size=(3, 4, 2, 2, 1)), jnp.float32)
  xt = schedules.add_noise(SCHEDULE, x0, eps, t)
  wrong = eps + 0.1 * off
  found = {}
  for prediction in ("eps", "x0", "v"):
    guess_x0 = schedules.to_x0(SCHEDULE, wrong, xt, t, "eps")
    guess = schedules.target(SCHEDULE, guess_x0, wrong, t, prediction)
    right = schedules.target(SCHEDULE, x0, eps, t, prediction)
    error = jnp.mean(jnp.square(guess - right), axis=(1, 2, 3))
    found[prediction] = error * variational.snr_weight(SCHEDULE, t, prediction)
  np.testing.assert_allclose(found["x0"], found["eps"], rtol=2e-3)
  np.testing.assert_allclose(found["v"], found["eps"], rtol=2e-3)


@pytest.mark.parametrize("steps", [5, 100])
def test_sampling_takes_iddpms_steps(steps):
  """With the same noise on the way and a network that depends on both."""
  rng = np.random.default_rng(2)
  noise = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
  key = jax.random.key(7)

  def network(x, t, stack, tanh):
    eps = 0.9 * x + 0.05 * tanh(t / 300.0)
    return stack([eps, tanh(x - t / 500.0)])

  def denoise(x, t):
    t = t[:, None, None, None]
    return network(x, t, lambda parts: jnp.concatenate(parts, -1), jnp.tanh)

  found = variational.iddpm(
    denoise, jnp.asarray(noise), SCHEDULE, steps=steps, key=key
  )
  stride = (T - 1) / (steps - 1)
  kept = [round(i * stride) for i in range(steps)]
  reference = Reference(kept)
  x = theirs(noise).double()
  for i, index in enumerate(range(steps - 1, -1, -1)):
    t = torch.full((2,), index)
    real = torch.full((2, 1, 1, 1), float(kept[index]), dtype=torch.float64)
    output = network(x, real, lambda parts: torch.cat(parts, 1), torch.tanh)
    eps, values = output.chunk(2, dim=1)
    mean = reference.mean(reference.start(x, t, eps), x, t)
    z = jax.random.normal(jax.random.fold_in(key, i), noise.shape)
    deviation = torch.exp(0.5 * reference.log_variance(values, t))
    x = mean + (index > 0) * deviation * theirs(z).double()
  np.testing.assert_allclose(
    found, x.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4
  )


def test_of_exact_noise_all_samples_are_the_data():
  """Where all data is one point the noise is known, and sampling ends there."""
  x0 = jnp.full((4, 2, 2, 1), 0.3)
  alpha = jnp.asarray(SCHEDULE.alpha)
  sigma = jnp.asarray(SCHEDULE.sigma)

  def denoise(x, t):
    index = t.astype(jnp.int32)[:, None, None, None]
    eps = (x - alpha[index] * x0) / sigma[index]
    return jnp.concatenate([eps, jnp.zeros_like(eps)], axis=-1)

  xt = jax.random.normal(jax.random.key(0), x0.shape)
  run = samplers.by_name("iddpm")
  found = run(denoise, xt, SCHEDULE, steps=100, key=jax.random.key(1))
  np.testing.assert_allclose(found, x0, atol=1e-4)


def test_what_the_sampler_cannot_do_is_said():
  xt, key = jnp.zeros((1, 2, 2, 1)), jax.random.key(0)
  same = lambda x, t: x
  with pytest.raises(ValueError, match="needs a learned variance"):
    variational.iddpm(same, xt, SCHEDULE, steps=5, key=key)
  with pytest.raises(ValueError, match="give it a key"):
    variational.iddpm(same, xt, SCHEDULE, steps=5)
  with pytest.raises(ValueError, match="steps=1; iddpm takes 2"):
    variational.iddpm(same, xt, SCHEDULE, steps=1, key=key)
