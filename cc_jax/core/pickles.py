# SPDX-License-Identifier: Apache-2.0
"""Weights in the files of `torch.save`, without torch and without trust.

Two formats hold the same things. Since torch 1.6 a file is a zip archive:
NAME/data.pkl is a pickle of the object, NAME/data/KEY the bytes of a storage.
Before, it is five pickles (a magic number, a version, sizes of C types, the
object, the keys of its storages), then for each key the number of its
elements (int64) and their bytes. A tensor is a view of a storage: an offset, a
shape and strides, counted in elements.

A pickle is a program that calls what it names. Of all names `NAMES` has the
only ones that are answered, none by anything that acts on the world; another
one ends the reading before it is imported. What training programs save beside
the weights, from a number of NumPy to the class of a callback, is answered by
nothing at all (`Nothing`).
"""

import collections
from collections.abc import Callable
import functools
import io
import os
import pickle
import struct
from typing import Any, BinaryIO, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from cc_jax.core import files, safetensors_files

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001

# Types by name, because a pickle may change an object that it can name.
STORAGES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
}
DTYPES = (*STORAGES.values(), "uint16", "uint32", "uint64")


class Storage(NamedTuple):
  """Numbers in a row, of which tensors show parts; `size` in elements."""

  key: str
  dtype: str
  size: int
  start: int = 0


class View(NamedTuple):
  """A tensor of a pickle: where its elements lie in a storage."""

  storage: Storage
  dtype: str
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Answer(NamedTuple):
  """A function that a pickle may call, but not change."""

  function: Callable[..., Any]

  def __call__(self, *args: Any) -> Any:
    return self.function(*args)


class Nothing(NamedTuple):
  """What a pickle gets for a value that holds no weights."""

  def __setstate__(self, state: Any) -> None:
    """Takes no state."""


class File(NamedTuple):
  """A file of `torch.save`, of which only the pickle has been read.

  Attributes:
    name: of the file.
    found: the object in it.
    places: the first byte of each storage.
  """

  name: str
  found: Any
  places: dict[str, int]

  def has(self, *keys: str) -> bool:
    """Whether `keys` lead to tensors by name, and to nothing else."""
    try:
      return bool(_select(self.found, keys))
    except ValueError:
      return False

  def tensors(self, *keys: str) -> dict[str, safetensors_files.Tensor]:
    """The tensors by name; see `open_tensors`."""
    try:
      views = _select(self.found, keys)
    except ValueError as error:
      raise ValueError(f"{self.name}: {error}") from error
    return {
      name: safetensors_files.Tensor(
        view.shape,
        _numpy(view.dtype),
        functools.partial(
          _read_view, self.name, self.places[view.storage.key], view
        ),
      )
      for name, view in views.items()
    }


def open_file(file: str | os.PathLike[str]) -> File:
  """Reads the pickle of a file, local or `gs://`.

  Raises:
    ValueError: not such a file, or it names something else than tensors,
      containers and plain values; nothing of it was run.
  """
  file = os.fspath(file)
  if not files.path(file).is_file():
    raise ValueError(f"{file} does not exist or is no file")
  with files.path(file).open("rb") as source:
    try:
      read = _read_zip if zipfile.is_zipfile(source) else _read_legacy
      source.seek(0)
      found, places = read(source)
    # Bytes that someone else wrote can fail in any way there is.
    except Exception as error:
      reason = str(error) or type(error).__name__
      raise ValueError(f"{file}: {reason}") from error
  return File(file, found, places)


def open_tensors(
  file: str | os.PathLike[str], *keys: str
) -> dict[str, safetensors_files.Tensor]:
  """The tensors at `keys` of `open_file(file)`, by name, without reading them.

  Args:
    file: local or `gs://`.
    *keys: the way to the weights, where they are one of several things in the
      file: `"state_dict"`, or `"model", "ema"`.

  Raises:
    ValueError: no such keys, or something else than tensors there.
  """
  return open_file(file).tensors(*keys)


class _Unpickler(pickle.Unpickler):
  """Answers the names of `NAMES` and no other."""

  def __init__(self, source: Any):
    # Files from Python 2 have byte strings for names.
    super().__init__(source, encoding="utf-8")
    self.storages: dict[str, Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in NAMES:
      raise ValueError(
        f"its pickle asks for {module}.{name}, which is refused; expected a "
        "file of tensors only, as torch.save(model.state_dict(), file) writes"
      )
    return NAMES[module, name]

  def persistent_load(self, pid: Any) -> Storage:
    kind, dtype, key, _, size, *view = pid
    if kind != "storage" or dtype not in DTYPES:
      raise ValueError(f"unknown storage {pid!r:.80}")
    if type(key) is not str or type(size) is not int or size < 0:
      raise ValueError(f"unknown storage {pid!r:.80}")
    whole = self.storages.setdefault(key, Storage(key, dtype, size))
    if (dtype, size) != (whole.dtype, whole.size):
      raise ValueError(f"storage {key} has two types or sizes")
    if not any(view):
      return whole
    # Early files: a part of a storage, as (key, first element, size).
    _, start, size = view[0]
    if not 0 <= start <= start + size <= whole.size:
      raise ValueError(f"storage {key} has no elements {start} + {size}")
    return whole._replace(start=start, size=size)


def _load(source: Any) -> tuple[Any, dict[str, Storage]]:
  unpickler = _Unpickler(source)
  return unpickler.load(), unpickler.storages


def _read_zip(source: BinaryIO) -> tuple[Any, dict[str, int]]:
  """The object and the place of each storage's first byte in the file."""
  with zipfile.ZipFile(source) as archive:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
      raise ValueError("a zip archive that torch.save did not write")
    for name, entry in entries.items():
      if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed; torch.save writes plain")
    root = roots[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in entries and archive.read(order) != b"little":
      raise ValueError("written on a big-endian machine; save it on another")
    found, storages = _load(io.BytesIO(archive.read(roots[0])))
  places = {}
  for key, storage in storages.items():
    entry = entries.get(f"{root}data/{key}")
    if entry is None:
      raise ValueError(f"no storage {key} in the archive")
    if entry.file_size < _bytes(storage):
      raise ValueError(
        f"storage {key}: expected {_bytes(storage)} bytes, got "
        f"{entry.file_size}"
      )
    # The local header ends with a name and extra bytes of these lengths.
    source.seek(entry.header_offset + 26)
    lengths = struct.unpack("<HH", source.read(4))
    places[key] = entry.header_offset + 30 + sum(lengths)
  return found, places


def _read_legacy(source: BinaryIO) -> tuple[Any, dict[str, int]]:
  try:
    magic = _load(source)[0]
  # Bytes that are no pickle at all fail in as many ways.
  except Exception:
    magic = None
  if magic != MAGIC:
    raise ValueError("not a file of torch.save, or cut off")
  version, machine = _load(source)[0], _load(source)[0]
  if version != VERSION or not machine["little_endian"]:
    raise ValueError(f"version {version!r} of {machine!r} is not supported")
  found, storages = _load(source)
  keys, places = _load(source)[0], {}
  place, end = source.tell(), source.seek(0, os.SEEK_END)
  for key in keys:
    if key not in storages:
      raise ValueError(f"storage {key} belongs to no tensor")
    storage = storages[key]
    places[key] = place + 8
    source.seek(place)
    header = source.read(8)
    place += 8 + _bytes(storage)
    if place > end:
      raise ValueError("cut off; download it again")
    if header != struct.pack("<q", storage.size):
      raise ValueError(f"storage {key} has another size than its tensors say")
  missing = sorted(storages.keys() - places.keys())
  if missing:
    raise ValueError(f"no storage {missing[0]} in the file")
  return found, places


def _select(found: Any, keys: tuple[str, ...]) -> dict[str, View]:
  """What `keys` lead to, which is to be tensors by name."""
  for depth in range(len(keys) + 1):
    at = ".".join(keys[:depth]) or "the file"
    if not isinstance(found, dict):
      kind = "a tensor" if isinstance(found, View) else type(found).__name__
      raise ValueError(f"{at} is {kind}; expected a dict of tensors")
    if depth < len(keys):
      if keys[depth] not in found:
        raise ValueError(f"no {keys[depth]!r} in {at}; it has {_some(found)}")
      found = found[keys[depth]]
  other = [
    name
    for name, value in found.items()
    if not isinstance(value, View) or type(name) is not str
  ]
  if other:
    inner = [name for name in other if isinstance(found[name], dict)]
    remedy = f"; name the one to read of: {_some(inner)}" if inner else ""
    raise ValueError(f"in {at} are no tensors: {_some(other)}{remedy}")
  return dict(found)


def _some(names: Any) -> str:
  shown = [f"{name!s:.40}" for name in list(names)[:8]]
  return ", ".join(shown + ["..."] * (len(names) > 8))


def _read_view(file: str, place: int, view: View) -> np.ndarray:
  """Maps the elements from the first to the last that a tensor shows."""
  dtype = _numpy(view.dtype)
  start = view.storage.start * _numpy(view.storage.dtype).itemsize
  span = (_span(view.shape, view.strides),)
  first = place + start + view.offset * dtype.itemsize
  data = files.map_array(file, first, dtype, span)
  strides = [stride * dtype.itemsize for stride in view.strides]
  # This constructor compares shape and strides with the buffer's size. Of no
  # elements it would make an array of its own.
  return np.ndarray(view.shape, dtype, data, strides=strides)


def _numpy(name: str) -> np.dtype:
  return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _bytes(storage: Storage) -> int:
  return storage.size * _numpy(storage.dtype).itemsize


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
  """Elements from the first to the last of a tensor."""
  if 0 in shape:
    return 0
  return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _tensor(
  storage: Storage,
  offset: int,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
  requires_grad: bool = False,
  hooks: Any = None,
  metadata: Any = None,
) -> View:
  """`torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""
  return _typed(storage, offset, shape, strides, False, None, None, metadata)


def _typed(
  storage: Storage,
  offset: int,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
  requires_grad: bool,
  hooks: Any,
  dtype: str | None,
  metadata: Any = None,
) -> View:
  """`_rebuild_tensor_v3`: the type is apart from the storage."""
  if not isinstance(storage, Storage) or metadata:
    raise ValueError(f"a tensor of another kind: {metadata!r:.80}")
  dtype = storage.dtype if dtype is None else dtype
  if dtype not in DTYPES:
    raise ValueError(f"a tensor of unknown type {dtype!r:.80}")
  shape, strides = tuple(shape), tuple(strides)
  # bool is an int to Python; a shape of torch has none.
  if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
    raise ValueError(f"a tensor of {shape!r:.80} with {strides!r:.80}")
  last = (offset + _span(shape, strides)) * _numpy(dtype).itemsize
  if last > _bytes(storage):
    raise ValueError(
      f"a tensor of shape {shape} lies outside of storage {storage.key}"
    )
  return View(storage, dtype, offset, shape, strides)


def _parameter(data: View, requires_grad: bool, hooks: Any) -> View:
  """`torch._utils._rebuild_parameter`."""
  return data


def _nothing(*args: Any) -> Nothing:
  return Nothing()


# In files that hold the state of a training besides the weights.
LIGHTNING = "pytorch_lightning"
PLAIN: dict[tuple[str, str], Any] = {
  ("numpy", "dtype"): Answer(_nothing),
  ("numpy.core.multiarray", "scalar"): Answer(_nothing),
  ("numpy._core.multiarray", "scalar"): Answer(_nothing),
  ("_codecs", "encode"): Answer(_nothing),
  ("torch", "device"): Answer(_nothing),
  ("torch", "Size"): Answer(_nothing),
  ("argparse", "Namespace"): collections.OrderedDict,
  (f"{LIGHTNING}.utilities.parsing", "AttributeDict"): collections.OrderedDict,
  # A callback's class is a key of the dict that holds its state.
  (f"{LIGHTNING}.callbacks.model_checkpoint", "ModelCheckpoint"): "callback",
  (f"{LIGHTNING}.callbacks.early_stopping", "EarlyStopping"): "callback",
}

NAMES: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor"): Answer(_tensor),
  ("torch._utils", "_rebuild_tensor_v2"): Answer(_tensor),
  ("torch._utils", "_rebuild_tensor_v3"): Answer(_typed),
  ("torch._utils", "_rebuild_parameter"): Answer(_parameter),
  # Counts bytes.
  ("torch.storage", "UntypedStorage"): "uint8",
  **{("torch", name): dtype for name, dtype in STORAGES.items()},
  **{("torch", dtype): dtype for dtype in DTYPES},
  **PLAIN,
}
