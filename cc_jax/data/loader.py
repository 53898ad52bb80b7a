# SPDX-License-Identifier: Apache-2.0
"""Batches for training: Grain over a dataset, the same on any number of hosts.

    records of a source -> shuffled anew each epoch -> repeated -> cut into
    global batches -> the rows of this host -> read, transformed, stacked

The order is a function of the seed alone. Of each global batch of B rows, host
p of P makes rows [p B/P, (p+1) B/P), so the batch put together from the hosts
has the same rows in the same order for every P. Nothing that is random is
stored: the place is `{"next_index": n, "global_batch": B}`, and it holds on
another number of hosts.

Grain shuffles indices, not records: shuffling costs the same for images and
for tokens, and Grain's cost of some 50 us for each step an element takes is
paid once a batch (recipes/ecosystem.md, section 2).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import grain
from jaxtyping import Int
import numpy as np

from cc_jax.data import aligned, loader_buckets

# Threads that make batches, and batches they make ahead of the one asked for.
# Two threads hide the wait for a disk; more only contend for the interpreter.
THREADS = 2
AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Batches:
  """An iterator over the batches of one host; made by `batches`.

  Each is a dict of arrays [B/P ...], and arrays of objects [B/P] for text and
  images.

  Attributes:
    iterator: Grain's.
    global_batch: rows of a batch over all hosts.
    bucketed: batches are of one bucket each, so no other size has the same.
  """

  iterator: grain.DatasetIterator
  global_batch: int
  bucketed: bool = False

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self.iterator)

  def place(self) -> dict[str, int]:
    """Returns the place of the batch that comes next."""
    index = self.iterator.get_state()["next_index"]
    return {"next_index": int(index), "global_batch": self.global_batch}

  def seek(self, place: Mapping[str, int]) -> None:
    """Goes to a place, which may come from another number of hosts.

    A place of another global batch size is converted when the rows before it
    fill whole batches, so that no row is left out or seen twice.

    Raises:
      ValueError: if they do not, or the place is not one.
    """
    index, size = _checked(place)
    if self.bucketed and size != self.global_batch:
      raise ValueError(
        f"the loader stopped in batches of {size}, of one bucket each; go on "
        f"with batch_size={size}, not {self.global_batch}"
      )
    if index * size % self.global_batch:
      raise ValueError(
        f"the loader stopped after {index * size} rows, in batches of {size}; "
        f"batch_size={self.global_batch} does not divide these; go on with "
        f"batch_size={size}, or one that does"
      )
    index = index * size // self.global_batch
    self.iterator.set_state({"next_index": index})

  def close(self) -> None:
    """Ends the threads that read ahead."""
    self.iterator.close()


def _checked(place: Mapping[str, int]) -> tuple[int, int]:
  fields = ("next_index", "global_batch")
  if set(place) == set(fields):
    index, size = (int(place[field]) for field in fields)
    if index >= 0 and size >= 1:
      return index, size
  raise ValueError(
    f"{dict(place)} is not a place of the loader; expected "
    "{'next_index': 0 or more, 'global_batch': 1 or more}"
  )


def batches(
  sources: aligned.Source | Sequence[aligned.Source],
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  weights: Sequence[float | int] | None = None,
  buckets: Int[np.ndarray, "R"] | None = None,
  shuffle: bool = True,
  repeat: bool = True,
  transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
  augment: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
  | None = None,
  place: Mapping[str, int] | None = None,
  threads: int = THREADS,
  ahead: int = AHEAD,
) -> Batches:
  """Returns the batches of one host.

  Args:
    sources: what to read; several are mixed, each shuffled on its own.
    batch_size: rows of a batch over all hosts, B.
    seed: of the order and of `augment`, 0 to 2^32 - 1.
    process_index: this host, of
    process_count: hosts.
    weights: of several sources: how many rows come from each, in proportion;
      the same number when None.
    buckets: the bucket of each record, from data/bucket_index.py: each batch is
      then of one bucket, see data/loader_buckets.py.
    shuffle: gives each epoch another order; else the records come as stored.
    repeat: goes on for ever, a batch taking rows from two epochs where they
      meet, so that every record is seen once an epoch and a dataset may be
      smaller than a batch. Else stops after one epoch; its last batch is short.
    transform: of an example, before rows are stacked; must not be random.
    augment: the same with a random generator, after `transform`. The generator
      depends on the seed and the row's number since the start of training
      alone, not on hosts or threads.
    place: from `Batches.place`, to go on from; the start when None.
    threads: that make batches; 0 makes each when it is asked for.
    ahead: how many batches are made before they are asked for.

  Raises:
    ValueError: if the batch size does not divide over the hosts, the last batch
      of an epoch does not, several sources have different features or do not
      repeat, a number is out of range, or the place does not fit.
  """
  sources = [sources] if isinstance(sources, aligned.Source) else list(sources)
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size={batch_size} does not divide over {process_count} processes"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index={process_index}; expected 0 to {process_count - 1}"
    )
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed}; expected 0 to 2^32 - 1")
  if weights is not None and (
    len(weights) != len(sources) or not all(weight > 0 for weight in weights)
  ):
    raise ValueError(
      f"weights={list(weights)} for {len(sources)} sources; expected a number "
      "above 0 for each"
    )
  _check_sources(sources, repeat)
  if buckets is not None:
    loader_buckets.check(buckets, [len(x) for x in sources], shuffle and repeat)
  rows = sum(len(source) for source in sources)
  if not repeat and process_count > 1 and rows % batch_size:
    raise ValueError(
      f"{rows} records do not fill batches of {batch_size}, and the last one "
      f"does not divide over {process_count} processes; choose a batch_size "
      "that divides the records, or use one process"
    )
  if buckets is None:
    order = _order(sources, seed, weights, shuffle, repeat)
  else:
    order = loader_buckets.Order(buckets, batch_size, seed)
  dataset = _HostBatches(
    order,
    sources=sources,
    size=batch_size,
    rows=(
      process_index * batch_size // process_count,
      (process_index + 1) * batch_size // process_count,
    ),
    seed=seed,
    transform=transform,
    augment=augment,
  )
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=ahead if threads else 0
  )
  iterator = iter(dataset.to_iter_dataset(options))
  made = Batches(iterator, batch_size, buckets is not None)
  if place is not None:
    made.seek(place)
  return made


def _check_sources(sources: Sequence[aligned.Source], repeat: bool) -> None:
  if not sources:
    raise ValueError("no sources; expected at least one dataset")
  for source in sources:
    if source.fields != sources[0].fields:
      one, other = (
        {field.name: str(field) for field in x.fields}
        for x in (sources[0], source)
      )
      raise ValueError(
        f"{source.datasets[0].folder} gives the features {other}; expected "
        f"{one}, as {sources[0].datasets[0].folder}"
      )
  if len(sources) > 1 and not repeat:
    raise ValueError(
      f"{len(sources)} sources are mixed for ever; read them one after another "
      "to see each record once"
    )
  # Grain's shuffle counts in 32 bits, and says nothing beyond.
  if any(len(source) >= 2**32 for source in sources):
    raise ValueError(
      "a source has more than 2^32 records; split it into several"
    )


def _order(
  sources: Sequence[aligned.Source],
  seed: int,
  weights: Sequence[float | int] | None,
  shuffle: bool,
  repeat: bool,
) -> grain.MapDataset:
  """Returns the numbers of records, source after source, in reading order."""
  orders, start = [], 0
  for number, source in enumerate(sources):
    order = grain.MapDataset.range(start, start + len(source))
    start += len(source)
    if shuffle:
      # Grain adds the epoch to the seed, so neighbouring seeds would give the
      # same orders one epoch apart.
      own = np.random.SeedSequence([seed, number]).generate_state(1)
      order = order.shuffle(seed=int(own[0]))
    orders.append(order.repeat() if repeat else order)
  if len(orders) == 1:
    return orders[0]
  return grain.MapDataset.mix(orders, weights)


class _HostBatches(grain.MapDataset):
  """The rows of one host in each global batch, read and stacked."""

  def __init__(
    self,
    order: grain.MapDataset,
    *,
    sources: Sequence[aligned.Source],
    size: int,
    rows: tuple[int, int],
    seed: int,
    transform: Callable[..., Any] | None,
    augment: Callable[..., Any] | None,
  ):
    super().__init__(order)
    self._order = order
    self._sources = sources
    self._size = size
    self._rows = rows
    self._seed = seed
    self._transform = transform
    self._augment = augment

  def __len__(self) -> int:
    return -(-len(self._order) // self._size)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    first, last = (index * self._size + row for row in self._rows)
    positions = range(first, min(last, len(self._order)))
    examples = self._read([self._order[position] for position in positions])
    if self._transform is not None:
      examples = [self._transform(example) for example in examples]
    if self._augment is not None:
      examples = [
        self._augment(example, _generator(self._seed, position))
        for example, position in zip(examples, positions, strict=True)
      ]
    return _stack(examples)

  def _read(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Reads records by their number in all sources, one after another."""
    if len(self._sources) == 1:
      return self._sources[0].read(numbers)
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for source in self._sources:
      own = [n for n in numbers if start <= n < start + len(source)]
      read = source.read([n - start for n in own])
      found.update(zip(own, read, strict=True))
      start += len(source)
    return [found[number] for number in numbers]


def _generator(seed: int, position: int) -> np.random.Generator:
  """Returns the generator of one row; a counter needs no warming up."""
  key = np.array([seed, position], np.uint64)
  return np.random.Generator(np.random.Philox(key=key))


def _stack(examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Stacks examples to arrays; what is not a number to arrays of objects."""
  stacked = {}
  for name, first in examples[0].items():
    values = [example[name] for example in examples]
    if isinstance(first, str | bytes | list):
      stacked[name] = np.empty(len(values), object)
      for row, value in enumerate(values):
        stacked[name][row] = value
      continue
    try:
      stacked[name] = np.stack(values)
    except ValueError:
      shapes = sorted({np.shape(value) for value in values})
      raise ValueError(
        f"feature {name!r} has the shapes {shapes} in one batch; expected one "
        "shape; pad or cut it in the transform"
      ) from None
  return stacked
