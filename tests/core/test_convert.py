# SPDX-License-Identifier: Apache-2.0
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cc_jax.core import convert, safetensors_files, weight_files

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
  weight_files.save_folder(str(folder), tensors, {}, stem="model")
  return weight_files.open_tensors(str(folder))


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


def test_a_scalar_goes_there_and_back(tmp_path):
  params = {"inverse": np.array(2.5, np.float32)}
  names = (("inverse", "logit_scale"),)
  theirs = convert.export_weights(params, names)
  assert theirs["logit_scale"].shape == ()
  assert convert.export_shapes(params, names) == {"logit_scale": ()}
  same(convert.import_weights(written(tmp_path, theirs), params, names), params)


def test_towers_that_leave_their_name_out_are_read(tmp_path):
  for norm, tower in (
    ("final_layer_norm", "text_model"),
    ("pre_layrnorm", "vision_model"),
  ):
    params = {tower: {norm: arrays(("scale", (2,)), ("bias", (2,)))}}
    theirs = convert.export_weights(params[tower], ())
    folder = tmp_path / tower
    same(convert.import_weights(written(folder, theirs), params, ()), params)


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
  found = written(tmp_path / "other", theirs)
  words = r"h\.1\.emb\.time\.bias differs from h\.0\.emb\.time\.bias"
  with pytest.raises(ValueError, match=words):
    convert.import_weights(found, params, names)
  del theirs["h.2.emb.time.weight"]
  found = written(tmp_path / "fewer", theirs)
  with pytest.raises(ValueError, match=r"missing h\.2\.emb"):
    convert.import_weights(found, params, names)


def test_a_part_of_a_model_may_have_a_table_of_its_own(tmp_path):
  names = (("text", "language_model", NAMES), ("norm", "ln_post"))
  part = {"blocks": {"norm": arrays(("scale", (2, 3)))}}
  params = {"text": part, "norm": arrays(("bias", (3,)))}
  theirs = convert.export_weights(params, names)
  assert sorted(theirs) == [
    "language_model.h.0.ln.weight",
    "language_model.h.1.ln.weight",
    "ln_post.bias",
  ]
  same(convert.import_weights(written(tmp_path, theirs), params, names), params)


def test_a_table_may_have_an_axis_for_the_batch_there(tmp_path):
  params = {"position": arrays(("embedding", (4, 3)))}
  theirs = {"position.weight": params["position"]["embedding"][None]}
  same(convert.import_weights(written(tmp_path, theirs), params, ()), params)


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


def test_several_files_are_one_model(tmp_path):
  for number in range(2):
    safetensors.numpy.save_file(
      arrays((f"x{number}", (2,))), tmp_path / f"model-{number}.safetensors"
    )
  assert sorted(weight_files.open_tensors(str(tmp_path))) == ["x0", "x1"]


def test_a_folder_without_weights_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"no \*\.safetensors in"):
    weight_files.open_tensors(str(tmp_path))


def test_floating_arrays_are_of_the_type_asked_for_and_others_stay(tmp_path):
  theirs = {"a.bias": np.float32([1, 2.5]), "n": np.arange(3, dtype=np.int32)}
  shapes = {"a": {"bias": theirs["a.bias"]}, "n": theirs["n"]}
  tensors = written(tmp_path, theirs)
  for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
    found = convert.import_weights(tensors, shapes, (), dtype=dtype)
    assert found["a"]["bias"].dtype == dtype
    assert found["n"].dtype == np.int32
    made = convert.export_tensors(shapes, (), dtype)
    assert made["a.bias"].read().dtype == made["a.bias"].dtype == dtype
    assert made["n"].read().dtype == np.int32


@pytest.mark.parametrize("dtype", [np.int8, bool])
def test_numbers_of_another_kind_are_not_taken_for_weights(dtype, tmp_path):
  tensors = written(tmp_path, {"a.bias": np.ones(3, dtype)})
  shapes = {"a": arrays(("bias", (3,)))}
  message = rf"a\.bias: expected float32, got {np.dtype(dtype)}"
  with pytest.raises(ValueError, match=message):
    convert.import_weights(tensors, shapes, ())


def test_a_number_that_a_type_cannot_hold_is_an_error_that_names_it(tmp_path):
  large = {"blocks": {"norm": {"scale": np.float32([[1, 2], [3, 7e4]])}}}
  tensors = written(tmp_path, convert.export_weights(large, NAMES))
  message = r"h\.1\.ln\.weight has numbers too large for float16; use bfloat16"
  with pytest.raises(ValueError, match=message):
    convert.import_weights(tensors, large, NAMES, dtype=np.float16)
  made = convert.export_tensors(large, NAMES, np.float16)
  np.testing.assert_array_equal(made["h.0.ln.weight"].read(), [1, 2])
  with pytest.raises(ValueError, match=message):
    made["h.1.ln.weight"].read()
  # What is infinite there is so here.
  endless = {"a": {"bias": np.float32([np.inf, np.nan])}}
  found = convert.export_tensors(endless, (), np.float16)["a.bias"].read()
  np.testing.assert_array_equal(found, endless["a"]["bias"])


def test_nothing_is_read_before_all_fits():
  def read():
    raise AssertionError("was read")

  tensor = safetensors_files.Tensor((2,), np.dtype("float32"), read)
  shapes = {"a": arrays(("bias", (2,))), "b": arrays(("bias", (2,)))}
  with pytest.raises(ValueError, match=r"missing b\.bias"):
    convert.import_weights({"a.bias": tensor}, shapes, ())
  both = {"a.bias": tensor, "b.bias": tensor}
  assert len(convert.match(both, shapes, ())) == 2
  assert convert.export_shapes(shapes, ()) == {"a.bias": (2,), "b.bias": (2,)}


def test_one_array_and_one_tensor_are_in_memory_at_a_time():
  """Of a stacked and fused model, while it is imported."""
  tensors_made, arrays_made = [], []

  def alive(made, array):
    made.append(weakref.ref(array))
    return sum(ref() is not None for ref in made)

  def tensor(shape):
    def read():
      array = np.ones(shape, np.float32)
      assert alive(tensors_made, array) == 1
      return array

    return safetensors_files.Tensor(shape, np.dtype("float32"), read)

  def put(leaf):
    array = leaf.read()
    assert alive(arrays_made, array) == 1
    assert not any(ref() is not None for ref in tensors_made)
    return array.shape

  params = {"blocks": {"attn": attention(5)}}
  tensors = {
    name: tensor(shape)
    for name, shape in convert.export_shapes(params, NAMES).items()
  }
  found = convert.import_weights(tensors, params, NAMES, put=put)
  assert found["blocks"]["attn"]["q"]["kernel"] == (5, 4, 2)
  assert (len(tensors_made), len(arrays_made)) == (3 * 2 * 5, 3 * 2)


def test_a_part_of_an_array_is_read_from_the_tensors_that_hold_it():
  asked = []

  def tensor(name, array):
    def read():
      asked.append(name)
      return array

    return safetensors_files.in_memory(array)._replace(read=read)

  params = {"blocks": {"attn": attention(4)}}
  theirs = convert.export_weights(params, NAMES)
  leaves = {
    leaf.path: leaf
    for leaf in convert.match(
      {name: tensor(name, array) for name, array in theirs.items()},
      params,
      NAMES,
    )
  }
  part = leaves["blocks.attn.k.kernel"].read(
    (slice(1, 3), slice(None), slice(1, 2))
  )
  whole = params["blocks"]["attn"]["k"]["kernel"]
  np.testing.assert_array_equal(part, whole[1:3, :, 1:2])
  assert asked == ["h.1.attn.qkv.weight", "h.2.attn.qkv.weight"]


def test_a_format_lists_the_ways_to_its_weights():
  ways = lambda *keys: convert.Format((), "w", keys=keys).ways()
  assert ways() == ((), ())
  assert ways("state_dict") == (("state_dict",), ())
  assert ways(("a", "b"), ("c",)) == (("a", "b"), ("c",), ())
