# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sklearn import datasets

from cc_jax.metrics import recognition


@pytest.fixture(scope="module")
def digits():
  """Images [N 8 8 3] in [0, 1] and their labels, half to learn from."""
  found = datasets.load_digits()
  images = np.repeat(found.images[..., None] / 16, 3, axis=-1)
  labels = [f"digit {label}" for label in found.target]
  # Writers come in blocks, so every other digit is held out.
  return (images[::2], labels[::2]), (images[1::2], labels[1::2])


def test_real_digits_are_recognised(digits):
  (images, labels), held_out = digits
  judge = recognition.fit(images, labels, 8)
  assert recognition.recognised(judge, *held_out, 8) >= 0.98


def test_larger_pictures_of_digits_are_recognised_as_well(digits):
  (images, labels), (held_out, names) = digits
  judge = recognition.fit(images, labels, 8)
  large = held_out.repeat(4, axis=1).repeat(4, axis=2)
  share = recognition.recognised(judge, large, names, 8)
  assert share == recognition.recognised(judge, held_out, names, 8)


def test_fewer_cells_still_tell_digits_apart(digits):
  (images, labels), held_out = digits
  judge = recognition.fit(images, labels, 4)
  assert 0.8 < recognition.recognised(judge, *held_out, 4) < 0.98


def test_shuffled_labels_are_met_by_chance(digits):
  (images, labels), (held_out, names) = digits
  judge = recognition.fit(images, labels, 8)
  shuffled = list(np.random.default_rng(0).permutation(names))
  share = recognition.recognised(judge, held_out, shuffled, 8)
  # A tenth, with four standard deviations of 898 draws.
  assert share == pytest.approx(0.1, abs=0.04)


def test_noise_is_not_recognised(digits):
  (images, labels), (held_out, names) = digits
  judge = recognition.fit(images, labels, 8)
  noise = np.random.default_rng(0).random(held_out.shape)
  assert recognition.recognised(judge, noise, names, 8) < 0.2


def test_pixels_are_mean_greys_from_0_to_16():
  picture = np.zeros((1, 4, 4, 3))
  picture[:, :2, :2] = 1
  picture[:, 2:, 2:, 1] = 0.5
  np.testing.assert_allclose(
    recognition.pixels(picture, 2), [[16, 0, 0, 16 * 0.587 * 0.5]]
  )


def test_pictures_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="9 x 8 images do not divide into 8"):
    recognition.pixels(np.zeros((1, 9, 8, 3)), 8)


def test_one_label_is_refused(digits):
  (images, _), _ = digits
  with pytest.raises(ValueError, match="two labels or more"):
    recognition.fit(images, ["zero"] * len(images), 8)
