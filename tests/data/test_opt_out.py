# SPDX-License-Identifier: Apache-2.0
import pytest

from cc_jax.data import opt_out

KEY = "0123456789abcdef" * 4
TEXTS = {
  "list.txt": f"{KEY.upper()}\n\n 17 \nhttps://www.E.org/a/B/\nÄnn  Ö\n",
  "list.csv": (
    "author,other,page_url,photo_id,key\n"
    f"änn Ö,x,,,\n,,http://e.org/a/B,17,\n,,,,{KEY}\n"
  ),
  "list.jsonl": (
    f'{{"key": "{KEY}", "author": null}}\n\n{{"photo_id": 17}}\n'
    '{"page_url": "http://e.org/a/B"}\n{"author": "Änn Ö", "more": 1}\n'
  ),
}


@pytest.fixture(params=TEXTS)
def listed(request, tmp_path):
  (tmp_path / request.param).write_text(TEXTS[request.param])
  return opt_out.read(str(tmp_path / request.param))


def test_every_kind_of_entry_is_found_in_every_kind_of_list(listed):
  assert len(listed) == 4
  assert len(listed.digest) == 64
  for fields, why in (
    ({"key": KEY}, f"key {KEY}"),
    ({"photo_id": "17"}, "photo_id 17"),
    ({"page_url": "http://e.org/a/B"}, "page_url http://e.org/a/B"),
    ({"page_url": "https://www.e.org/a/B/"}, "page_url https://www.e.org/a/B/"),
    ({"author": "ÄNN Ö"}, "author ÄNN Ö"),
    ({"author": "Bob", "photo_id": "17"}, "photo_id 17"),
  ):
    assert opt_out.match(listed, fields) == why


def test_what_is_not_listed_stays(listed):
  for fields in (
    {},
    {"key": "", "photo_id": "", "page_url": "", "author": ""},
    {"photo_id": "170", "author": "17"},
    {"page_url": "http://e.org/a/b", "author": "Änn"},
  ):
    assert opt_out.match(listed, fields) == ""


def test_no_list_names_nobody():
  assert opt_out.read("") == opt_out.NONE
  assert opt_out.match(opt_out.NONE, {"author": "Ann"}) == ""


@pytest.mark.parametrize(
  ("name", "data", "words"),
  [
    ("a.xlsx", b"", "expected one of .txt .csv .jsonl"),
    ("a.txt", b"\xff\xfe\xfa", "is not UTF-8 text"),
    ("a.csv", b"author\nAnn\na,b\n", "line 3 of .* cannot be read"),
    ("a.csv", b'author\n"Ann\n', "cannot be read"),
    ("a.csv", b"name\nAnn\n", "has none of key, photo_id, page_url, author"),
    ("a.jsonl", b'{"author": "Ann"}\n{half\n', "line 2 of .* cannot be read"),
    ("a.jsonl", b"17\n", "line 1 of .* cannot be read"),
  ],
)
def test_a_list_is_not_honoured_by_halves(name, data, words, tmp_path):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=words):
    opt_out.read(str(tmp_path / name))


def test_a_list_that_is_not_there_is_refused():
  with pytest.raises(ValueError, match=r"no opt-out list 'none\.txt'"):
    opt_out.read("none.txt")
