# SPDX-License-Identifier: Apache-2.0
"""Images to the features that metrics compare, and a place to keep them.

One pass decodes an image once and gives it to every network: threads prepare
the next batches while the devices compute. Each host takes its own images, on
its own devices, so no host waits for another.

What was computed is kept as `KEY.npy` beside a `KEY.json` that says what made
it; KEY is the hash of that. A file that is damaged is made anew.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import functools
import io
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jaxtyping import Float, Num, UInt8
import numpy as np

from cc_jax.core import files, log, sharding, tree
from cc_jax.data import squares, tokenize
from cc_jax.metrics import blur, resize
from cc_jax.models import clip_vision, hub, kinds, published
from cc_jax.pipelines import overlap


class Network(NamedTuple):
  """A network that looks at images.

  Attributes:
    name: of the network and of what is done to images before it.
    identity: what decides its features besides the images, as JSON has it.
    outputs: the names of its features.
    prepare: bytes of one image -> bytes as the network's function takes them.
    run: `run(params, images) -> features` by name, compiled.
    params: its weights.
    tokenizer: the name of that of its captions; "" for none.
    beside: a row for each image, which `run` is then given too, as `(images,
      rows)`; None for none.
  """

  name: str
  identity: dict[str, Any]
  outputs: tuple[str, ...]
  prepare: Callable[[np.ndarray], np.ndarray]
  run: Callable[..., dict[str, jax.Array]]
  params: Any
  tokenizer: str = ""
  beside: Num[np.ndarray, "N *dims"] | None = None


def inception(
  name: str,
  mode: str = "clean",
  radius: float | int = 0,
  dtype: str = "float32",
) -> Network:
  """InceptionV3: `pooled` for FID and KID, `logits` for the Inception Score.

  Args:
    name: of the weights, as of `hub.load`.
    mode: how images are resized, one of `resize.MODES`.
    radius: of the blur before that, for FID-k.
    dtype: of the computation.

  Raises:
    ValueError: no such weights or mode.
  """
  if mode not in resize.MODES:
    raise ValueError(
      f"unknown resize {mode!r}; expected {', '.join(resize.MODES)}"
    )
  loaded = hub.load(name, "inception")
  structure, _ = kinds.structure("inception", loaded.config, dtype=dtype)

  @jax.jit
  def run(params, images):
    network = tree.merge(structure, params)
    found = network(resize.to_inception(blur.blur(images, radius), mode))
    return {"pooled": found.pooled, "logits": found.logits_unbiased}

  identity = {
    "network": "inception",
    "weights": loaded.hash,
    "resize": mode,
    "blur": float(radius),
    "dtype": dtype,
  }
  label = f"inception {mode}" + (f" blur {radius:g}" if radius else "")
  outputs = ("pooled", "logits")
  return Network(label, identity, outputs, _same, run, loaded.params)


def clip(name: str, dtype: str = "float32") -> Network:
  """A CLIP's `image` embeddings, of the square as its processor makes it.

  Args:
    name: of the weights, as of `hub.load`; its tokenizer lies beside them.
    dtype: of the computation.

  Raises:
    ValueError: no such weights.
  """
  loaded = hub.load(name, "clip")
  structure, _ = kinds.structure("clip", loaded.config, dtype=dtype)
  size = loaded.config.vision.image_size

  @jax.jit
  def run(params, images):
    network = tree.merge(structure, params)
    x = clip_vision.normalise(images.astype(jnp.float32) / 127.5 - 1)
    return {"image": network.image_embedding(x).astype(jnp.float32)}

  identity = {
    "network": "clip",
    "weights": loaded.hash,
    "resize": f"crop {size}",
    "dtype": dtype,
  }
  prepare = functools.partial(squares.square, size=size, way=squares.CROP)
  entry = published.TABLE.get(name)
  tokenizer = entry.repository if entry else name
  return Network(
    name, identity, ("image",), prepare, run, loaded.params, tokenizer
  )


def _same(image: np.ndarray) -> np.ndarray:
  return image


def captions(
  network: Network, texts: Sequence[str], batch_size: int = 256
) -> Float[np.ndarray, "N P"]:
  """Embeddings of captions by the text tower of a CLIP; long ones are cut.

  Raises:
    ValueError: its tokenizer is not there.
  """
  tokenizer = tokenize.load(network.tokenizer)
  config = hub.config(network.name, "clip")
  length = config.text.positions
  tokens, _ = tokenize.encode(tokenizer, texts, length)
  structure, _ = kinds.structure("clip", config)

  @jax.jit
  def run(params, tokens):
    return tree.merge(structure, params).text_embedding(tokens)

  found = []
  for start in range(0, len(tokens), batch_size):
    rows = np.minimum(np.arange(start, start + batch_size), len(tokens) - 1)
    found.append(np.asarray(run(network.params, tokens[rows]), np.float32))
  return np.concatenate(found)[: len(tokens)]


def extract(
  networks: Sequence[Network],
  read: Callable[[int], UInt8[np.ndarray, "H W 3"]],
  count: int,
  *,
  batch_size: int,
  progress: Callable[[int], Any] = lambda count: None,
) -> dict[tuple[str, str], Num[np.ndarray, "N *dims"]]:
  """Features of images, by network and output, on this host's devices.

  Args:
    networks: that look at each image.
    read: an image by its place; called in threads.
    count: N.
    batch_size: images at once, of which each device gets as many.
    progress: called with the number of images done.

  Raises:
    ValueError: a network is given images of two sizes, or not a row beside
      each; what `read` raises.
  """
  for one in networks:
    if one.beside is not None and len(one.beside) != count:
      raise ValueError(
        f"{count:,} images with {len(one.beside):,} rows beside them for "
        f"{one.name}; expected one each"
      )
  mesh = sharding.make_mesh(devices=jax.local_devices())
  ways = sharding.batch_ways(mesh)
  batch_size = -(-batch_size // ways) * ways
  layout = sharding.batch_layout(mesh)
  placed = {
    one.name: jax.device_put(one.params, sharding.replicated(mesh))
    for one in networks
  }
  shapes: dict[str, tuple[int, ...]] = {}

  def prepare(place: int) -> tuple[np.ndarray, ...]:
    image = read(place)
    made = tuple(one.prepare(image) for one in networks)
    for one, rows in zip(networks, made, strict=True):
      expected = shapes.setdefault(one.name, rows.shape)
      if rows.shape != expected:
        raise ValueError(
          f"image {place} is of {rows.shape[1]} x {rows.shape[0]} pixels, "
          f"others of {expected[1]} x {expected[0]}"
        )
    return made

  flying: collections.deque[Any] = collections.deque()
  parts: dict[tuple[str, str], list[np.ndarray]] = collections.defaultdict(list)

  def land() -> None:
    number, found = flying.popleft()
    for key, value in found.items():
      parts[key].append(np.asarray(value)[:number])
    progress(number)

  with (
    jax.set_mesh(mesh),
    futures.ThreadPoolExecutor(overlap.threads()) as pool,
  ):
    starts = list(range(0, count, batch_size))
    ahead = collections.deque(
      _submit(pool, prepare, start, batch_size, count) for start in starts[:2]
    )
    for turn in range(len(starts)):
      rows = [future.result() for future in ahead.popleft()]
      if turn + 2 < len(starts):
        ahead.append(
          _submit(pool, prepare, starts[turn + 2], batch_size, count)
        )
      # The last batch is filled up, so that there is one compiled shape.
      whole = rows + [rows[-1]] * (batch_size - len(rows))
      found = {}
      for one, images in zip(networks, zip(*whole, strict=True), strict=True):
        batch = jax.device_put(np.stack(images), layout)
        if one.beside is not None:
          at = np.minimum(starts[turn] + np.arange(batch_size), count - 1)
          batch = batch, jax.device_put(one.beside[at], layout)
        outputs = one.run(placed[one.name], batch)
        found |= {(one.name, name): outputs[name] for name in one.outputs}
      flying.append((len(rows), found))
      if len(flying) > 1:
        land()
    while flying:
      land()
  return {key: np.concatenate(value) for key, value in parts.items()}


def _submit(pool, prepare, start, batch_size, count):
  stop = min(start + batch_size, count)
  return [pool.submit(prepare, place) for place in range(start, stop)]


def cached(
  folder: str,
  networks: Sequence[Network],
  made_by: Mapping[str, Any],
  read: Callable[[int], np.ndarray],
  count: int,
  *,
  batch_size: int,
  what: str,
) -> dict[tuple[str, str], Num[np.ndarray, "N *dims"]]:
  """`extract`, but for what the folder has already; all hosts share the work.

  Args:
    folder: local or gs://, seen by all hosts.
    networks: whose features are wanted.
    made_by: what decides the images, as JSON has it.
    read: as of `extract`.
    count: likewise.
    batch_size: likewise, on each host.
    what: a name for people.
  """
  found, absent = {}, []
  for one in networks:
    whole = {
      (one.name, output): _load(folder, key(made_by, one, output), what)
      for output in one.outputs
    }
    if all(value is not None for value in whole.values()):
      found |= whole
    else:
      absent.append(one)
  if not absent:
    return found
  processes, process = jax.process_count(), jax.process_index()
  # In order, and each host a piece.
  mine = np.array_split(np.arange(count), processes)[process]
  names = ", ".join(one.name for one in absent)
  log.announce("evaluate", f"{count:,} {what} through {names}")
  with log.progress(len(mine), "evaluate", "images") as progress:
    made = {}
    if len(mine):
      own = [
        one._replace(beside=one.beside[mine]) if one.beside is not None else one
        for one in absent
      ]
      made = extract(
        own,
        lambda place: read(int(mine[place])),
        len(mine),
        batch_size=batch_size,
        progress=progress,
      )
  for one in absent:
    for output in one.outputs:
      place = key(made_by, one, output)
      rows = made.get((one.name, output))
      if processes > 1:
        rows = _join(folder, place, rows, count)
      if log.is_first():
        _save(folder, place, rows, {**made_by, "by": one.identity})
      found[one.name, output] = rows
  return found


def _join(folder, place, rows, count):
  """The rows of all hosts, through files."""
  part = os.path.join(folder, f"{place}.part-{{}}.npy")
  if rows is not None:
    files.write_atomic(part.format(jax.process_index()), _npy(rows))
  multihost_utils.sync_global_devices(f"features {place} written")
  parts = [part.format(i) for i in range(min(count, jax.process_count()))]
  joined = np.concatenate([_array(files.path(p).read_bytes()) for p in parts])
  multihost_utils.sync_global_devices(f"features {place} read")
  if rows is not None:
    files.path(part.format(jax.process_index())).unlink()
  return joined


def key(made_by: Mapping[str, Any], network: Network, output: str) -> str:
  """The name under which features are kept: a hash of what makes them."""
  whole = {"images": made_by, "by": network.identity, "output": output}
  return files.sha256(files.to_json(whole).encode())[:32]


def _save(folder: str, place: str, rows: np.ndarray, made_by: Any) -> None:
  data = _npy(rows)
  files.write_atomic(os.path.join(folder, f"{place}.npy"), data)
  # Last: what has it is whole.
  files.write_json(
    os.path.join(folder, f"{place}.json"),
    {"made_by": made_by, "sha256": files.sha256(data)},
  )


def _load(folder: str, place: str, what: str) -> np.ndarray | None:
  """Kept features; None for none, or for some that are damaged."""
  told = files.path(os.path.join(folder, f"{place}.json"))
  held = files.path(os.path.join(folder, f"{place}.npy"))
  if not told.exists():
    return None
  try:
    data = held.read_bytes()
    whole = files.sha256(data) == files.read_json(told)["sha256"]
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    whole = False
  if not whole:
    log.announce("evaluate", f"{held} of {what} is damaged: made anew")
    return None
  return _array(data)


def _npy(rows: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.save(file, rows)
  return file.getvalue()


def _array(data: bytes) -> np.ndarray:
  return np.load(io.BytesIO(data), allow_pickle=False)
