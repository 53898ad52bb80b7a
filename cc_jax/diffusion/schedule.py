# SPDX-License-Identifier: Apache-2.0
"""How much of xt is data and how much is noise at each timestep.

Training mixes an example x0 with standard normal noise eps,

  xt = alpha x0 + sigma eps,    alpha^2 + sigma^2 = 1,              (1)

so that xt keeps unit variance when x0 has it ("variance preserving"). Timestep
t counts from 0 (almost data) to steps - 1 (almost noise). DDPM (Ho et al.
2006.11239) builds alpha from small variances beta added one after another,

  alpha(t)^2 = (1 - beta(0)) (1 - beta(1)) ... (1 - beta(t)),       (2)

which is `alphas_cumprod` in diffusers. The signal to noise ratio is

  snr = alpha^2 / sigma^2.                                          (3)

The network sees xt and t, and predicts one of three things. Any one gives the
others, since (1) leaves a single unknown. The third is the velocity (Salimans
& Ho 2202.00512): with alpha = cos(phi) and sigma = sin(phi), (1) walks along a
circle, and v is the derivative of xt in phi,

  v   = alpha eps - sigma x0,                                       (4)
  x0  = (xt - sigma eps) / alpha  =  alpha xt - sigma v,            (5)
  eps = (xt - alpha x0) / sigma   =  sigma xt + alpha v.            (6)

The best prediction in mean square is the conditional mean, E[eps | xt], and it
knows the score of the density p(xt) (Tweedie's formula):

  score = grad log p(xt) = -E[eps | xt] / sigma.                    (7)

Errors in the predictions are related by (1) and (4) at fixed xt, so that one
squared error is worth three weights:

  |error in x0|^2 = |error in eps|^2 / snr = |error in v|^2 / (snr + 1). (8)

Divided by alpha, xt becomes x0 + (sigma / alpha) eps: data with noise of
standard deviation sigma / alpha on top ("variance exploding"), the space in
which Euler's and Heun's methods are written (Karras et al. 2206.00364).

Where alpha reaches 0, at the last step of a schedule with zero terminal SNR,
xt = eps tells nothing of x0; (5) divides by zero for eps, and v = -x0 is the
prediction that still asks for something. Schedules that stop short of it teach
the network that xt's mean always leaks the brightness of x0 (Lin et al.
2305.08891).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Float64, Int, PRNGKeyArray
import numpy as np

KINDS = ("scaled_linear", "linear", "cosine")
PREDICTIONS = ("eps", "v", "x0")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A value: compares, hashes, and is closed over or static under `jax.jit`.

  `scaled_linear`, `linear`, `cosine` and `zero_terminal_snr` below make one.
  Its arrays are computed in float64 and stored in float32.

  Raises:
    ValueError: an unknown kind, fewer than two steps, betas outside (0, 1).
  """

  kind: str
  beta_start: float
  beta_end: float
  steps: int
  zero_snr: bool = False

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(
        f"unknown schedule {self.kind!r}; diffusion/schedule.py has "
        + ", ".join(KINDS)
      )
    if self.steps < 2:
      raise ValueError(f"a schedule of steps={self.steps}; it takes 2 or more")
    if not 0 < self.beta_start <= self.beta_end < 1:
      raise ValueError(
        f"beta_start={self.beta_start}, beta_end={self.beta_end}; expected "
        "0 < beta_start <= beta_end < 1"
      )

  @functools.cached_property
  def alpha(self) -> Float32[np.ndarray, "steps"]:
    """What multiplies x0 at each timestep."""
    return _frozen(exact_alpha(self))

  @functools.cached_property
  def sigma(self) -> Float32[np.ndarray, "steps"]:
    """What multiplies eps at each timestep."""
    return _frozen(np.sqrt(1 - exact_alpha(self) ** 2))


def scaled_linear(
  beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000
) -> Schedule:
  """Betas whose square roots rise linearly (Rombach et al. 2112.10752)."""
  return Schedule("scaled_linear", beta_start, beta_end, steps)


def linear(
  beta_start: float = 0.0001, beta_end: float = 0.02, steps: int = 1000
) -> Schedule:
  """Betas that rise linearly (Ho et al. 2006.11239, §4)."""
  return Schedule("linear", beta_start, beta_end, steps)


def cosine(steps: int = 1000) -> Schedule:
  """alpha follows a cosine (Nichol & Dhariwal 2102.09672, eq. 17).

  `squaredcos_cap_v2` in diffusers; no beta is over 0.999.
  """
  # The betas are diffusers' defaults, which it writes and does not use either.
  return Schedule("cosine", 0.0001, 0.02, steps)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
  """Moves and stretches alpha so that it ends at 0 (2305.08891, algorithm 1).

  The first alpha stays. Such a schedule takes v or x0, not eps.
  """
  return dataclasses.replace(schedule, zero_snr=True)


def exact_alpha(schedule: Schedule) -> Float64[np.ndarray, "steps"]:
  """alpha as it is computed; betas are differences of it, lost in float32."""
  ends = schedule.beta_start, schedule.beta_end
  if schedule.kind == "linear":
    beta = np.linspace(*ends, schedule.steps)
  elif schedule.kind == "scaled_linear":
    beta = np.linspace(*np.sqrt(ends), schedule.steps) ** 2
  else:
    at = np.arange(schedule.steps + 1) / schedule.steps
    alpha_bar = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
  alpha = np.sqrt(np.cumprod(1 - beta))
  if schedule.zero_snr:
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
  return alpha


def _frozen(values):
  values = values.astype(np.float32)
  values.setflags(write=False)
  return values


def check_prediction(schedule: Schedule, prediction: str) -> None:
  """Refuses an unknown prediction, and eps where alpha reaches 0."""
  if prediction not in PREDICTIONS:
    raise ValueError(
      f"unknown prediction {prediction!r}; diffusion/schedule.py has "
      + ", ".join(PREDICTIONS)
    )
  if prediction == "eps" and schedule.zero_snr:
    raise ValueError(
      "prediction='eps' with zero terminal SNR: the last xt is eps and says "
      "nothing of x0; use prediction='v'"
    )


def _at(values, t, like):
  """values[t], with a trailing axis of one for each axis of `like` but B."""
  return jnp.asarray(values)[t].reshape(t.shape + (1,) * (like.ndim - 1))


def add_noise(
  schedule: Schedule,
  x0: Float[jax.Array, "B *dims"],
  eps: Float[jax.Array, "B *dims"],
  t: Int[jax.Array, "B"],
) -> Float[jax.Array, "B *dims"]:
  """xt of equation (1)."""
  alpha, sigma = _at(schedule.alpha, t, x0), _at(schedule.sigma, t, x0)
  return alpha * x0 + sigma * eps


def velocity(
  schedule: Schedule,
  x0: Float[jax.Array, "B *dims"],
  eps: Float[jax.Array, "B *dims"],
  t: Int[jax.Array, "B"],
) -> Float[jax.Array, "B *dims"]:
  """v of equation (4)."""
  alpha, sigma = _at(schedule.alpha, t, x0), _at(schedule.sigma, t, x0)
  return alpha * eps - sigma * x0


def target(
  schedule: Schedule,
  x0: Float[jax.Array, "B *dims"],
  eps: Float[jax.Array, "B *dims"],
  t: Int[jax.Array, "B"],
  prediction: str,
) -> Float[jax.Array, "B *dims"]:
  """What the network is trained to output.

  Raises:
    ValueError: an unknown prediction, or eps with zero terminal SNR.
  """
  check_prediction(schedule, prediction)
  if prediction == "v":
    return velocity(schedule, x0, eps, t)
  return eps if prediction == "eps" else x0


def x0_from(
  output: Float[jax.Array, "*dims"],
  xt: Float[jax.Array, "*dims"],
  alpha: Float[jax.Array, "*coefficients"],
  sigma: Float[jax.Array, "*coefficients"],
  prediction: str,
) -> Float[jax.Array, "*dims"]:
  """x0 of equation (5), at an alpha and sigma that broadcast with xt."""
  if prediction == "x0":
    return output
  if prediction == "v":
    return alpha * xt - sigma * output
  return (xt - sigma * output) / alpha


def to_x0(
  schedule: Schedule,
  output: Float[jax.Array, "B *dims"],
  xt: Float[jax.Array, "B *dims"],
  t: Int[jax.Array, "B"],
  prediction: str,
) -> Float[jax.Array, "B *dims"]:
  """The data that a network's output stands for: equation (5).

  Raises:
    ValueError: an unknown prediction, or eps with zero terminal SNR.
  """
  check_prediction(schedule, prediction)
  alpha, sigma = _at(schedule.alpha, t, xt), _at(schedule.sigma, t, xt)
  return x0_from(output, xt, alpha, sigma, prediction)


def to_eps(
  schedule: Schedule,
  output: Float[jax.Array, "B *dims"],
  xt: Float[jax.Array, "B *dims"],
  t: Int[jax.Array, "B"],
  prediction: str,
) -> Float[jax.Array, "B *dims"]:
  """The noise that a network's output stands for: equation (6).

  Raises:
    ValueError: an unknown prediction, or eps with zero terminal SNR.
  """
  check_prediction(schedule, prediction)
  if prediction == "eps":
    return output
  alpha, sigma = _at(schedule.alpha, t, xt), _at(schedule.sigma, t, xt)
  if prediction == "v":
    return sigma * xt + alpha * output
  return (xt - alpha * output) / sigma


def snr(schedule: Schedule, t: Int[jax.Array, "B"]) -> Float32[jax.Array, "B"]:
  """Signal to noise ratio of equation (3); 0 at zero terminal SNR."""
  return jnp.square(jnp.asarray(schedule.alpha / schedule.sigma)[t])


def loss_weight(
  schedule: Schedule,
  t: Int[jax.Array, "B"],
  prediction: str,
  min_snr_gamma: float | int | None = None,
) -> Float32[jax.Array, "B"]:
  """What multiplies each example's squared error.

  Ones without `min_snr_gamma`. With it, the weight min(snr, gamma) on x0's
  squared error (Hang et al. 2303.09556, eq. 9; gamma is 5 there), carried over
  to the prediction at hand by equation (8):

    x0:  min(snr, gamma)
    eps: min(snr, gamma) / snr         which is 1 where snr < gamma
    v:   min(snr, gamma) / (snr + 1)   which is 0 at zero terminal SNR

  Raises:
    ValueError: an unknown prediction, eps with zero terminal SNR, gamma <= 0.
  """
  check_prediction(schedule, prediction)
  if min_snr_gamma is None:
    return jnp.ones(t.shape, jnp.float32)
  if min_snr_gamma <= 0:
    raise ValueError(f"min_snr_gamma={min_snr_gamma}; expected over 0, or None")
  ratio = snr(schedule, t)
  clipped = jnp.minimum(ratio, min_snr_gamma)
  if prediction == "x0":
    return clipped
  return clipped / (ratio if prediction == "eps" else ratio + 1)


def offset_noise(
  key: PRNGKeyArray, shape: tuple[int, ...], strength: float | int
) -> Float32[jax.Array, "..."]:
  """Standard normal noise plus one constant a sample and channel.

  The constant is normal with standard deviation `strength` (0.1 is common, 0
  turns it off), so that the network sees noise that moves the mean of a
  picture (N. Guttenberg, "Diffusion with Offset Noise", 2023).

  Args:
    shape: [B, ..., C]
  """
  key_noise, key_offset = jax.random.split(key)
  eps = jax.random.normal(key_noise, shape)
  constant = (shape[0],) + (1,) * (len(shape) - 2) + (shape[-1],)
  return eps + strength * jax.random.normal(key_offset, constant)


def sample_t(
  key: PRNGKeyArray, batch: int, schedule: Schedule, stratified: bool = False
) -> Int[jax.Array, "B"]:
  """Timesteps to train at, uniform over the schedule.

  With `stratified`, one random number shifts a regular grid of `batch` points
  around the schedule (Kingma et al. 2107.00630, appendix I.1): each timestep is
  still uniform, and the batch covers the schedule evenly, so that the loss
  varies less from step to step.
  """
  if not stratified:
    return jax.random.randint(key, (batch,), 0, schedule.steps)
  share = (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0
  # A share that rounds to 1 in float32 would be a step too far.
  t = jnp.floor(share * schedule.steps).astype(jnp.int32)
  return jnp.minimum(t, schedule.steps - 1)
