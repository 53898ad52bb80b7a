# SPDX-License-Identifier: Apache-2.0
"""The order of records when each batch is of one aspect bucket.

Each bucket is an endless stream: its records shuffled, then shuffled anew, and
so on. Batches are cut from it one after another, across the places where two
epochs meet. After e epochs of the whole dataset a bucket of R records has given
floor(e R / B) batches of B: what an epoch leaves over comes first in the next,
another remainder each time, and nothing is dropped. So a rare bucket, of fewer
records than a batch, gives one every B / R epochs, and its records come up as
often as all others. Within an epoch the batches of all buckets are shuffled.

Which bucket a batch has, and which records, follows from the seed and the
batch's number in closed form. So a place is one number and every host finds the
same batches.
"""

from collections.abc import Sequence
import functools

import grain
from jaxtyping import Int
import numpy as np

# Of a permutation of an epoch's batches; the order of records has others.
_BATCHES = 2**32 - 1


def check(
  buckets: Int[np.ndarray, "R"], lengths: Sequence[int], endless: bool
) -> None:
  """Refuses what cannot be read in buckets.

  Args:
    buckets: one of each record.
    lengths: records of each source.
    endless: whether the loader shuffles and repeats.

  Raises:
    ValueError: several sources, other records, or one epoch in order.
  """
  if list(lengths) != [len(buckets)]:
    raise ValueError(
      f"{len(buckets)} buckets for sources of {list(lengths)} records; "
      "expected one source, and the bucket of each of its records"
    )
  if not endless:
    raise ValueError(
      "batches of one bucket are shuffled and repeated; read records one by "
      "one (batch_size=1) for one epoch in order"
    )


class Plan:
  """Which bucket each global batch is of, and where in its bucket's stream.

  Args:
    counts: records of each bucket, at least one each.
    batch_size: rows of a global batch, B.
    seed: of the order of batches within an epoch.
  """

  def __init__(self, counts: Sequence[int], batch_size: int, seed: int):
    self._counts = np.asarray(counts, np.int64)
    self._batch_size = batch_size
    self._seed = seed
    # Threads ask for batches of two epochs where these meet.
    self._shuffled = functools.lru_cache(maxsize=4)(self._shuffle)

  def before(self, epoch: int) -> Int[np.ndarray, "K"]:
    """How many batches each bucket has given before an epoch."""
    return epoch * self._counts // self._batch_size

  def find(self, index: int) -> tuple[int, int]:
    """(bucket, number of the batch in its stream) of a global batch."""
    epoch = self.epoch(index)
    buckets, numbers = self._shuffled(epoch)
    place = index - int(self.before(epoch).sum())
    return int(buckets[place]), int(numbers[place])

  def epoch(self, index: int) -> int:
    """The epoch that a global batch is of."""
    # Each bucket is short of its share by less than one batch.
    total, size = int(self._counts.sum()), self._batch_size
    low = index * size // total
    high = (index + len(self._counts)) * size // total + 1
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (
        (middle, high)
        if int(self.before(middle).sum()) <= index
        else (low, middle)
      )
    return low

  def _shuffle(
    self, epoch: int
  ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """The bucket and number of each batch of an epoch, in reading order."""
    first = self.before(epoch)
    count = self.before(epoch + 1) - first
    rng = np.random.default_rng([self._seed, _BATCHES, epoch])
    buckets = rng.permutation(np.repeat(np.arange(len(count)), count))
    # Those of one bucket stay in order, so that its stream is read in order.
    numbers = np.empty_like(buckets)
    numbers[np.argsort(buckets, kind="stable")] = np.concatenate(
      [np.arange(*ends) for ends in zip(first, first + count, strict=True)]
    )
    return buckets, numbers


class Order(grain.MapDataset):
  """Numbers of records in reading order, each B of them of one bucket."""

  def __init__(self, numbers: Int[np.ndarray, "R"], batch_size: int, seed: int):
    """Makes the order of a dataset.

    Args:
      numbers: the bucket of each record, any integers.
      batch_size: rows of a global batch.
      seed: 0 to 2^32 - 1.
    """
    found, inverse = np.unique(numbers, return_inverse=True)
    self._records = [np.flatnonzero(inverse == k) for k in range(len(found))]
    self._plan = Plan([len(own) for own in self._records], batch_size, seed)
    self._size = batch_size
    self._orders = []
    for bucket, own in zip(found, self._records, strict=True):
      # By the bucket and not its rank: another that comes to it changes none.
      mixed = np.random.SeedSequence([seed, int(bucket)]).generate_state(1)
      order = grain.MapDataset.range(len(own)).shuffle(seed=int(mixed[0]))
      self._orders.append(order.repeat())
    super().__init__(self._orders)

  def __len__(self) -> int:
    return len(self._orders[0])

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._size)
    bucket, number = self._plan.find(batch)
    place = self._orders[bucket][number * self._size + row]
    return int(self._records[bucket][place])
