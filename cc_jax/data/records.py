# SPDX-License-Identifier: Apache-2.0
"""One record: a dict of features and the tf.Example that holds it.

    spec                      in Python                     in the tf.Example
    "text"                    str                           one bytes value
    ("text", (None,))         list of str                   bytes values
    "image"                   bytes, as they were found     one bytes value
    "int32", "bool", ...      NumPy scalar                  one int64 or float
    ("bfloat16", (32, 32, 4)) array; the first dimension    its bytes, row-major
                              may be None: unknown


TFDS decodes an `image` to pixels; here it stays the original bytes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

# Values that a tf.Example holds exactly without `encoding="bytes"`.
_SCALARS = "bool int8 int16 int32 int64 uint8 uint16 uint32 float32".split()

Example = Mapping[str, Any]
Spec = str | Sequence[Any]


class Field(NamedTuple):
  """One feature of a record.

  Attributes:
    name: its name.
    kind: "text", "texts", "image", "scalar" or "tensor".
    dtype: the NumPy type of a scalar or tensor.
    shape: of a tensor; None for a first dimension that varies.
  """

  name: str
  kind: str
  dtype: np.dtype | None = None
  shape: tuple[int | None, ...] = ()

  def __str__(self) -> str:
    return f"{self.dtype}{list(self.shape)}" if self.dtype else self.kind


def fields(specs: Mapping[str, Spec]) -> tuple[Field, ...]:
  """Reads feature specs as in the module's table, in alphabetical order.

  Raises:
    ValueError: for a spec that the table does not have.
  """
  return tuple(_field(name, specs[name]) for name in sorted(specs))


def _field(name: str, spec: Spec) -> Field:
  kind, shape = (spec, None) if isinstance(spec, str) else tuple(spec)
  shape = None if shape is None else tuple(shape)
  if kind == "image" and shape is None:
    return Field(name, "image")
  if kind == "text" and shape in (None, (None,)):
    return Field(name, "text" if shape is None else "texts")
  try:
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
  except TypeError:
    dtype = None
  if dtype is not None and dtype.kind in "biufV":
    if shape is None and kind in _SCALARS:
      return Field(name, "scalar", dtype)
    if shape is not None and None not in shape[1:]:
      return Field(name, "tensor", dtype, shape)
  raise ValueError(
    f"feature {name!r} has the spec {spec!r}; expected 'text', 'image', one "
    f"of {' '.join(_SCALARS)}, or (dtype, shape) where only the first "
    "dimension may be None"
  )


def spec(field: Field) -> Spec:
  """Returns the spec of which `fields` makes a field."""
  if field.kind == "texts":
    return ("text", (None,))
  if field.kind in ("text", "image"):
    return field.kind
  name = field.dtype.name
  return name if field.kind == "scalar" else (name, field.shape)


def connectors(items: Sequence[Field]) -> tfds.features.FeaturesDict:
  """Returns TFDS's features for ours."""
  make = {
    "text": lambda f: tfds.features.Text(),
    "texts": lambda f: tfds.features.Tensor(shape=(None,), dtype=np.str_),
    "image": lambda f: tfds.features.Image(),
    "scalar": lambda f: tfds.features.Scalar(f.dtype),
    "tensor": lambda f: tfds.features.Tensor(
      shape=f.shape, dtype=f.dtype, encoding="bytes"
    ),
  }
  return tfds.features.FeaturesDict({f.name: make[f.kind](f) for f in items})


def from_connectors(features: Any) -> tuple[Field, ...]:
  """Returns our fields for TFDS's features, as read from a folder."""

  def field(name: str, feature: Any) -> Field:
    if isinstance(feature, tfds.features.Text):
      return Field(name, "text")
    if isinstance(feature, tfds.features.Image):
      return Field(name, "image")
    if isinstance(feature, tfds.features.Tensor):
      dtype, shape = feature.np_dtype, feature.shape
      encoded = feature.get_serialized_info().np_dtype == np.object_
      if dtype.kind in "OSU" and shape == (None,):
        return Field(name, "texts")
      if encoded and dtype.kind not in "OSU":
        return Field(name, "tensor", dtype, shape)
      if shape == () and dtype.name in _SCALARS:
        return Field(name, "scalar", dtype)
    raise ValueError(
      f"feature {name!r} is {feature!r}; cc_jax reads text, images, scalars "
      "and tensors with encoding='bytes'; read this dataset as a source"
    )

  return tuple(field(name, features[name]) for name in sorted(features))


def encode(items: Sequence[Field], example: Example) -> bytes:
  """Serialises one example, the same bytes for the same values.

  Raises:
    ValueError: if the example lacks a feature, has one too many, or has a
      value of another type or shape than its feature.
  """
  names = {field.name for field in items}
  if names != set(example):
    raise ValueError(
      f"example has the features {sorted(example)}; expected {sorted(names)}"
    )
  proto = {f.name: _encode_value(f, example[f.name]) for f in items}
  features = tf_feature_pb2.Features(feature=proto)
  # The order of a protobuf map is not fixed unless asked for.
  return tf_example_pb2.Example(features=features).SerializeToString(
    deterministic=True
  )


def _encode_value(field: Field, value: Any) -> Any:
  def bytes_feature(*values: bytes) -> Any:
    return tf_feature_pb2.Feature(
      bytes_list=tf_feature_pb2.BytesList(value=values)
    )

  match field.kind:
    case "text" if isinstance(value, str):
      return bytes_feature(value.encode())
    case "texts" if not isinstance(value, str) and all(
      isinstance(x, str) for x in value
    ):
      return bytes_feature(*(x.encode() for x in value))
    case "image" if isinstance(value, bytes):
      return bytes_feature(value)
    case "scalar" if _fits(value, field.dtype):
      if field.dtype.kind == "f":
        floats = tf_feature_pb2.FloatList(value=[float(value)])
        return tf_feature_pb2.Feature(float_list=floats)
      integers = tf_feature_pb2.Int64List(value=[int(value)])
      return tf_feature_pb2.Feature(int64_list=integers)
    case "tensor":
      array = np.asarray(value)
      if array.dtype == field.dtype and len(array.shape) == len(field.shape):
        pairs = zip(array.shape, field.shape, strict=True)
        if all(known in (None, size) for size, known in pairs):
          return bytes_feature(array.tobytes())
  got = f"{type(value).__name__} {str(value)[:40]!r}"
  if hasattr(value, "dtype"):
    got = f"{value.dtype}{list(value.shape)}"
  raise ValueError(f"feature {field.name!r}: expected {field}, got {got}")


def _fits(value: Any, dtype: np.dtype) -> bool:
  """Says whether a scalar is of the kind of `dtype` and within its range."""
  value = np.asarray(value)
  if value.shape or value.dtype.kind not in {"b": "b", "f": "fiu"}.get(
    dtype.kind, "iu"
  ):
    return False
  if dtype.kind in "bf":
    return True
  return bool(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)


def decoder(
  items: Sequence[Field], names: Iterable[str] | None = None
) -> Callable[[bytes], dict[str, Any]]:
  """Returns a function that decodes a record, only the features in `names`.

  Arrays are read-only views of the record's bytes. It takes 6 us for an SD2-256
  record; TFDS's own decoding takes 28.

  Raises:
    ValueError: for a name that is not among the features; the function raises
      it for a record without one of them.
  """
  by_name = {field.name: field for field in items}
  names = list(by_name if names is None else names)
  if unknown := [name for name in names if name not in by_name]:
    raise ValueError(
      f"no feature {unknown[0]!r} in the dataset, which has {sorted(by_name)}"
    )
  readers = [(name, _reader(by_name[name])) for name in names]
  parse = tf_example_pb2.Example.FromString

  def decode(record: bytes) -> dict[str, Any]:
    feature = parse(record).features.feature
    try:
      return {name: read(feature[name]) for name, read in readers}
    except IndexError:
      absent = sorted(set(names) - set(parse(record).features.feature))
      raise ValueError(f"a record lacks the features {absent}") from None

  return decode


def _reader(field: Field) -> Callable[[Any], Any]:
  """Returns what reads the value of a field from its protobuf message."""
  dtype = field.dtype
  match field.kind:
    case "text":
      return lambda message: message.bytes_list.value[0].decode()
    case "texts":
      return lambda message: [x.decode() for x in message.bytes_list.value]
    case "image":
      return lambda message: message.bytes_list.value[0]
    case "scalar" if dtype.kind == "f":
      return lambda message: dtype.type(message.float_list.value[0])
    case "scalar":
      return lambda message: dtype.type(message.int64_list.value[0])
  shape = tuple(-1 if size is None else size for size in field.shape)
  return lambda message: np.frombuffer(
    message.bytes_list.value[0], dtype
  ).reshape(shape)
