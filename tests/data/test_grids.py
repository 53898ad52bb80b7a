# SPDX-License-Identifier: Apache-2.0
"""Grids show every picture, and PNG keeps every pixel."""

import numpy as np
import pictures
import pytest

from cc_jax.data import grids, images


def test_png_is_exact_and_deterministic():
  data = grids.encode_png(pictures.scene())
  assert data == grids.encode_png(pictures.scene().copy())
  np.testing.assert_array_equal(images.decode(data), pictures.scene())


def test_a_grid_shows_every_picture_crisply_with_room_for_labels():
  tiles = np.random.default_rng(0).integers(0, 200, (7, 8, 8, 3), np.uint8)
  plain = grids.grid(tiles, 3)
  labelled = grids.grid(tiles, 3, ["a handwritten seven"] * 7)
  assert plain.shape[1] == labelled.shape[1]
  assert plain.shape[0] < labelled.shape[0]
  for sheet in plain, labelled:
    assert (sheet[:10] == 255).all()
    assert (sheet[:, -10:] == 255).all()
  # The first picture, enlarged 14 times, pixel by pixel.
  tile = plain[24 : 24 + 112, 24 : 24 + 112]
  np.testing.assert_array_equal(tile[::14, ::14], tiles[0])
  np.testing.assert_array_equal(tile[13::14, 13::14], tiles[0])
  # Dark letters under the picture, and not beside it.
  below = labelled[24 + 114 : 24 + 114 + 38, 24 : 24 + 112]
  assert below.min() < 80
  np.testing.assert_array_equal(grids.grid(tiles, 3), plain)


def test_a_grid_of_large_pictures_keeps_their_pixels():
  tiles = np.stack([pictures.scene(150, 200)] * 2)
  sheet = grids.grid(tiles, 5, ["", "a word"])
  np.testing.assert_array_equal(sheet[24:174, 24:224], pictures.scene(150, 200))


def test_a_grid_refuses_nothing_to_show_and_a_label_too_few():
  tiles = np.zeros((2, 8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match="1 labels for 2 images"):
    grids.grid(tiles, 2, ["one"])
  with pytest.raises(ValueError, match="0 images"):
    grids.grid(tiles[:0], 2)
  with pytest.raises(ValueError, match="0 columns"):
    grids.grid(tiles, 0)
