# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cc_jax.diffusion import schedule, timesteps

SCALES = schedule.scaled_linear()


def test_spacings_are_as_in_table_2_of_lin_et_al():
  spaced = lambda *args, **options: timesteps.spaced(
    SCALES, 10, *args, **options
  )
  assert list(spaced("trailing", 1)) == [999 - 100 * i for i in range(10)]
  assert list(spaced("leading", 1)) == [901 - 100 * i for i in range(10)]
  assert list(spaced("linspace", 1)) == [999 - 111 * i for i in range(10)]
  assert spaced("linspace", 1, open_end=True)[-1] == 100


def test_every_count_gives_that_many_steps():
  for steps in range(1, 1001):
    t = timesteps.spaced(SCALES, steps, "trailing", 1)
    assert t.shape == (steps,)
    assert t[0] == 999
    assert t[-1] >= 0


def test_between_two_timesteps_their_ratio_is_linear():
  t = np.array([998.0, 997.5, 0.0])
  alpha, sigma = timesteps.between(SCALES, t)
  ratio = SCALES.sigma / SCALES.alpha
  middle = (ratio[997] + ratio[998]) / 2
  np.testing.assert_allclose(sigma / alpha, [ratio[998], middle, ratio[0]])
  np.testing.assert_allclose(alpha**2 + sigma**2, 1)


@pytest.mark.parametrize(
  ("steps", "spacing", "message"),
  [
    (0, "trailing", "steps=0; expected 1 to 1000"),
    (1001, "trailing", "steps=1001; expected 1 to 1000"),
    (20, "karras", "unknown spacing 'karras'"),
    (1, "leading", "would start at t=1"),
    (1, "linspace", "would start at t=0"),
    (1000, "leading", "do not fit a schedule of 1000 steps"),
  ],
)
def test_what_does_not_fit_is_said(steps, spacing, message):
  with pytest.raises(ValueError, match=message):
    timesteps.spaced(SCALES, steps, spacing, 1)
