# SPDX-License-Identifier: Apache-2.0
"""Parquet as CommonCatalog has it, and what can be wrong with it."""

import math

import pyarrow as pa
from pyarrow import parquet
import pytest
import toy_pass
import toys

from cc_jax.core import config as configs
from cc_jax.data import rows, shards, sources_parquet

COLUMNS = configs.load("configs/base.py").catalogue.columns.to_dict()
BY = "http://creativecommons.org/licenses/by/2.0/"


def record(number, **fields):
  """A row in the columns that matter of CommonCatalog's 35."""
  return {
    "jpg": {"bytes": b"image %d" % number, "path": f"{number}.jpg"},
    "licenseurl": BY,
    "licensename": "Attribution+License",
    "unickname": "Canon+PowerShot%21",
    "title": f"C%2B%2B+{number}",
    "usertags": "red+hat,blue%2Cgreen,",
    "pageurl": f"http://www.flickr.com/photos/7@N00/{number}/",
    "photoid": 5_000_000_000 + number,
    "exif": "{}",
    "nsfw": 0.1 * number,
  } | fields


def write(path, records, group=4, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  table = pa.Table.from_pylist(records)
  parquet.write_table(table, path, row_group_size=group, **options)
  return path


def wanted(source, per_shard=4, **fields):
  columns = COLUMNS | {"author": "unickname"}
  return rows.Wanted(
    str(source), columns, per_shard, url_encoded=True
  )._replace(**fields)


def read(asked):
  """What each piece yields; the same when asked again."""
  made = sources_parquet.pieces(asked)
  found = [list(piece.read()) for piece in made]
  assert [list(piece.read()) for piece in made] == found
  assert [piece.length for piece in made] == [len(entries) for entries in found]
  return found


def test_a_row_is_what_commoncatalog_says_without_its_encoding(tmp_path):
  write(tmp_path / "1/part-0.parquet", [record(7)])
  (((row,),)) = read(wanted(tmp_path, keep=("nsfw",)))
  assert row == rows.Row(
    where="1/part-0.parquet:1",
    image=b"image 7",
    licence_url=BY,
    licence_name="Attribution+License",
    author="Canon PowerShot!",
    title="C++ 7",
    tags=("red hat", "blue,green"),
    page_url="http://www.flickr.com/photos/7@N00/7/",
    photo_id="5000000007",
    more={"nsfw": 0.7000000000000001},
  )


def test_a_table_that_is_not_encoded_is_left_as_it_is(tmp_path):
  plain = record(1, title="C++ 100%", photoid=math.nan, jpg=b"plain bytes")
  write(tmp_path / "a.parquet", [plain])
  (((row,),)) = read(wanted(tmp_path / "a.parquet", url_encoded=False))
  assert (row.title, row.image, row.photo_id) == (
    "C++ 100%",
    b"plain bytes",
    "",
  )


def test_shards_are_cut_by_row_groups_and_large_groups_by_rows(tmp_path):
  write(tmp_path / "a.parquet", [record(i) for i in range(5)], group=2)
  write(tmp_path / "b.parquet", [record(i) for i in range(5, 14)], group=9)
  write(tmp_path / "c.parquet", [record(14)])
  found = read(wanted(tmp_path))
  assert [len(entries) for entries in found] == [4, 1, 4, 4, 2]
  images = [row.image for entries in found for row in entries]
  assert images == [b"image %d" % i for i in range(15)]
  assert found[4][0].where == "b.parquet:9"


def test_memory_does_not_grow_with_a_row_group(tmp_path):
  image = bytes(100_000)
  records = [record(i, jpg={"bytes": image}) for i in range(200)]
  options = {"compression": "none", "use_dictionary": False}
  path = tmp_path / "a.parquet"
  write(path, records, group=200, write_batch_size=4, **options)
  assert path.stat().st_size > 200 * len(image)
  before = most = pa.total_allocated_bytes()
  for piece in sources_parquet.pieces(wanted(tmp_path, per_shard=70)):
    for _ in piece.read():
      most = max(most, pa.total_allocated_bytes())
  assert most - before < 80 * len(image)


def test_folders_are_columns_and_names_of_files_may_be_splits(tmp_path):
  bucket = "3/aspect_ratio_bucket=1-1/part-0.parquet"
  write(tmp_path / bucket, [record(1)])
  held = "data/validation-00000-of-00002-0a1b.parquet"
  write(tmp_path / held, [record(2)])
  made = sources_parquet.pieces(wanted(tmp_path))
  assert [(p.split, p.index, p.count) for p in made] == [
    ("train", 0, 1),
    ("validation", 0, 1),
  ]
  asked = wanted(tmp_path / "3", keep=("aspect_ratio_bucket",))
  (((row,),)) = read(asked)
  assert row.more == {"aspect_ratio_bucket": "1-1"}


def test_a_file_that_is_cut_is_one_reject(tmp_path):
  write(tmp_path / "a.parquet", [record(1)])
  path = write(tmp_path / "b.parquet", [record(i) for i in range(9)])
  path.write_bytes(path.read_bytes()[:-20])
  (tmp_path / "c.parquet").write_bytes(b"")
  (found,) = read(wanted(tmp_path))
  assert [getattr(e, "reason", "kept") for e in found] == [
    "kept",
    "file_broken",
    "file_broken",
  ]
  assert found[1].where == "b.parquet"


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_each_row_of_a_broken_group_is_a_reject(tmp_path, compression):
  records = [record(i, jpg={"bytes": bytes([i]) * 9000}) for i in range(12)]
  path = write(
    tmp_path / "a.parquet",
    records,
    compression=compression,
    use_dictionary=False,
    write_page_checksum=True,
  )
  group = parquet.read_metadata(path).row_group(1)
  column = next(
    group.column(i)
    for i in range(group.num_columns)
    if group.column(i).path_in_schema == "jpg.bytes"
  )
  data = bytearray(path.read_bytes())
  middle = column.data_page_offset + column.total_compressed_size // 2
  data[middle : middle + 8] = b"\xaa\x55" * 4
  path.write_bytes(data)
  found = read(wanted(tmp_path, per_shard=3))
  entries = [entry for piece in found for entry in piece]
  assert len(entries) == 12
  assert [getattr(e, "reason", "kept") for e in entries] == [
    *["kept"] * 4,
    *["group_broken"] * 4,
    *["kept"] * 4,
  ]
  assert [e.where for e in entries[4:6]] == ["a.parquet:5", "a.parquet:6"]


def test_rows_without_bytes_or_with_odd_text_are_rejects(tmp_path):
  records = [
    record(1, jpg=None),
    record(2, jpg={"bytes": None, "path": "elsewhere.jpg"}),
    record(3, jpg={"bytes": b"", "path": None}),
    record(4, title=None, usertags=None, unickname=None),
  ]
  (found,) = read(wanted(write(tmp_path / "a.parquet", records)))
  assert [getattr(e, "reason", "kept") for e in found] == [
    *["image_missing"] * 3,
    "kept",
  ]
  assert (found[3].title, found[3].tags, found[3].author) == ("", (), "")


@pytest.mark.parametrize(
  ("gone", "fields", "words"),
  [
    ("jpg", {}, "no column 'jpg' with the image; a.parquet has exif, lic"),
    (
      "nsfw",
      {"keep": ("nsfw",)},
      "no column 'nsfw', by which catalogue.filters",
    ),
    (
      "licenseurl licensename",
      {},
      "no column 'licenseurl' or 'licensename' with the licence",
    ),
  ],
)
def test_a_column_that_is_missing_is_named(tmp_path, gone, fields, words):
  made = record(1)
  for name in gone.split():
    del made[name]
  write(tmp_path / "a.parquet", [made])
  with pytest.raises(ValueError, match=words):
    sources_parquet.pieces(wanted(tmp_path, **fields))


def test_what_can_do_without_a_column_does(tmp_path):
  made = record(1)
  for name in "licenseurl licensename usertags photoid exif".split():
    del made[name]
  write(tmp_path / "a.parquet", [made])
  (((row,),)) = read(wanted(tmp_path, licensed=False))
  assert (row.licence_url, row.tags, row.photo_id) == ("", (), "")


def test_a_column_that_holds_no_bytes_is_refused(tmp_path):
  write(tmp_path / "a.parquet", [record(1, jpg="a.jpg")])
  with pytest.raises(
    ValueError, match="is string; expected the bytes of images"
  ):
    sources_parquet.pieces(wanted(tmp_path))
  with pytest.raises(ValueError, match="records_per_shard=0"):
    sources_parquet.pieces(wanted(tmp_path, per_shard=0))


def test_a_changed_source_has_other_inputs(tmp_path):
  write(tmp_path / "a.parquet", [record(1)])
  seen = [sources_parquet.inputs(wanted(tmp_path))]
  assert seen[0] == sources_parquet.inputs(wanted(tmp_path))
  write(tmp_path / "a.parquet", [record(1), record(2)])
  seen.append(sources_parquet.inputs(wanted(tmp_path)))
  write(tmp_path / "in/b.parquet", [record(1)])
  seen.append(sources_parquet.inputs(wanted(tmp_path)))
  assert len({entry["files"] for entry in seen}) == 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Fifteen rows: pictures of which some fail a filter, a licence, a list."""
  place = tmp_path_factory.mktemp("parquet")
  for file in range(3):
    made = [
      record(
        5 * file + i,
        jpg={"bytes": toys.picture(5 * file + i), "path": None},
        nsfw=(0.1, 0.5, None, 0.1, 0.2)[i],
        licenseurl=BY.replace("by", "by-nc") if i == 3 else BY,
        licensename=None,
      )
      for i in range(5)
    ]
    write(place / f"source/{file}/part-0.parquet", made, group=3)
  path = place / "source/1/part-0.parquet"
  path.write_bytes(path.read_bytes()[:-9])
  (place / "list.csv").write_text("photo_id,author\n5000000010,\n")
  return place


def catalogue(source, folder, *words):
  options = {
    "source": f"{source}/source",
    "folder": folder,
    "records_per_shard": 3,
    "url_encoded": "true",
    "columns.author": "unickname",
    "filters": "('nsfw<0.3',)",
    "opt_out": f"{source}/list.csv",
  }
  flags = [f"--config.catalogue.{k}={v}" for k, v in options.items()]
  return toys.run("catalogue", source, source / "w", *flags, *words)


def test_every_row_is_kept_or_rejected_by_the_stage(source, tmp_path):
  assert catalogue(source, tmp_path / "a") == 0
  dataset = shards.open(tmp_path / "a")
  counts = dataset.provenance["counts"]
  assert counts == {
    "read": 11,
    "kept": 3,
    "rejected": {
      "file_broken": 1,
      "filter_nsfw": 2,
      "filter_nsfw_missing": 2,
      "licence_non_commercial": 2,
      "opted_out": 1,
    },
    "licences": {"CC-BY-2.0": 3},
  }
  found = [
    x
    for shard in range(len(dataset.splits["train"]))
    for x in shards.read(dataset, "train", shard)
  ]
  assert [x["photo_id"] for x in found] == [
    "5000000000",
    "5000000004",
    "5000000014",
  ]
  assert found[0]["author"] == "Canon PowerShot!"
  file = parquet.read_table(tmp_path / "a/ATTRIBUTION.parquet")
  names = ["key", "author", "title", "licence", "licence_url", "page_url"]
  assert file.select(names).to_pylist() == [
    {name: x[name] for name in names} for x in found
  ]


def test_a_stage_that_was_stopped_makes_the_same_bytes(
  source, tmp_path, monkeypatch
):
  assert catalogue(source, tmp_path / "a") == 0
  with toy_pass.stopped(monkeypatch, shards=2):
    assert catalogue(source, tmp_path / "b") == 130
  assert catalogue(source, tmp_path / "b") == 0
  assert toys.contents(tmp_path / "b") == toys.contents(tmp_path / "a")


def test_a_rule_of_ones_own_is_in_place_of_the_collection(
  source, tmp_path, capsys
):
  rule = "--config.catalogue.allow=('CC-BY-NC',)"
  assert catalogue(source, tmp_path / "a", rule) == 0
  counts = shards.open(tmp_path / "a").provenance["counts"]
  assert counts["licences"] == {"CC-BY-NC-2.0": 2}
  assert counts["rejected"]["licence_not_allowed"] == 8
  rule = "--config.catalogue.allow=('CC-BY-ND',)"
  status = catalogue(source, tmp_path / "b", rule)
  toys.check_refused(capsys, status, "'CC-BY-ND'", "forbids derivatives")
  assert not (tmp_path / "b").exists()
