# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest
import safetensors.numpy

from cc_jax.core import convert

NAMES = (
  ("blocks", "h.{l}"),
  ("attn.q", "attn.qkv[0/3]"),
  ("attn.k", "attn.qkv[1/3]"),
  ("attn.v", "attn.qkv[2/3]"),
  ("norm", "ln"),
)


def arrays(*names):
  """An array with values of its own for each (path, shape)."""
  rng = np.random.default_rng(0)
  return {name: rng.standard_normal(shape, np.float32) for name, shape in names}


def attention(*axes):
  """q, k and v of 4 -> 2, below stacked axes."""
  return {
    name: arrays(("kernel", (*axes, 4, 2)), ("bias", (*axes, 2)))
    for name in "qkv"
  }


def written(folder, tensors):
  convert.save_folder(str(folder), tensors, {}, stem="model")
  return convert.open_tensors(str(folder))


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    ("norm.scale", "ln.weight"),
    ("norm.bias", "ln.bias"),
    ("norm1.scale", "norm1.weight"),
    ("token.embedding", "token.weight"),
    ("position", "position"),
    ("blocks.norm.scale", "h.{l}.ln.weight"),
    ("my_blocks.norm.scale", "my_blocks.ln.weight"),
  ],
)
def test_rows_rewrite_whole_segments(ours, theirs):
  assert convert.place(ours, NAMES).name == theirs


def test_rows_apply_one_after_another():
  names = (("mlp.up", "fc1"), ("up", "linear_1"), ("fc1", "net.0"))
  assert convert.place("mlp.up.bias", names).name == "net.0.bias"
  assert convert.place("time.up.bias", names).name == "time.linear_1.bias"


def test_axes_are_in_the_order_of_torch():
  params = {
    "linear": arrays(("kernel", (2, 3))),
    "conv": arrays(("kernel", (3, 5, 2, 4))),
    "token": arrays(("embedding", (7, 2))),
  }
  theirs = convert.export_weights(params, ())
  np.testing.assert_array_equal(
    theirs["linear.weight"], params["linear"]["kernel"].T
  )
  np.testing.assert_array_equal(
    theirs["conv.weight"], params["conv"]["kernel"].transpose(3, 2, 0, 1)
  )
  np.testing.assert_array_equal(
    theirs["token.weight"], params["token"]["embedding"]
  )


def test_stacked_and_fused_arrays_go_there_and_back(tmp_path):
  params = {
    "blocks": {"attn": attention(3), "norm": arrays(("scale", (3, 2)))},
    "attn": attention(),
  }
  theirs = convert.export_weights(params, NAMES)
  assert theirs["h.2.attn.qkv.weight"].shape == (6, 4)
  np.testing.assert_array_equal(
    theirs["h.2.attn.qkv.weight"][2:4],
    params["blocks"]["attn"]["k"]["kernel"][2].T,
  )
  assert len(theirs) == 3 * 3 + 2
  back = convert.import_weights(written(tmp_path, theirs), params, NAMES)
  same(back, params)
  shapes = {name: array.shape for name, array in theirs.items()}
  assert convert.export_shapes(params, NAMES) == shapes


def test_a_matrix_that_lies_transposed_there_is_turned_even_in_parts(tmp_path):
  names = (*NAMES[:1], ("q", "c_attn[0/2]^T"), ("k", "c_attn[1/2]^T"))
  layers = {
    name: arrays(("kernel", (3, 4, 2)), ("bias", (3, 2))) for name in "qk"
  }
  params = {"blocks": layers}
  theirs = convert.export_weights(params, names)
  assert theirs.keys() == {
    f"h.{layer}.c_attn.{leaf}"
    for layer in range(3)
    for leaf in ("weight", "bias")
  }
  np.testing.assert_array_equal(
    theirs["h.1.c_attn.weight"],
    np.concatenate([layers[name]["kernel"][1] for name in "qk"], axis=1),
  )
  shapes = {name: array.shape for name, array in theirs.items()}
  assert convert.export_shapes(params, names) == shapes
  same(convert.import_weights(written(tmp_path, theirs), params, names), params)


def test_one_array_may_be_a_copy_in_each_of_their_layers(tmp_path):
  names = (("blocks", "h.{l}"), ("time", "h.{*}.emb.time"))
  params = {
    "blocks": {"norm": arrays(("scale", (3, 2)))},
    "time": arrays(("kernel", (4, 2)), ("bias", (2,))),
  }
  theirs = convert.export_weights(params, names)
  assert sorted(theirs) == sorted(
    f"h.{n}.{leaf}"
    for n in range(3)
    for leaf in ("norm.weight", "emb.time.weight", "emb.time.bias")
  )
  assert convert.export_shapes(params, names) == {
    name: array.shape for name, array in theirs.items()
  }
  found = written(tmp_path / "same", theirs)
  same(convert.import_weights(found, params, names), params)
  theirs["h.1.emb.time.bias"] = theirs["h.1.emb.time.bias"] + 1
  del theirs["h.2.emb.time.weight"]
  found = written(tmp_path / "other", theirs)
  with pytest.raises(ValueError, match=r"missing h\.2\.emb") as caught:
    convert.import_weights(found, params, names)
  assert "h.1.emb.time.bias differs from h.0.emb.time.bias" in str(caught.value)


def test_half_precision_is_read_as_float32(tmp_path):
  tensors = written(tmp_path, {"a.bias": np.ones(3, np.float16)})
  read = convert.import_weights(tensors, {"a": arrays(("bias", (3,)))}, ())
  assert read["a"]["bias"].dtype == np.float32


def test_a_1x1_convolution_there_may_be_a_linear_layer_here(tmp_path):
  params = {"proj": arrays(("kernel", (2, 3)))}
  theirs = params["proj"]["kernel"].T[:, :, None, None]
  tensors = written(tmp_path, {"proj.weight": theirs})
  same(convert.import_weights(tensors, params, ()), params)


def test_early_spellings_are_read(tmp_path):
  params = {"mid": {"attentions": {"0": {"to_q": arrays(("kernel", (2, 2)))}}}}
  kernel = params["mid"]["attentions"]["0"]["to_q"]["kernel"]
  tensors = written(
    tmp_path,
    {
      "mid.attentions.0.query.weight": kernel.T,
      "embeddings.position_ids": np.arange(3),
    },
  )
  same(convert.import_weights(tensors, params, ()), params)


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
  with pytest.raises(ValueError, match="has no 3 parts"):
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


def test_several_files_are_one_model(tmp_path):
  for number in range(2):
    safetensors.numpy.save_file(
      arrays((f"x{number}", (2,))), tmp_path / f"model-{number}.safetensors"
    )
  assert sorted(convert.open_tensors(str(tmp_path))) == ["x0", "x1"]


def test_a_folder_without_weights_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"no \*\.safetensors in"):
    convert.open_tensors(str(tmp_path))
