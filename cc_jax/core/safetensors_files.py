# SPDX-License-Identifier: Apache-2.0
"""Weights in the files of safetensors, tensor by tensor.

A file is the length of a header in bytes (uint64), the header, which is JSON
that tells each tensor's type, shape and place, and the tensors' bytes without
gaps. https://huggingface.co/docs/safetensors has the format.

The library maps a whole file for as long as it reads and takes all tensors at
once when it writes. Here a tensor is mapped while it is used, and made when it
is its turn to be written, so that memory does not grow with the file.
"""

from collections.abc import Callable, Mapping
import functools
import json
import math
import os
import struct
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cc_jax.core import files

DTYPES = {
  "F64": np.dtype("float64"),
  "F32": np.dtype("float32"),
  "F16": np.dtype("float16"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype("int64"),
  "I32": np.dtype("int32"),
  "I16": np.dtype("int16"),
  "I8": np.dtype("int8"),
  "U64": np.dtype("uint64"),
  "U32": np.dtype("uint32"),
  "U16": np.dtype("uint16"),
  "U8": np.dtype("uint8"),
  "BOOL": np.dtype("bool"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

# Of headers, in bytes; the library refuses longer ones too.
LONGEST = 100_000_000

# What diffusers and transformers look at before they read.
METADATA = {"format": "pt"}


class Tensor(NamedTuple):
  """A tensor in a file, or on its way into one: not there until it is read.

  Attributes:
    shape: of what `read()` returns.
    dtype: the same.
    read: the array, which may be a read-only view of the file.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def bytes(self) -> int:
    """The size of what `read()` returns."""
    return math.prod(self.shape) * self.dtype.itemsize


def in_memory(array: Any) -> Tensor:
  """An array as a `Tensor`."""
  array = np.asarray(array)
  return Tensor(array.shape, array.dtype, lambda: array)


def open_file(file: str | os.PathLike[str]) -> dict[str, Tensor]:
  """The tensors of a file by name; only its header is read.

  Args:
    file: local or `gs://`.

  Raises:
    ValueError: not such a file, or one that was cut off.
  """
  file = os.fspath(file)
  header, start, size = _header(file)
  found, total = {}, 0
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    try:
      code, shape = entry["dtype"], tuple(entry["shape"])
      begin, end = entry["data_offsets"]
      total += end - begin
    except (KeyError, TypeError, ValueError):
      raise ValueError(f"{file}: {name} is not described") from None
    if not isinstance(code, str) or code not in DTYPES:
      raise ValueError(f"{file}: {name} is of the unknown type {code!s:.20}")
    if any(type(n) is not int or n < 0 for n in (begin, *shape)):
      raise ValueError(f"{file}: {name} has the shape {shape!r:.80}")
    expected = math.prod(shape) * DTYPES[code].itemsize
    if end - begin != expected:
      raise ValueError(
        f"{file}: {name} {shape} of {code} takes {expected} bytes, got "
        f"{end - begin}"
      )
    if start + end > size:
      raise ValueError(
        f"{file} is cut off: {name} ends at byte {start + end} of {size}; "
        "download it again"
      )
    read = functools.partial(
      files.map_array, file, start + begin, DTYPES[code], shape
    )
    found[name] = Tensor(shape, DTYPES[code], read)
  if start + total != size:
    raise ValueError(
      f"{file} has {size} bytes; expected {start + total} by its header"
    )
  return found


def _header(file: str) -> tuple[dict[str, Any], int, int]:
  """The header, the first byte after it, and the size of the file."""
  path = files.path(file)
  if not path.is_file():
    raise ValueError(f"{file} does not exist or is no file")
  size = path.stat().length
  with path.open("rb") as source:
    data = source.read(8)
    length = struct.unpack("<Q", data)[0] if len(data) == 8 else size
    if length > min(size - 8, LONGEST):
      raise ValueError(
        f"{file} is no safetensors file, or cut off in its header; download "
        "it again"
      )
    text = source.read(length)
  try:
    header = json.loads(text)
  except ValueError:
    header = None
  if not isinstance(header, dict):
    raise ValueError(f"{file} is no safetensors file: its header is not JSON")
  return header, 8 + length, size


def write_file(
  file: str | os.PathLike[str], tensors: Mapping[str, Tensor]
) -> None:
  """Writes a file, one tensor after another; it appears when it is whole.

  The same tensors give the same bytes, in whichever order they come.

  Raises:
    ValueError: a type that the format does not have, or an error of a
      tensor's `read()`; nothing is written then.
  """
  # As the library sorts: wide types first, so that all are aligned.
  order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
  header: dict[str, Any] = {"__metadata__": METADATA}
  end = 0
  for name in order:
    tensor = tensors[name]
    if tensor.dtype not in CODES:
      raise ValueError(f"{name}: safetensors has no type {tensor.dtype}")
    header[name] = {
      "dtype": CODES[tensor.dtype],
      "shape": list(tensor.shape),
      "data_offsets": [end, end + tensor.bytes],
    }
    end += tensor.bytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with files.open_atomic(file) as target:
    target.write(struct.pack("<Q", len(text)) + text)
    for name in order:
      # Memory is written as it lies, whatever the strides say.
      array = np.ascontiguousarray(tensors[name].read())
      if (array.nbytes, array.dtype) != (
        tensors[name].bytes,
        tensors[name].dtype,
      ):
        raise ValueError(f"{name} is not what it was said to be")
      target.write(array.reshape(-1).view(np.uint8).data)
