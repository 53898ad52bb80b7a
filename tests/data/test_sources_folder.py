# SPDX-License-Identifier: Apache-2.0
import collections
import hashlib
import json
import os

import pytest
import toys

from cc_jax.core import config as configs
from cc_jax.data import passes, rows, sources_folder

COLUMNS = configs.load("configs/base.py").catalogue.columns.to_dict()


def wanted(folder, per_shard=100):
  return rows.Wanted(str(folder), COLUMNS, per_shard)


def read(folder, per_shard=100):
  """What a folder yields, by split."""
  found = collections.defaultdict(list)
  for piece in sources_folder.pieces(wanted(folder, per_shard)):
    entries = list(piece.read())
    assert entries == list(piece.read())
    assert len(entries) == piece.length
    found[piece.split] += entries
  return found


def read_line(folder, line, **pictures):
  """What one line yields, in a folder with that line and a.png."""
  pictures = {"a.png": toys.picture(0)} | pictures
  folder = toys.write_source(folder, [line], pictures)
  (entry,) = (
    e
    for entries in read(folder).values()
    for e in entries
    if not (isinstance(e, passes.Reject) and e.reason == "not_listed")
  )
  return entry


def test_a_row_says_what_its_line_says(tmp_path):
  line = toys.row(
    "in/a.png",
    title=" Ein Hütchen ",
    author="Ann",
    licensename="CC BY 4.0",
    pageurl="https://example.org/1",
    usertags=["red", " blue ", ""],
    sha256="AB",
    more={"not": "read"},
  )
  data = toys.picture(1)
  folder = toys.write_source(tmp_path, [line], {"in/a.png": data})
  ((row,),) = read(folder).values()
  assert row == rows.Row(
    where="metadata.jsonl:1 in/a.png",
    image=data,
    sha256="AB",
    licence_url=toys.LICENCE,
    licence_name="CC BY 4.0",
    author="Ann",
    title="Ein Hütchen",
    tags=("red", "blue"),
    page_url="https://example.org/1",
  )


def test_columns_can_have_other_names(tmp_path):
  line = {"jpg": "a.png", "caption": "a hat", "usertags": "x, y,,z"}
  toys.write_source(tmp_path, [line], {"a.png": b"."})
  columns = {**COLUMNS, "file": "jpg", "title": "caption"}
  (piece,) = sources_folder.pieces(rows.Wanted(str(tmp_path), columns, 9))
  (row,) = piece.read()
  assert (row.title, row.tags) == ("a hat", ("x", "y", "z"))


BROKEN = {
  "half a line": b'{"file_name": "a.png", "ti\n',
  "no object": b'["a.png"]\n',
  "a number": b"17\n",
  "two objects": b'{"file_name": "a.png"} {"file_name": "a.png"}\n',
  "not UTF-8": b'{"file_name": "a.png", "title": "\xff\xfe\xfa"}\n',
  "half a character": b'{"file_name": "a.png", "title": "\\ud800"}\n',
  "half a tag": b'{"file_name": "a.png", "usertags": ["\\udc00"]}\n',
  "no file": b'{"title": "hat"}\n',
  "an empty file": b'{"file_name": "", "title": "hat"}\n',
  "brackets": b"[" * 100_000 + b"\n",
  "a long number": b'{"file_name": ' + b"9" * 5000 + b"}\n",
  "a split of two words": b'{"file_name": "a.png", "split": "my split"}\n',
  "a list of splits": b'{"file_name": "a.png", "split": ["train"]}\n',
  "outside": b'{"file_name": "../a.png"}\n',
  "outside by a detour": b'{"file_name": "in/../../a.png"}\n',
  "elsewhere": b'{"file_name": "/etc/passwd"}\n',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_a_reject(line, tmp_path):
  (tmp_path / "a.png").write_bytes(toys.picture(0))
  reject = read_line(tmp_path / "source", line)
  assert reject.reason == "line_broken"
  assert reject.where == "metadata.jsonl:1"
  assert reject.detail


@pytest.mark.parametrize(
  "file", ["b.png", "in", "a\\u0000.png", "x" * 300, "a.png/b.png"]
)
def test_a_file_that_is_not_there_is_a_reject(file, tmp_path):
  line = b'{"file_name": "%s"}\n' % file.encode()
  reject = read_line(tmp_path, line, **{"in/c.png": b"."})
  assert reject.reason == "file_missing"


def test_odd_values_do_no_harm(tmp_path):
  line = toys.row("a.png", title=7, author=None, usertags=5, split=None)
  row = read_line(tmp_path, line)
  assert (row.title, row.author, row.tags) == ("7", "", ("5",))


def test_line_ends_blank_lines_and_a_mark_of_byte_order_do_no_harm(tmp_path):
  lines = [json.dumps(toys.row(f"{i}.png")).encode() for i in range(3)]
  content = b"\xef\xbb\xbf" + b"\r\n\r\n  \n".join(lines)
  folder = toys.write_source(
    tmp_path, [content], {f"{i}.png": b"%d" % i for i in range(3)}
  )
  found = read(folder)["train"]
  assert [row.image for row in found] == [b"0", b"1", b"2"]
  assert found[1].where == "metadata.jsonl:4 1.png"


def test_splits_are_as_the_lines_say(tmp_path):
  splits = ["validation", None, "", "train", "photos_2"]
  lines = [toys.row(f"{i}.png", split=s) for i, s in enumerate(splits)]
  folder = toys.write_source(
    tmp_path, lines, {f"{i}.png": b"." for i in range(5)}
  )
  lengths = {split: len(entries) for split, entries in read(folder).items()}
  assert lengths == {"validation": 1, "train": 3, "photos_2": 1}


def test_images_that_no_line_names_are_rejects(tmp_path):
  pictures = {"a.png": b"a", "b/c.JPG": b"c", "d.webp": b"d", "notes.txt": b"-"}
  lines = [toys.row("./a.png")]
  found = read(toys.write_source(tmp_path, lines, pictures))["train"]
  assert found[0].image == b"a"
  assert [(e.reason, e.where) for e in found[1:]] == [
    ("not_listed", "b/c.JPG"),
    ("not_listed", "d.webp"),
  ]


def test_a_folder_without_a_list_yields_its_images_and_their_classes(tmp_path):
  (tmp_path / "images/cat").mkdir(parents=True)
  for name in ("b.png", "images/a.jpg", "images/cat/c.jpg", "c.txt"):
    (tmp_path / name).write_bytes(name.encode())
  found = read(str(tmp_path))
  assert found == {
    "train": [
      rows.Row("b.png", b"b.png"),
      rows.Row("images/a.jpg", b"images/a.jpg"),
      rows.Row("images/cat/c.jpg", b"images/cat/c.jpg", title="cat"),
    ]
  }


def test_a_name_that_is_not_utf8_can_be_reported(tmp_path):
  with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
    file.write(b".")
  ((row,),) = read(str(tmp_path)).values()
  assert row.where.encode()
  assert row.image == b"."


def test_the_same_image_twice_is_a_duplicate(tmp_path):
  digest = hashlib.sha256(b"x").hexdigest()
  lines = [
    toys.row("a.png", sha256=digest, split="validation"),
    toys.row("./a.png"),
    toys.row("b.png", sha256=digest.upper()),
    toys.row("c.png"),
    toys.row("d.png"),
    toys.row("d.png"),
  ]
  folder = toys.write_source(
    tmp_path, lines, {f"{name}.png": b"x" for name in "abcd"}
  )
  # A shard of one row each: what is a duplicate is not up to the shard.
  found = read(folder, per_shard=1)
  assert [row.where for row in found["validation"]] == [
    "metadata.jsonl:1 a.png"
  ]
  # The bytes of c and d are the same, too, but no line says so.
  assert [getattr(e, "reason", e.where) for e in found["train"]] == [
    "duplicate",
    "duplicate",
    "metadata.jsonl:4 c.png",
    "metadata.jsonl:5 d.png",
    "duplicate",
  ]
  assert found["train"][1] == passes.Reject(
    "duplicate", "metadata.jsonl:3", "the same image as metadata.jsonl:1"
  )


def test_shards_of_a_split_are_even_and_in_order(tmp_path):
  lines = [toys.row(f"{i}.png") for i in range(10)]
  folder = toys.write_source(
    tmp_path, lines, {f"{i}.png": b"%d" % i for i in range(10)}
  )
  pieces = sources_folder.pieces(wanted(folder, 4))
  assert [(p.index, p.count, p.length) for p in pieces] == [
    (0, 3, 3),
    (1, 3, 3),
    (2, 3, 4),
  ]
  images = [row.image for piece in pieces for row in piece.read()]
  assert images == [b"%d" % i for i in range(10)]


def test_a_changed_folder_has_other_inputs(tmp_path):
  folder = toys.write_source(tmp_path, [toys.row("a.png")], {"a.png": b"."})
  seen = [sources_folder.inputs(wanted(folder))]
  assert seen[0] == sources_folder.inputs(wanted(folder))
  (tmp_path / "b.png").write_bytes(b".")
  seen.append(sources_folder.inputs(wanted(folder)))
  toys.write_source(tmp_path, [toys.row("a.png", title="cap")])
  seen.append(sources_folder.inputs(wanted(folder)))
  (tmp_path / "metadata.jsonl").unlink()
  seen.append(sources_folder.inputs(wanted(folder)))
  assert all(seen[i] != seen[j] for i in range(4) for j in range(i))


def test_no_folder_no_images_and_no_rows_a_shard_are_refused(tmp_path):
  (tmp_path / "readme.txt").write_text("-")
  for folder, words in (
    (str(tmp_path), "holds no images"),
    (str(tmp_path / "none"), "no folder"),
    ("", "no folder ''"),
  ):
    with pytest.raises(ValueError, match=words):
      sources_folder.pieces(wanted(folder, 4))
  with pytest.raises(ValueError, match="records_per_shard=0"):
    sources_folder.pieces(wanted(tmp_path, 0))


CSV = """\
file_name,title,licenseurl,split,nsfw
a.png,"a hat,
and a cap",by,,0.5
b.png,b,by,validation,

c.png,too few
a.png,again,by,,
d.png,d,by,,
"""


def test_a_csv_says_what_a_list_of_json_says(tmp_path):
  for name in "abcd":
    (tmp_path / f"{name}.png").write_bytes(name.encode())
  (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + CSV.encode())
  asked = wanted(tmp_path, 1)._replace(keep=("nsfw",))
  found = collections.defaultdict(list)
  for piece in sources_folder.pieces(asked):
    found[piece.split] += list(piece.read())
  assert [getattr(e, "reason", "kept") for e in found["train"]] == [
    "kept",
    "line_broken",
    "duplicate",
    "kept",
    "not_listed",
  ]
  first, *_, last, _ = found["train"]
  assert first == rows.Row(
    where="metadata.csv:2 a.png",
    image=b"a",
    licence_url="by",
    title="a hat,\nand a cap",
    more={"nsfw": "0.5"},
  )
  assert (last.title, last.where) == ("d", "metadata.csv:8 d.png")
  assert found["train"][1].where == "metadata.csv:6"
  assert [row.title for row in found["validation"]] == ["b"]


def test_a_csv_that_is_not_utf8_or_never_ends_a_cell_is_rejected(tmp_path):
  (tmp_path / "a.png").write_bytes(b".")
  content = b"file_name,title\na.png,\xff\na.png," + b'"' + b"x\n" * 100_000
  (tmp_path / "metadata.csv").write_bytes(content)
  found = read(tmp_path)["train"]
  assert {entry.reason for entry in found[:-1]} == {"line_broken"}
  assert found[-1].reason in ("not_listed", "line_broken")


def test_text_beside_an_image_is_its_title(tmp_path):
  for name in ("a.png", "in/b.png", "c.png", "d.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b".")
  (tmp_path / "a.txt").write_text("ein Hütchen\n")
  (tmp_path / "in/b.txt").write_text("b")
  (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xfa")
  found = read(tmp_path)["train"]
  assert [getattr(e, "title", "") or e[0] for e in found] == [
    "ein Hütchen",
    "line_broken",
    "d.png",
    "b",
  ]


def test_two_lists_are_refused(tmp_path):
  for name in sources_folder.LISTS:
    (tmp_path / name).write_text("")
  with pytest.raises(ValueError, match=r"metadata\.jsonl and metadata\.csv"):
    sources_folder.pieces(wanted(tmp_path))
