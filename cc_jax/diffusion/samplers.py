# SPDX-License-Identifier: Apache-2.0
"""From noise to data: five samplers that are one loop.

A sixth, for networks that learn a variance, is in variational.py: iddpm.

A sampler calls the network at falling timesteps. Each call turns xt into an
estimate of the data, x0 (schedule.py, equation 5), and moves towards it. All
five methods take the same linear step from (alpha, sigma) to (alpha', sigma'),

  x' = c x + (alpha' - alpha c) D + n z,   c = sqrt(sigma'^2 - n^2) / sigma, (1)

with fresh noise z of standard deviation n, and differ in n, in the timesteps,
and in D, which is x0 corrected by the x0 of the call before:

  D = x0 + w (x0 - x0 before).                                          (2)

  ddim          w = 0;  n = eta sigma'/sigma sqrt(1 - alpha^2/alpha'^2)
  ddpm          w = 0;  n as with eta = 1: the posterior's deviation
  euler         w = 0;  n = 0: Euler's method on sigma/alpha is DDIM
  heun          a first call as Euler's, a second at the point it led to, which
                steps again from where the first began: w = 1/(2r) - 1, r the
                ratio of the second sigma/alpha to the first
  dpm_solver_pp w = h/(2 h before), h the step in log(alpha/sigma); 0 in the
                first and the last step

(1) is `x' = alpha' x0 + sqrt(sigma'^2 - n^2) eps + n z` with eps written in x0
and x; it holds where alpha or sigma' is 0. The coefficients
are numbers that numpy computes in float64 before tracing. The loop is one
`jax.lax.scan` with one call of the network in its body, so that compile time
does not grow with steps.

Every sampler is called alike:

  x0 = ddim(denoise, xt, schedule, steps=50, prediction="v", key=key)

`denoise(xt, t)` is the network: xt [B ...] float32 of unit variance, t [B]
float32 training timesteps (euler and heun ask for fractions), and returns
[B ...] in any float type. The samplers take standard normal noise xt [B ...]
and return x0 [B ...] float32. Common arguments:

  steps       how many steps; heun makes 2 steps - 1 calls, the others `steps`
  prediction  what the network outputs: "eps", "v" or "x0"
  spacing     "trailing", "leading" (with `steps_offset`) or "linspace":
              timesteps.py
  key         for noise on the way: ddpm, and ddim with eta over 0; the others
              take it, so that all are called alike, and do not use it

These are diffusers' schedulers, number for number (tests/diffusion/
test_diffusers.py), their quirks included where they are said below. Both of its
deviations from its own definition are left out: it adds a step at t = -1 for 62
of the first 1,000 `steps` with trailing (61, 103, ...), and starts at t = 0 or
1 for steps=1 with linspace or leading, which is a ValueError here.

Every sampler raises ValueError for steps, spacing, prediction, schedule or key
that do not fit together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, PRNGKeyArray
import numpy as np

from cc_jax.diffusion import schedule as schedules
from cc_jax.diffusion import timesteps, variational

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


class _Plan(NamedTuple):
  """The calls of the network, each field a number a call: float32 [calls]."""

  t: np.ndarray
  alpha: np.ndarray
  sigma: np.ndarray
  keep: np.ndarray  # c in (1)
  move: np.ndarray  # alpha' - alpha c in (1)
  lean: np.ndarray  # w in (2)
  noise: np.ndarray  # n in (1)
  again: np.ndarray  # 1: steps from where the call before did


def ddim(
  denoise: Denoise,
  xt: Float[jax.Array, "B *dims"],
  schedule: schedules.Schedule,
  *,
  steps: int,
  prediction: str = "eps",
  spacing: str = "trailing",
  steps_offset: int = 1,
  set_alpha_to_one: bool = True,
  eta: float | int = 0.0,
  key: PRNGKeyArray | None = None,
) -> Float32[jax.Array, "B *dims"]:
  """DDIM (Song et al. 2010.02502, eq. 12); eta=1 adds DDPM's noise.

  As in DDIMScheduler, a step goes from t to t - T // steps, which with
  linspace, or with trailing where `steps` does not divide T, is not where the
  next one starts. Without `set_alpha_to_one` the last step ends at the noise of
  t = 0 (Stable Diffusion's setting, with leading).
  """
  if not 0 <= eta <= 1:
    raise ValueError(f"eta={eta}; expected between 0 and 1")
  t = timesteps.spaced(schedule, steps, spacing, steps_offset).astype(int)
  alpha, sigma = timesteps.at(schedule, t)
  before = t - schedule.steps // steps
  alpha_next, sigma_next = timesteps.at(schedule, np.maximum(before, 0))
  if set_alpha_to_one:
    alpha_next, sigma_next = (
      np.where(before < 0, end, values)
      for end, values in ((1, alpha_next), (0, sigma_next))
    )
  plan = _plan(t, alpha, sigma, alpha_next, sigma_next, eta=eta)
  return _run(denoise, xt, schedule, plan, prediction, key)


def ddpm(
  denoise: Denoise,
  xt: Float[jax.Array, "B *dims"],
  schedule: schedules.Schedule,
  *,
  steps: int,
  prediction: str = "eps",
  spacing: str = "trailing",
  steps_offset: int = 1,
  key: PRNGKeyArray | None = None,
) -> Float32[jax.Array, "B *dims"]:
  """DDPM's ancestral sampling (Ho et al. 2006.11239, eq. 7).

  The variance is the posterior's ("fixed_small"). Needs `key`.
  """
  t = timesteps.spaced(schedule, steps, spacing, steps_offset).astype(int)
  plan = _plan(t, *_path(*timesteps.at(schedule, t)), eta=1.0)
  return _run(denoise, xt, schedule, plan, prediction, key)


def euler(
  denoise: Denoise,
  xt: Float[jax.Array, "B *dims"],
  schedule: schedules.Schedule,
  *,
  steps: int,
  prediction: str = "eps",
  spacing: str = "trailing",
  steps_offset: int = 1,
  key: PRNGKeyArray | None = None,
) -> Float32[jax.Array, "B *dims"]:
  """Euler's method in sigma/alpha (Karras et al. 2206.00364, algorithm 1)."""
  del key
  t = timesteps.spaced(schedule, steps, spacing, steps_offset, whole=False)
  plan = _plan(t, *_path(*timesteps.between(schedule, t)))
  xt = xt * _start(plan, spacing)
  return _run(denoise, xt, schedule, plan, prediction, None)


def heun(
  denoise: Denoise,
  xt: Float[jax.Array, "B *dims"],
  schedule: schedules.Schedule,
  *,
  steps: int,
  prediction: str = "eps",
  spacing: str = "trailing",
  steps_offset: int = 1,
  key: PRNGKeyArray | None = None,
) -> Float32[jax.Array, "B *dims"]:
  """Heun's method in sigma/alpha (Karras et al. 2206.00364, algorithm 1).

  The last step, to sigma 0, is Euler's. No zero terminal SNR: the method steps
  in sigma/alpha, which is infinite there.
  """
  del key
  if schedule.zero_snr:
    raise ValueError(
      "heun cannot start at zero terminal SNR, where sigma/alpha is infinite; "
      "use dpm_solver_pp, euler, ddim or ddpm"
    )
  t = timesteps.spaced(schedule, steps, spacing, steps_offset, whole=False)
  alpha, sigma, alpha_next, sigma_next = _path(*timesteps.between(schedule, t))
  first = _plan(t, alpha, sigma, alpha_next, sigma_next)
  ratio = (sigma_next * alpha / (alpha_next * sigma))[:-1]
  second = first._replace(
    t=np.append(t[1:], 0),
    alpha=alpha_next,
    sigma=sigma_next,
    lean=np.append(1 / (2 * ratio) - 1, 0),
    again=np.ones_like(t),
  )
  both = (
    np.stack(rows, 1).ravel()[:-1] for rows in zip(first, second, strict=True)
  )
  plan = _Plan(*both)
  xt = xt * _start(plan, spacing)
  return _run(denoise, xt, schedule, plan, prediction, None)


def dpm_solver_pp(
  denoise: Denoise,
  xt: Float[jax.Array, "B *dims"],
  schedule: schedules.Schedule,
  *,
  steps: int = 20,
  prediction: str = "eps",
  spacing: str = "trailing",
  steps_offset: int = 1,
  key: PRNGKeyArray | None = None,
) -> Float32[jax.Array, "B *dims"]:
  """DPM-Solver++ 2M, midpoint (Lu et al. 2211.01095, algorithm 2).

  Here linspace and leading divide the schedule into steps + 1 and leave out the
  end at t = 0.
  """
  del key
  t = timesteps.spaced(schedule, steps, spacing, steps_offset, open_end=True)
  alpha, sigma, alpha_next, sigma_next = _path(*timesteps.between(schedule, t))
  h = np.diff(np.log(alpha / sigma))
  lean = np.zeros_like(t)
  lean[1:-1] = h[1:] / (2 * h[:-1])
  plan = _plan(t, alpha, sigma, alpha_next, sigma_next)._replace(lean=lean)
  return _run(denoise, xt, schedule, plan, prediction, None)


SAMPLERS = {
  "ddim": ddim,
  "ddpm": ddpm,
  "euler": euler,
  "heun": heun,
  "dpm_solver_pp": dpm_solver_pp,
}
# Which ask the network for a variance, too.
LEARNED = {"iddpm": variational.iddpm}


def by_name(name: str) -> Callable[..., jax.Array]:
  """The sampler of this name; ValueError with the names for another."""
  found = SAMPLERS | LEARNED
  if name not in found:
    raise ValueError(
      f"unknown sampler {name!r}; diffusion/samplers.py has " + ", ".join(found)
    )
  return found[name]


def guided(
  denoise: Callable[[jax.Array, jax.Array, Any], jax.Array],
  cond: Any,
  uncond: Any,
  guidance: float | int | Float[jax.Array, ""],
  rescale: float | int = 0.0,
  channels: int | None = None,
) -> Denoise:
  """Classifier-free guidance (Ho & Salimans 2207.12598) around a network.

    output = conditional + (guidance - 1) (conditional - unconditional)

  from one call on a doubled batch, unconditional half first. At guidance 1 this
  is the conditional output exactly, and where 1 is a number (no tracer) the
  unconditional half is not computed. Guidance over 1 raises the contrast of the
  output; `rescale` (phi in Lin et al. 2305.08891, eq. 15-16; 0.7 there) moves
  each sample's standard deviation that share of the way back to the
  conditional output's.

  Args:
    denoise: `denoise(xt, t, context)` -> output, shaped as xt.
    cond: the context, a pytree of arrays [B ...].
    uncond: the context of the empty prompt, with the same shapes.
    guidance: 1 for none; may be a traced scalar.
    rescale: from 0, for none, to 1.
    channels: how many of the output are guided, the first ones; the others, as
      a learned variance, are the conditional output's. None for all. DiT's code
      guides three of four latent channels.
  """
  if not 0 <= rescale <= 1:
    raise ValueError(f"rescale={rescale}; expected between 0 and 1")
  if not isinstance(guidance, jax.Array) and guidance == 1:
    return lambda xt, t: denoise(xt, t, cond)
  context = jax.tree.map(lambda *both: jnp.concatenate(both), uncond, cond)

  def denoise_guided(xt, t):
    outputs = denoise(
      jnp.tile(xt, (2,) + (1,) * (xt.ndim - 1)), jnp.tile(t, 2), context
    )
    without, whole = jnp.split(outputs.astype(jnp.float32), 2)
    without, given = without[..., :channels], whole[..., :channels]
    rest = whole[..., given.shape[-1] :]
    output = given + (guidance - 1) * (given - without)
    if rescale == 0:
      return jnp.concatenate([output, rest], axis=-1)
    axes = tuple(range(1, xt.ndim))
    ratio = given.std(axes, keepdims=True) / output.std(axes, keepdims=True)
    output = output * (1 + rescale * (ratio - 1))
    return jnp.concatenate([output, rest], axis=-1)

  return denoise_guided


def _path(alpha, sigma):
  """alpha, sigma and those a step later; the last step ends at the data."""
  return alpha, sigma, np.append(alpha[1:], 1), np.append(sigma[1:], 0)


def _plan(t, alpha, sigma, alpha_next, sigma_next, eta=0.0):
  """The coefficients of (1), one call of the network a step, w = 0."""
  noise = eta * sigma_next / sigma * np.sqrt(1 - np.square(alpha / alpha_next))
  keep = np.sqrt(np.square(sigma_next) - np.square(noise)) / sigma
  zero = np.zeros_like(alpha)
  return _Plan(
    t=t,
    alpha=alpha,
    sigma=sigma,
    keep=keep,
    move=alpha_next - alpha * keep,
    lean=zero,
    noise=noise,
    again=zero,
  )


def _start(plan, spacing):
  """Deviation of the first xt for euler and heun, which diffusers starts with.

  It takes sigma z for alpha x0 + sigma z with linspace and trailing, as if x0
  were 0 for sure, and a z of unit variance with leading.
  """
  return 1.0 if spacing == "leading" else float(plan.sigma[0])


def _run(denoise, xt, schedule, plan, prediction, key):
  """The loop: equations (1) and (2) once for each call in the plan."""
  schedules.check_prediction(schedule, prediction)
  noisy = bool(plan.noise.any())
  if noisy and key is None:
    raise ValueError("this sampler adds noise on the way; give it a key")

  def call(carry, row):
    i, at = row
    x, base, x0_before = carry
    output = denoise(x, jnp.full(x.shape[:1], at.t))
    if output.shape != x.shape:
      raise ValueError(
        f"the network gave {output.shape} for an xt of {x.shape}; expected the "
        "same shape"
      )
    output = output.astype(jnp.float32)
    x0 = schedules.x0_from(output, x, at.alpha, at.sigma, prediction)
    base = jnp.where(at.again, base, x)
    x = at.keep * base + at.move * (x0 + at.lean * (x0 - x0_before))
    if noisy:
      z = jax.random.normal(jax.random.fold_in(key, i), x.shape)
      x = x + at.noise * z
    return (x, base, x0), None

  xt = xt.astype(jnp.float32)
  plan = _Plan(*(jnp.asarray(values, jnp.float32) for values in plan))
  rows = jnp.arange(plan.t.size), plan
  (x, _, _), _ = jax.lax.scan(call, (xt, xt, jnp.zeros_like(xt)), rows)
  return x
