# SPDX-License-Identifier: Apache-2.0
"""A learned variance: its loss, and the sampler that uses it.

"Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672, §3.1, as
DiT and PixArt-alpha (arXiv 2310.00426) train. The reverse step from t to t - 1
is a normal with the posterior's mean at the predicted x0,

  mean = (alpha' beta x0 + sqrt(1 - beta) sigma'^2 xt) / sigma^2,           (1)

where ' marks t - 1, and with a variance between the posterior's and beta,

  log var = r log beta + (1 - r) log(beta sigma'^2 / sigma^2),              (2)

whose r the network predicts for each value, as 2 r - 1. What it is trained on
is the variational bound: the divergence of that step from the true posterior
and, at t = 0, the likelihood of the data in bins of 1 / 127.5. The bound's
gradient does not reach the predicted mean, which the squared error trains.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, PRNGKeyArray
import numpy as np

from cc_jax.diffusion import schedule as schedules
from cc_jax.diffusion import timesteps

# Up to this timestep PixArt-alpha's `snr_loss` is of x0, after it of eps.
LAST_X0 = 249
# Half of the width of a bin, where values are in [-1, 1].
HALF = 1 / 255


class Reverse(NamedTuple):
  """Equations (1) and (2) at each of some rising timesteps: [steps]."""

  t: np.ndarray
  alpha: np.ndarray
  sigma: np.ndarray
  from_x0: np.ndarray  # What multiplies x0 in (1),
  from_xt: np.ndarray  # and xt.
  low: np.ndarray  # log of the posterior's variance,
  high: np.ndarray  # and of beta.


def reverse(
  schedule: schedules.Schedule, t: Int[np.ndarray, "steps"] | None = None
) -> Reverse:
  """The reverse process that visits some timesteps; None for all.

  Args:
    schedule: of the training.
    t: rising; two or more.
  """
  t = np.arange(schedule.steps) if t is None else t
  alpha = schedules.exact_alpha(schedule)[t]
  before = np.append(1.0, alpha[:-1])
  beta = 1 - np.square(alpha / before)
  variance, variance_before = 1 - np.square(alpha), 1 - np.square(before)
  posterior = beta * variance_before / variance
  # Of the first step it is 0, for which that of the next stands.
  posterior[0] = posterior[1]
  return Reverse(
    t=t,
    alpha=alpha,
    sigma=np.sqrt(variance),
    from_x0=before * beta / variance,
    from_xt=np.sqrt(1 - beta) * variance_before / variance,
    low=np.log(posterior),
    high=np.log(beta),
  )


def bound(
  schedule: schedules.Schedule,
  predicted: Float[jax.Array, "B *dims"],
  between: Float[jax.Array, "B *dims"],
  x0: Float[jax.Array, "B *dims"],
  xt: Float[jax.Array, "B *dims"],
  t: Int[jax.Array, "B"],
) -> Float32[jax.Array, "B *dims"]:
  """Each value's term of the variational bound, in bits.

  Args:
    schedule: T steps.
    predicted: x0 as the network has it; no gradient goes there.
    between: 2 r - 1 of equation (2).
    x0: the data.
    xt: noised to t.
    t: timesteps.
  """
  at = _at(reverse(schedule), t, x0)
  predicted = jax.lax.stop_gradient(predicted)
  # The means differ in x0 alone.
  difference = at.from_x0 * (x0 - predicted)
  log_variance = at.low + (between + 1) / 2 * (at.high - at.low)
  divergence = 0.5 * (
    log_variance
    - at.low
    - 1
    + jnp.exp(at.low - log_variance)
    + jnp.square(difference) * jnp.exp(-log_variance)
  )
  mean = at.from_x0 * predicted + at.from_xt * xt
  likelihood = log_likelihood(x0, mean, log_variance / 2)
  first = (t == 0).reshape(-1, *(1,) * (x0.ndim - 1))
  return jnp.where(first, -likelihood, divergence) / math.log(2)


def log_likelihood(
  x: Float[jax.Array, "*dims"],
  mean: Float[jax.Array, "*dims"],
  log_deviation: Float[jax.Array, "*dims"],
) -> Float[jax.Array, "*dims"]:
  """Log of a normal's mass in the bin of x; the outermost bins are open.

  In nats, by the tanh approximation of the normal's integral, and at least
  log 1e-12: arXiv 2006.11239, eq. 13, as its code has it.
  """
  scale = jnp.exp(-log_deviation)
  above = _integral(scale * (x - mean + HALF))
  below = _integral(scale * (x - mean - HALF))
  mass = jnp.where(
    x < -0.999, above, jnp.where(x > 0.999, 1 - below, above - below)
  )
  return jnp.log(jnp.maximum(mass, 1e-12))


def _integral(x):
  return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def snr_weight(
  schedule: schedules.Schedule, t: Int[jax.Array, "B"], prediction: str
) -> Float32[jax.Array, "B"]:
  """What makes the squared error one of x0 at first, of eps from 250 on.

  PixArt-alpha's `snr_loss`, an option that its published models did not take;
  equation (8) of schedule.py carries it over to other predictions.
  """
  schedules.check_prediction(schedule, prediction)
  snr = schedules.snr(schedule, t)
  of_x0 = jnp.where(t > LAST_X0, snr, 1)
  per = {"x0": 1, "eps": snr, "v": snr + 1}[prediction]
  return of_x0 / per


def iddpm(
  denoise: Callable[[jax.Array, jax.Array], jax.Array],
  xt: Float[jax.Array, "B *dims C"],
  schedule: schedules.Schedule,
  *,
  steps: int = 100,
  prediction: str = "eps",
  spacing: str = "linspace",
  steps_offset: int = 1,
  key: PRNGKeyArray | None = None,
) -> Float32[jax.Array, "B *dims C"]:
  """Ancestral sampling with the learned variance: steps of (1) and (2).

  As the samplers of samplers.py, but that `denoise` gives [B ... 2 C], the
  prediction and then 2 r - 1. PixArt-alpha makes 100 steps, DiT 250, spaced as
  "linspace". With fewer steps than the schedule's, beta is that from one
  visited timestep to the next, as in the paper's §4.

  Raises:
    ValueError: no key, fewer than two steps, a network without a variance, or
      what the other samplers refuse.
  """
  if key is None:
    raise ValueError("this sampler adds noise on the way; give it a key")
  if steps < 2:
    raise ValueError(f"steps={steps}; iddpm takes 2 or more")
  schedules.check_prediction(schedule, prediction)
  t = timesteps.spaced(schedule, steps, spacing, steps_offset).astype(int)
  plan = Reverse(
    *(jnp.asarray(x[::-1], jnp.float32) for x in reverse(schedule, t[::-1]))
  )

  def step(x, row):
    i, at = row
    output = denoise(x, jnp.full(x.shape[:1], at.t)).astype(jnp.float32)
    if output.shape != (*x.shape[:-1], 2 * x.shape[-1]):
      raise ValueError(
        f"iddpm needs a learned variance: the network gave {output.shape} for "
        f"an xt of {x.shape}, not twice its channels; use ddpm"
      )
    output, between = jnp.split(output, 2, axis=-1)
    x0 = schedules.x0_from(output, x, at.alpha, at.sigma, prediction)
    log_variance = at.low + (between + 1) / 2 * (at.high - at.low)
    z = jax.random.normal(jax.random.fold_in(key, i), x.shape)
    # The last step ends at its mean.
    deviation = jnp.where(i == steps - 1, 0, jnp.exp(log_variance / 2))
    return at.from_x0 * x0 + at.from_xt * x + deviation * z, None

  rows = jnp.arange(steps), plan
  return jax.lax.scan(step, xt.astype(jnp.float32), rows)[0]


def _at(plan, t, like):
  """Each number of a plan at t, as `like` broadcasts."""
  shape = (-1, *(1,) * (like.ndim - 1))
  return Reverse(
    *(jnp.asarray(values, jnp.float32)[t].reshape(shape) for values in plan)
  )
