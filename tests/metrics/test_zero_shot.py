# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cc_jax.metrics import zero_shot


def test_an_image_is_of_the_class_whose_prompts_are_nearest():
  classes = np.eye(3, dtype=np.float32)
  images = np.array([[9, 1, 0], [0, 0.1, 0], [0.5, 0, 0.4]], np.float32)
  labels = np.array([0, 1, 2])
  assert zero_shot.accuracy(images, classes, labels) == pytest.approx(2 / 3)


def test_prompts_of_a_class_weigh_alike_whatever_their_length():
  prompts = [np.array([[10, 0], [0, 1]], np.float32)]
  found = zero_shot.class_embeddings(prompts)
  np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_the_gap_of_two_opposite_cones_is_two_and_of_one_cone_none():
  rows = np.random.default_rng(0).uniform(1, 2, (50, 1)).astype(np.float32)
  one = rows * np.array([[1, 0]], np.float32)
  assert zero_shot.modality_gap(one, -one) == pytest.approx(2)
  assert zero_shot.modality_gap(one, 3 * one) == pytest.approx(0, abs=1e-6)


def test_the_gap_of_two_rings_is_the_distance_of_their_axes():
  """Points (cos, sin, h) / |.| around an axis have their mean on it."""
  angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
  ring = lambda h: np.stack([np.cos(angle), np.sin(angle), 0 * angle + h], 1)
  h, k = 2.0, -0.5
  expected = h / (1 + h * h) ** 0.5 - k / (1 + k * k) ** 0.5
  found = zero_shot.modality_gap(ring(h), ring(k))
  assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ("images", "labels", "words"),
  [
    (np.ones((3, 2)), np.arange(2), "3 images with 2 labels"),
    (np.ones((2, 3)), np.arange(2), "widths differ"),
    (np.zeros((2, 2)), np.arange(2), "images: row 0 is zero"),
  ],
)
def test_sets_of_which_no_number_can_be_made_are_refused(images, labels, words):
  with pytest.raises(ValueError, match=words):
    zero_shot.accuracy(images, np.eye(2), labels)
