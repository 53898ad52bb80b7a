# SPDX-License-Identifier: Apache-2.0
import collections
import itertools

import numpy as np
import pytest
import toy_catalogue
import toy_pass
import toys

from cc_jax.data import aligned, shards, subset


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("subset")
  toy_catalogue.fill(place / "catalogue")
  toy_catalogue.fill_beside(place)
  return place


def choose(place, count, by="", seed=1, name="catalogue"):
  dataset = shards.open(place / name)
  return subset.choose(dataset, "train", count, by=by, seed=seed)


def test_so_many_are_drawn_and_more_are_drawn_besides(place):
  drawn = [set(choose(place, count).tolist()) for count in range(1, 17)]
  assert [len(one) for one in drawn] == list(range(1, 17))
  for smaller, larger in itertools.pairwise(drawn):
    assert smaller < larger
  assert set(choose(place, 8, seed=2).tolist()) != drawn[7]


def test_a_side_folder_draws_the_same_by_itself(place):
  for name in ("captions", "latents"):
    np.testing.assert_array_equal(choose(place, 7, name=name), choose(place, 7))


def test_each_licence_has_its_share(place):
  source = aligned.source([shards.open(place / "catalogue")], "train")
  of = lambda indices: collections.Counter(
    source[int(i)]["licence"] for i in indices
  )
  all_of = of(range(len(source)))
  assert all_of == {"CC-BY-2.0": 10, "CC0-1.0": 6}
  assert of(choose(place, 8, "licence")) == {"CC-BY-2.0": 5, "CC0-1.0": 3}
  for count in range(1, 17):
    found = of(choose(place, count, "licence", seed=count))
    assert sum(found.values()) == count
    for licence, size in all_of.items():
      assert abs(found[licence] - count * size / 16) < 1


def test_shares_are_of_largest_remainders():
  sizes = np.array([1, 10, 89])
  for count in (1, 5, 10, 37, 100):
    parts = subset.shares(sizes, count)
    assert parts.sum() == count
    assert np.abs(parts - sizes * count / 100).max() < 1
  assert subset.shares(sizes, 100).tolist() == sizes.tolist()


def test_draws_are_uniform(place):
  drawn = np.zeros(16)
  for seed in range(400):
    drawn[choose(place, 4, seed=seed)] += 1
  # 100 of 400 expected; the deviation is 8.7.
  assert np.abs(drawn - 100).max() < 40


def run(place, folder, *words):
  names = ["catalogue", "captions", "latents"]
  flags = [
    f"--config.subset.folders={tuple(f'{place}/{name}' for name in names)}",
    f"--config.subset.folder={folder}",
    "--config.subset.count=9",
    "--config.subset.records_per_shard=4",
  ]
  return toys.run("subset", place, folder.parent / "w", *flags, *words)


def test_the_stage_writes_each_folder_with_the_same_records(
  place, tmp_path, capsys
):
  assert run(place, tmp_path / "subset") == 0
  assert "9 of 16 records" in capsys.readouterr().out
  names = ("catalogue", "captions", "latents")
  small = [shards.open(tmp_path / "subset" / name) for name in names]
  assert small[0].splits == {"train": (3, 3, 3), "validation": (3,)}
  source = aligned.source(small, "train")
  large = aligned.source([shards.open(place / n) for n in names], "train")
  made = [source[i] for i in range(9)]
  original = {large[i]["key"]: large[i] for i in range(16)}
  for record in made:
    expected = original[record["key"]]
    assert record.keys() == expected.keys()
    for name, value in record.items():
      np.testing.assert_array_equal(value, expected[name])
  assert len({record["key"] for record in made}) == 9
  assert (tmp_path / "subset/catalogue/ATTRIBUTION.parquet").exists()
  before = toy_pass.contents(tmp_path / "subset")
  assert run(place, tmp_path / "subset") == 0
  assert toy_pass.contents(tmp_path / "subset") == before


def test_what_cannot_be_drawn_is_refused(place, tmp_path, capsys):
  for flag, words in (
    ("subset.count=17", "subset.count=17 of 16 records"),
    ("subset.count=0", "expected from 1 to all of them"),
    ("subset.split=test", "of 0 records of the split 'test'"),
    ("subset.by=author", "unknown subset.by 'author'"),
    ("subset.folders=()", "subset.folders=()"),
  ):
    status = run(place, tmp_path / "subset", f"--config.{flag}")
    toys.check_refused(capsys, status, words)
  with pytest.raises(ValueError, match="no feature 'licence' to draw by"):
    choose(place, 3, "licence", name="latents")
  assert not (tmp_path / "subset").exists()
