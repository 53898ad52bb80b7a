# SPDX-License-Identifier: Apache-2.0
"""One bucket a batch, on any number of hosts; rare ones in their share."""

import collections
import itertools

import numpy as np
import pytest

from cc_jax.data import aligned, loader, loader_buckets, records, shards

B = 8
COUNT = 61
# Of 61 records: one bucket in three batches and a bit, one with less than one.
SIZES = {100: 30, 7: 17, 3: 9, 55: 5}
BUCKETS = np.random.default_rng(0).permutation(
  np.repeat(list(SIZES), list(SIZES.values()))
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("source")
  fields = records.fields({"key": "text", "number": "int32"})
  rows = [{"key": str(i), "number": np.int32(i)} for i in range(COUNT)]
  name = shards.filename("toy", "train", 0, 1)
  done = shards.write(folder / name, fields, rows)
  shards.write_metadata(folder, "toy", fields, {"train": [done]})
  return aligned.source([shards.open(folder)], "train")


def take(made, count):
  """The numbers [count, B/P] of the next batches."""
  return np.stack([next(made)["number"] for _ in range(count)])


def noisy(example, rng):
  return {"noise": rng.normal(size=2)}


def open_loader(source, **settings):
  fixed = {"batch_size": B, "seed": 0, "buckets": BUCKETS}
  return loader.batches(source, **(fixed | settings))


def numbers(source, count, **settings):
  made = open_loader(source, **settings)
  taken = take(made, count)
  made.close()
  return taken


def test_a_batch_is_of_one_bucket(source):
  rows = numbers(source, 60)
  assert all(len(set(BUCKETS[batch])) == 1 for batch in rows)
  assert len({BUCKETS[batch[0]] for batch in rows}) == len(SIZES)


def test_each_bucket_is_read_epoch_by_epoch_with_nothing_left_out(source):
  rows = numbers(source, 250)
  for bucket, size in SIZES.items():
    stream = rows[BUCKETS[rows[:, 0]] == bucket].ravel()
    own = np.flatnonzero(BUCKETS == bucket)
    epochs = stream[: len(stream) // size * size].reshape(-1, size)
    assert len(epochs) >= 10
    assert all(sorted(epoch) == sorted(own) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_what_an_epoch_leaves_over_differs_and_comes_first_in_the_next(source):
  plan = loader_buckets.Plan(list(SIZES.values()), B, 0)
  ends = [int(plan.before(e).sum()) for e in range(9)]
  rows, left = numbers(source, ends[-1]), set()
  for first, last in itertools.pairwise(ends):
    epoch = rows[first:last].ravel()
    assert COUNT - 2 * B * len(SIZES) < len(set(epoch)) <= COUNT
    left.add(frozenset(range(COUNT)) - frozenset(epoch))
  assert len(left) > 4


def test_rare_buckets_come_up_as_often_as_others(source):
  plan = loader_buckets.Plan(list(SIZES.values()), B, 0)
  epochs = 40
  rows = numbers(source, int(plan.before(epochs).sum()))
  seen = collections.Counter(rows.ravel().tolist())
  assert set(seen) == set(range(COUNT))
  # A bucket is behind its share by less than a batch.
  for number, times in seen.items():
    behind = B / SIZES[BUCKETS[number]]
    assert epochs - behind - 1 <= times <= epochs


def test_batches_of_all_buckets_are_shuffled(source):
  order = BUCKETS[numbers(source, 140)[:, 0]]
  changes = np.count_nonzero(order[1:] != order[:-1])
  assert changes > 40
  assert (order[:7] != order[7:14]).any()


def test_the_order_is_the_seed_and_nothing_else(source):
  one = numbers(source, 30, seed=1)
  np.testing.assert_array_equal(numbers(source, 30, seed=1, threads=0), one)
  np.testing.assert_array_equal(numbers(source, 30, seed=1, threads=4), one)
  assert (numbers(source, 30, seed=2) != one).any()


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_make_together_the_batches_of_one(source, hosts):
  parts = [
    numbers(source, 25, process_index=i, process_count=hosts)
    for i in range(hosts)
  ]
  np.testing.assert_array_equal(
    np.concatenate(parts, axis=1), numbers(source, 25)
  )


def test_a_chain_of_hosts_goes_on_where_others_stopped(source):
  straight, seen, place = numbers(source, 40), [], None
  for hosts, count in ((1, 11), (4, 9), (2, 20)):
    made = [
      open_loader(source, process_index=i, process_count=hosts, place=place)
      for i in range(hosts)
    ]
    taken = [take(host, count) for host in made]
    seen.append(np.concatenate(taken, axis=1))
    (place,) = {tuple(host.place().items()) for host in made}
    place = dict(place)
    for host in made:
      host.close()
  assert place == {"next_index": 40, "global_batch": B}
  np.testing.assert_array_equal(np.concatenate(seen), straight)


def test_a_place_of_another_batch_size_is_refused(source):
  place = {"next_index": 4, "global_batch": 2 * B}
  with pytest.raises(ValueError, match="go on with batch_size=16, not 8"):
    numbers(source, 1, place=place)


def test_augmentation_is_the_same_on_any_number_of_hosts(source):
  def noise(hosts):
    parts = []
    for i in range(hosts):
      made = open_loader(
        source,
        process_index=i,
        process_count=hosts,
        augment=noisy,
      )
      parts.append(np.stack([next(made)["noise"] for _ in range(6)]))
      made.close()
    return np.concatenate(parts, axis=1)

  np.testing.assert_array_equal(noise(4), noise(1))


def test_any_batch_is_found_without_those_before():
  sizes = [3, 400_000, 17, 10_000_000]
  plan = loader_buckets.Plan(sizes, 2048, 5)
  epoch = plan.epoch(10**7)
  assert plan.before(epoch).sum() <= 10**7 < plan.before(epoch + 1).sum()
  first, last = (int(plan.before(e).sum()) for e in (epoch, epoch + 1))
  found = [plan.find(index) for index in range(first, last)]
  assert len(set(found)) == last - first
  for bucket in range(len(sizes)):
    own = sorted(number for b, number in found if b == bucket)
    start, end = (int(plan.before(e)[bucket]) for e in (epoch, epoch + 1))
    assert own == list(range(start, end))


def test_epochs_without_a_batch_are_passed_over():
  plan = loader_buckets.Plan([1, 2], 16, 0)
  found = [plan.find(index) for index in range(30)]
  assert [n for b, n in found if b == 0] == list(range(10))
  assert [n for b, n in found if b == 1] == list(range(20))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"buckets": BUCKETS[:5]}, "5 buckets for sources of"),
    ({"repeat": False}, "shuffled and repeated"),
    ({"shuffle": False}, "shuffled and repeated"),
  ],
)
def test_what_cannot_be_read_in_buckets_is_said(source, settings, message):
  with pytest.raises(ValueError, match=message):
    open_loader(source, **settings)


def test_two_sources_have_no_buckets(source):
  with pytest.raises(ValueError, match="expected one source"):
    loader.batches([source, source], batch_size=8, seed=0, buckets=BUCKETS)
