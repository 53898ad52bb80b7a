# SPDX-License-Identifier: Apache-2.0
"""The order of rows on any number of hosts, resuming, mixing, speed."""

import numpy as np
import pytest

from cc_jax.data import aligned, loader, records, shards

SPECS = {"key": "text", "number": "int32", "vector": ("float32", (2,))}
COUNT = 23


def make(folder, start=0, count=COUNT, specs=None):
  """Writes `count` records, numbered from `start`, in two shards."""
  fields = records.fields(SPECS if specs is None else specs)
  done = []
  for shard, lengths in enumerate([(0, count // 2), (count // 2, count)]):
    examples = [
      {
        "key": str(start + i),
        "number": np.int32(start + i),
        "vector": np.array([start + i, 0.5], np.float32),
      }
      for i in range(*lengths)
    ]
    name = shards.filename("toy", "train", shard, 2)
    done.append(shards.write(folder / name, fields, examples))
  shards.write_metadata(folder, "toy", fields, {"train": done})
  return aligned.source([shards.open(folder)], "train")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return make(tmp_path_factory.mktemp("source"))


def take(made, count):
  """Returns the numbers [count, B/P] of the next batches."""
  return np.stack([next(made)["number"] for _ in range(count)])


def numbers(source, count, **settings):
  made = loader.batches(source, **({"batch_size": 8, "seed": 0} | settings))
  taken = take(made, count)
  made.close()
  return taken


def test_an_epoch_has_every_record_once_in_another_order(source):
  rows = numbers(source, 3 * COUNT, batch_size=8).ravel()[: 3 * COUNT]
  epochs = rows.reshape(3, COUNT)
  for epoch in epochs:
    assert sorted(epoch) == list(range(COUNT))
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert tuple(epochs[0]) != tuple(range(COUNT))


def test_the_order_is_the_seed_and_nothing_else(source):
  one = numbers(source, 5, seed=1)
  np.testing.assert_array_equal(numbers(source, 5, seed=1, threads=0), one)
  np.testing.assert_array_equal(numbers(source, 5, seed=1, threads=4), one)
  assert (numbers(source, 5, seed=2) != one).any()


def test_neighbouring_seeds_share_no_epoch(source):
  epochs = lambda seed: numbers(source, 8, batch_size=COUNT, seed=seed)
  shared = {tuple(e) for e in epochs(0)} & {tuple(e) for e in epochs(1)}
  assert not shared


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_make_together_the_batches_of_one(source, hosts):
  alone = numbers(source, 9)
  parts = [
    numbers(source, 9, process_index=i, process_count=hosts)
    for i in range(hosts)
  ]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), alone)


def test_rows_hold_together(source):
  made = loader.batches(source, batch_size=8, seed=0)
  batch = next(made)
  assert batch["number"].dtype == np.int32
  assert batch["vector"].shape == (8, 2)
  np.testing.assert_array_equal(batch["vector"][:, 0], batch["number"])
  assert list(batch["key"]) == [str(n) for n in batch["number"]]
  made.close()


def test_resume_is_exact_on_any_number_of_hosts(source):
  straight = numbers(source, 12)
  made = loader.batches(source, batch_size=8, seed=0)
  take(made, 5)
  place = made.place()
  assert place == {"next_index": 5, "global_batch": 8}
  assert all(type(value) is int for value in place.values())
  made.close()
  for hosts in (1, 2, 4):
    parts = []
    for i in range(hosts):
      host = loader.batches(
        source,
        batch_size=8,
        seed=0,
        process_index=i,
        process_count=hosts,
        place=place,
      )
      parts.append(take(host, 7))
      assert host.place() == {"next_index": 12, "global_batch": 8}
      host.close()
    np.testing.assert_array_equal(np.concatenate(parts, 1), straight[5:])


def test_a_chain_of_hosts_sees_the_rows_of_one_run(source):
  straight, seen, place = numbers(source, 9), [], None
  for hosts in (1, 2, 4):
    made = [
      loader.batches(
        source,
        batch_size=8,
        seed=0,
        process_index=i,
        process_count=hosts,
        place=place,
      )
      for i in range(hosts)
    ]
    seen.append(np.concatenate([take(host, 3) for host in made], axis=1))
    places = [host.place() for host in made]
    assert places == [places[0]] * hosts
    place = places[0]
    for host in made:
      host.close()
  np.testing.assert_array_equal(np.concatenate(seen), straight)


def test_seeking_back_forgets_what_was_read_ahead(source):
  made = loader.batches(source, batch_size=8, seed=0)
  first = take(made, 6)
  made.seek({"next_index": 2, "global_batch": 8})
  np.testing.assert_array_equal(take(made, 4), first[2:])
  made.close()


def test_a_place_is_converted_to_another_batch_size_or_refused(source):
  rows = numbers(source, 12).ravel()
  place = {"next_index": 6, "global_batch": 8}
  for size in (4, 16, 24):
    got = numbers(source, 2, batch_size=size, place=place).ravel()
    np.testing.assert_array_equal(got, rows[48 : 48 + 2 * size])
  with pytest.raises(ValueError, match=r"after 48 rows.*batch_size=32 does"):
    numbers(source, 1, batch_size=32, place=place)


@pytest.mark.parametrize(
  "place", [{}, {"next_index": 1}, {"next_index": -1, "global_batch": 8}]
)
def test_what_is_no_place_is_an_error(source, place):
  with pytest.raises(ValueError, match="is not a place of the loader"):
    numbers(source, 1, place=place)


def test_a_dataset_smaller_than_a_batch_wraps(source):
  rows = numbers(source, 2, batch_size=2 * COUNT)
  for batch in rows:
    assert sorted(batch) == sorted([*range(COUNT), *range(COUNT)])


def test_one_epoch_in_order_ends_with_a_short_batch(source):
  made = loader.batches(
    source, batch_size=8, seed=0, shuffle=False, repeat=False
  )
  batches = [batch["number"].tolist() for batch in made]
  assert [len(batch) for batch in batches] == [8, 8, 7]
  assert [n for batch in batches for n in batch] == list(range(COUNT))
  made.close()


def test_a_last_batch_that_does_not_divide_over_hosts_is_an_error(source):
  with pytest.raises(ValueError, match="23 records do not fill batches of 8"):
    numbers(source, 1, repeat=False, process_count=2)


def shift(example, rng):
  return {"number": example["number"], "noise": rng.normal(size=2)}


def test_augmentation_is_the_same_on_any_number_of_hosts(source):
  def noise(hosts, place=None):
    parts = []
    for i in range(hosts):
      made = loader.batches(
        source,
        batch_size=8,
        seed=3,
        process_index=i,
        process_count=hosts,
        augment=shift,
        place=place,
      )
      parts.append(np.stack([next(made)["noise"] for _ in range(4)]))
      made.close()
    return np.concatenate(parts, axis=1)

  alone = noise(1)
  assert len(np.unique(alone)) == alone.size
  np.testing.assert_array_equal(noise(4), alone)
  later = noise(2, {"next_index": 3, "global_batch": 8})
  np.testing.assert_array_equal(later[0], alone[3])


def test_a_transform_makes_the_features_of_a_batch(source):
  double = lambda x: {"twice": 2 * x["vector"], "sum": int(x["number"]) + 1}
  made = loader.batches(source, batch_size=4, seed=0, transform=double)
  batch = next(made)
  assert set(batch) == {"twice", "sum"}
  np.testing.assert_array_equal(batch["twice"][:, 0] / 2 + 1, batch["sum"])
  made.close()


def test_rows_of_different_shapes_are_an_error(source):
  ragged = lambda x: {"states": np.zeros((x["number"] % 3, 2))}
  with pytest.raises(ValueError, match=r"'states' has the shapes .*pad or cut"):
    numbers(source, 1, transform=ragged, threads=0)


def test_mixing_takes_from_each_source_in_proportion(source, tmp_path):
  other = make(tmp_path, start=1000, count=10)
  settings = {"batch_size": 8, "weights": [3, 1]}
  rows = numbers([source, other], 40, **settings)
  assert (rows >= 1000).sum() == 80
  first = rows[rows >= 1000][:20].reshape(2, 10)
  for epoch in first:
    assert sorted(epoch) == list(range(1000, 1010))
  parts = [
    numbers([source, other], 40, process_index=i, process_count=2, **settings)
    for i in range(2)
  ]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), rows)


def test_sources_that_differ_are_not_mixed(source, tmp_path):
  other = aligned.source(source.datasets, "train", ["number"])
  with pytest.raises(ValueError, match="gives the features"):
    numbers([source, other], 1)
  with pytest.raises(ValueError, match="mixed for ever"):
    numbers([source, source], 1, repeat=False)
  with pytest.raises(ValueError, match="expected a number above 0 for each"):
    numbers([source, source], 1, weights=[1.0, 0.0])


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      {"batch_size": 1000, "process_count": 64},
      "batch_size=1000 does not divide over 64 processes",
    ),
    ({"batch_size": 0}, "batch_size=0 does not divide"),
    ({"process_index": 2, "process_count": 2}, "process_index=2; expected 0"),
    ({"seed": -1}, "seed=-1; expected 0 to"),
    ({"seed": 2**32}, "seed=4294967296; expected 0 to"),
  ],
)
def test_numbers_out_of_range_are_errors(source, settings, message):
  with pytest.raises(ValueError, match=message):
    numbers(source, 1, **settings)


def test_aligned_folders_are_batched_together(source, tmp_path):
  fields = records.fields({"key": "text", "caption": "text"})
  done = []
  for shard, (low, high) in enumerate([(0, COUNT // 2), (COUNT // 2, COUNT)]):
    name = shards.filename("side", "train", shard, 2)
    rows = [{"key": str(i), "caption": f"c{i}"} for i in range(low, high)]
    done.append(shards.write(tmp_path / name, fields, rows))
  shards.write_metadata(tmp_path, "side", fields, {"train": done})
  both = aligned.source([*source.datasets, shards.open(tmp_path)], "train")
  made = loader.batches(both, batch_size=4, seed=0)
  batch = next(made)
  assert list(batch["caption"]) == [f"c{n}" for n in batch["number"]]
  made.close()
