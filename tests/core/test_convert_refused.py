# SPDX-License-Identifier: Apache-2.0
"""Weights that do not fit, and tables that cannot be."""

import pytest
from small_weights import NAMES, arrays, written

from cc_jax.core import convert


def test_all_that_is_wrong_is_in_one_message(tmp_path):
  shapes = {
    "a": arrays(("bias", (2,))),
    "b": arrays(("bias", (2,))),
    "c": arrays(("kernel", (2, 3))),
  }
  theirs = arrays(("a.bias", (3,)), ("c.weight", (3, 2)), ("d.bias", (1,)))
  tensors = written(tmp_path, theirs)
  with pytest.raises(ValueError, match="weights do not fit") as error:
    convert.import_weights(tensors, shapes, ())
  assert str(error.value) == (
    "weights do not fit: a.bias: expected (2,), got (3,); "
    "missing b.bias (our b.bias); left over d.bias"
  )


def test_a_layer_too_many_is_left_over(tmp_path):
  ours = {"blocks": {"norm": arrays(("scale", (2, 2)))}}
  more = {"blocks": {"norm": arrays(("scale", (3, 2)))}}
  tensors = written(tmp_path, convert.export_weights(more, NAMES))
  with pytest.raises(ValueError, match=r"left over h\.2\.ln\.weight"):
    convert.import_weights(tensors, ours, NAMES)


def test_many_differences_are_counted(tmp_path):
  theirs = arrays(*((f"x{number}", (1,)) for number in range(20)))
  with pytest.raises(ValueError, match="and 12 more"):
    convert.import_weights(written(tmp_path, theirs), {}, ())


def test_a_fused_tensor_that_does_not_divide_is_refused(tmp_path):
  tensors = written(tmp_path, arrays(("attn.qkv.bias", (7,))))
  shapes = {"attn": {"q": arrays(("bias", (2,)))}}
  with pytest.raises(ValueError, match=r"expected \(6,\), got \(7,\)"):
    convert.import_weights(tensors, shapes, NAMES)


def test_two_arrays_of_one_name_are_refused(tmp_path):
  params = {"norm": arrays(("bias", (1,))), "ln": arrays(("bias", (1,)))}
  with pytest.raises(ValueError, match=r"two of our arrays are ln\.bias"):
    convert.export_weights(params, NAMES)
  tensors = written(tmp_path, arrays(("ln.bias", (1,))))
  with pytest.raises(ValueError, match="asked for twice"):
    convert.import_weights(tensors, params, NAMES)


def test_part_of_a_fused_tensor_is_not_written():
  params = {"attn": {"q": arrays(("bias", (2,)))}}
  with pytest.raises(ValueError, match="has 1 of its 3 parts"):
    convert.export_weights(params, NAMES)


def test_a_part_of_their_tensor_that_nobody_asks_for_is_an_error(tmp_path):
  tensors = written(tmp_path, arrays(("attn.qkv.bias", (6,))))
  shapes = {"attn": {"q": arrays(("bias", (2,))), "k": arrays(("bias", (2,)))}}
  with pytest.raises(ValueError, match=r"parts 2 of attn\.qkv\.bias left over"):
    convert.import_weights(tensors, shapes, NAMES)
