# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.models import placeholders

TOKENS = np.array([[0, 0, 1, 9, 5], [1, 9, 6, 7, 8], [0, 1, 4, 3, 9]])
MASK = TOKENS != 0


def test_a_placeholder_makes_room_for_an_image():
  tokens, mask = placeholders.expand(TOKENS, MASK, 9, 3)
  expected = [
    [0, 0, 1, 9, 9, 9, 5],
    [1, 9, 9, 9, 6, 7, 8],
    [0, 1, 4, 3, 9, 9, 9],
  ]
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_array_equal(mask, tokens != 0)
  same, _ = placeholders.expand(TOKENS, MASK, 9, 1)
  np.testing.assert_array_equal(same, TOKENS)


def test_an_image_takes_its_places_in_order():
  tokens, _ = placeholders.expand(TOKENS, MASK, 9, 3)
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 7, 4), np.float32)
  image = rng.standard_normal((3, 3, 4), np.float32)
  merged = np.asarray(jax.jit(placeholders.merge)(x, tokens == 9, image))
  for row in range(3):
    places = tokens[row] == 9
    np.testing.assert_array_equal(merged[row, places], image[row])
    np.testing.assert_array_equal(merged[row, ~places], x[row, ~places])


def test_places_need_not_stand_together():
  x, image = jnp.zeros((1, 5, 1)), jnp.array([[[1.0], [2.0]]])
  places = jnp.array([[False, True, False, False, True]])
  merged = placeholders.merge(x, places, image)
  assert merged[0, :, 0].tolist() == [0, 1, 0, 0, 2]


def test_merged_states_are_of_the_type_of_the_embeddings():
  x, image = jnp.zeros((1, 2, 1), jnp.bfloat16), jnp.ones((1, 1, 1))
  merged = placeholders.merge(x, jnp.array([[True, False]]), image)
  assert merged.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ([1, 2, 3, 4, 5], r"prompt 3 has 0 places for an image \(id 9\); write ex"),
    ([9, 2, 9, 4, 5], "prompt 3 has 2 places"),
  ],
)
def test_a_prompt_without_a_place_or_with_two_is_refused(row, message):
  tokens = np.concatenate([TOKENS, [row]])
  with pytest.raises(ValueError, match=message):
    placeholders.expand(tokens, tokens != 0, 9, 3)
