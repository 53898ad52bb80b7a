# SPDX-License-Identifier: Apache-2.0
"""Classes: collected from a catalogue, kept in a file, read as numbers."""

import numpy as np
import pytest
import tiny

from cc_jax.data import classes, shards

NAMES = classes.Classes(("cat", "dog", "tabby, tabby cat"))


def test_all_values_of_a_feature_are_classes(tmp_path_factory):
  dataset = shards.open(f"{tiny.shared(tmp_path_factory)}/catalogue")
  assert classes.collect(dataset, "title").names == ("green", "red")
  with pytest.raises(ValueError, match=r"encode.label=.breed.: no"):
    classes.collect(dataset, "breed")


def test_a_file_gives_back_what_was_saved(tmp_path):
  path = f"{tmp_path}/classes.txt"
  classes.save(NAMES, path)
  assert classes.load(path) == NAMES
  with pytest.raises(ValueError, match="a class of several lines"):
    classes.save(classes.Classes(("a\nb",)), path)


@pytest.mark.parametrize("text", ["", "a\na\n", "a\n\nb\n"])
def test_a_file_that_numbers_no_classes_is_refused(text, tmp_path):
  path = tmp_path / "classes.txt"
  path.write_text(text)
  with pytest.raises(ValueError, match="expected a class a line"):
    classes.load(str(path))


def test_a_missing_file_is_said():
  with pytest.raises(ValueError, match=r"no file of classes .*encode.label"):
    classes.load("nowhere/classes.txt")


def test_numbers_are_places_and_none_comes_last():
  found = classes.encode(NAMES, ["dog", "", "tabby, tabby cat", "cat"])
  assert found.dtype == np.int32
  assert found.tolist() == [[1], [3], [2], [0]]
  with pytest.raises(ValueError, match="unknown class 'cats'; did you mean"):
    classes.encode(NAMES, ["cats"])


def test_the_hash_depends_on_the_order():
  other = classes.Classes(NAMES.names[::-1])
  assert classes.digest(NAMES) == classes.digest(classes.Classes(NAMES.names))
  assert classes.digest(NAMES) != classes.digest(other)
