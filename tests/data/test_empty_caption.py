# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cc_jax.data import empty_caption


def test_states_are_found_beside_a_dataset_and_padded(tmp_path):
  states = np.arange(6, dtype=np.float32).reshape(2, 3)
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  empty_caption.write(f"{tmp_path}/b", states)
  found, mask = empty_caption.load([f"{tmp_path}/a", f"{tmp_path}/b"], 4)
  np.testing.assert_array_equal(found, [*states, [0, 0, 0], [0, 0, 0]])
  assert mask.tolist() == [True, True, False, False]


def test_what_is_missing_or_too_long_is_said(tmp_path):
  with pytest.raises(ValueError, match=r"encode.text_states"):
    empty_caption.load([str(tmp_path)], 4)
  with pytest.raises(ValueError, match="text states of 5 tokens"):
    empty_caption.pad(np.zeros((5, 2)), 4)
