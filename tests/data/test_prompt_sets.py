# SPDX-License-Identifier: Apache-2.0
import json
import types

import huggingface_hub
import pyarrow as pa
from pyarrow import parquet
import pytest
import tensorflow_datasets as tfds
import tiny
import toys

from cc_jax.data import prompt_sets


@pytest.mark.parametrize(
  ("file", "text"),
  [
    ("a.txt", "a red hat\n\n  two \n"),
    ("a.jsonl", '{"prompt": "a red hat", "tag": "x"}\n{"caption": "two"}\n'),
    ("a.json", '["a red hat", {"text": "two"}]'),
    ("a.json", '{"0": {"prompt": "a red hat"}, "1": {"prompt": "two"}}'),
    ("a.csv", 'Category,Prompt\nx,a red hat\ny,"two"\n'),
    ("a.tsv", "Prompt\tCategory\na red hat\tx\ntwo\ty\n"),
  ],
)
def test_prompts_come_from_files_of_many_kinds(tmp_path, file, text):
  (tmp_path / file).write_text(text)
  found = prompt_sets.open(str(tmp_path / file))
  assert found.texts == ("a red hat", "two")
  assert len(found.names) == len(found.rows) == 2
  assert found.image is None
  assert prompt_sets.first(found, 1).texts == ("a red hat",)
  assert prompt_sets.first(found, 0) == found
  with pytest.raises(ValueError, match=r"has prompts without images"):
    prompt_sets.pictures(found)


@pytest.mark.parametrize(
  ("file", "data", "words"),
  [
    ("a.txt", b"", "has neither"),
    ("a.txt", b"\xff\xfe", "is not UTF-8"),
    ("a.json", b"{", "is not JSON"),
    ("a.jsonl", b'{"prompt": "x"}\n{"word": "y"}', "prompt 1: no text in"),
    ("a.csv", b"Prompt\n\n", "has neither"),
    ("a.csv", b"Word\nx\n", "prompt 0: no text"),
  ],
)
def test_files_that_hold_no_prompts_are_refused(tmp_path, file, data, words):
  (tmp_path / file).write_bytes(data)
  with pytest.raises(ValueError, match=words):
    prompt_sets.open(str(tmp_path / file))


def test_quotes_in_a_table_of_tabs_are_text(tmp_path):
  """PartiPrompts has some that are never closed."""
  (tmp_path / "a.tsv").write_text('Prompt\tNote\na sign "hello\tx\n"two\ty\n')
  found = prompt_sets.open(str(tmp_path / "a.tsv"))
  assert found.texts == ('a sign "hello', '"two')
  assert found.rows[1]["Note"] == "y"


def test_folders_hold_texts_or_images(tmp_path):
  (tmp_path / "texts").mkdir()
  for name in ("b", "a"):
    (tmp_path / "texts" / f"{name}.txt").write_text(f"a photo of {name}\n")
  found = prompt_sets.open(str(tmp_path / "texts"))
  assert found.names == ("a", "b")
  assert found.texts == ("a photo of a", "a photo of b")
  (tmp_path / "images" / "inner").mkdir(parents=True)
  (tmp_path / "images" / "inner" / "1.png").write_bytes(toys.picture(1))
  (tmp_path / "images" / "2.png").write_bytes(toys.picture(2))
  found = prompt_sets.open(str(tmp_path / "images"))
  assert found.names == ("2", "inner/1")
  assert found.image(1) == toys.picture(1)
  with pytest.raises(ValueError, match="has images without prompts"):
    prompt_sets.prompts(found)
  (tmp_path / "images" / "2.png").write_bytes(toys.picture(3))
  changed = prompt_sets.open(str(tmp_path / "images"))
  assert changed.identity != found.identity


def test_a_dataset_has_images_or_captions(tmp_path_factory):
  data = tiny.shared(tmp_path_factory)
  real = prompt_sets.open(f"{data}/catalogue", "validation")
  captions = prompt_sets.open(f"{data}/captions", "validation")
  assert len(real) == len(captions) == tiny.VALIDATION
  assert real.names == captions.names
  assert captions.texts[:2] == ("a photo of red", "a photo of green")
  assert captions.image is None
  assert real.image(0).startswith(b"\x89PNG")


def test_parquet_files_have_images_with_their_first_captions(tmp_path):
  pictures = [{"bytes": toys.picture(i), "path": f"{i}.png"} for i in range(3)]
  texts = [[f"first {i}", f"second {i}"] for i in range(3)]
  table = pa.table({"image": pictures, "caption": texts})
  parquet.write_table(table.slice(0, 2), tmp_path / "0.parquet")
  parquet.write_table(table.slice(2), tmp_path / "1.parquet")
  found = prompt_sets.open(str(tmp_path))
  assert found.texts == ("first 0", "first 1", "first 2")
  assert [found.image(i) for i in range(3)] == [p["bytes"] for p in pictures]
  parquet.write_table(pa.table({"x": [1]}), tmp_path / "0.parquet")
  with pytest.raises(ValueError, match=r"has neither prompts .* but x"):
    prompt_sets.open(str(tmp_path))


def test_coco_is_drawn_from_all_of_its_validation(monkeypatch):
  rows = {
    split: [
      {
        "image": b"%d" % (10 * i + place),
        "image/id": 10 * i + place,
        "captions": {"text": [b" one %d " % (10 * i + place), b"two"]},
      }
      for i in range(9)
    ]
    for place, split in enumerate(prompt_sets.COCO_SPLITS)
  }

  def read(split, decoders):
    assert set(decoders) == {"image"}
    return rows[split]

  info = types.SimpleNamespace(
    file_format=tfds.core.FileFormat.ARRAY_RECORD,
    splits=rows,
    full_name="coco_captions/2014:1.1.0",
  )
  builder = types.SimpleNamespace(info=info, as_data_source=read)
  monkeypatch.setattr(tfds, "builder", lambda name: builder)
  found = prompt_sets.coco(count=20)
  numbers = [int(name) for name in found.names]
  assert len(set(numbers)) == 20
  assert {number % 10 for number in numbers} == {0, 1, 2}
  assert found.texts[3] == f"one {numbers[3]}"
  assert found.image(3) == b"%d" % numbers[3]
  assert prompt_sets.coco(count=20).identity == found.identity
  assert prompt_sets.coco(count=20, seed=1).identity != found.identity
  with pytest.raises(ValueError, match=r"30 images of coco_captions.*: 27"):
    prompt_sets.coco(count=30)


def test_names_are_fetched_or_say_why_not(monkeypatch, tmp_path):
  def fetch(repository, file, repo_type):
    assert (repository, repo_type) == ("nateraw/parti-prompts", "dataset")
    (tmp_path / file).write_text("Prompt\tCategory\na hat\tArts\n")
    return str(tmp_path / file)

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
  found = prompt_sets.open("parti")
  assert found.texts == ("a hat",)
  assert json.dumps(found.rows[0]) == '{"Prompt": "a hat", "Category": "Arts"}'

  def offline(*arguments, **options):
    raise OSError("no network\nat all")

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
  with pytest.raises(
    ValueError, match=r"cannot fetch PartiPrompts.tsv .*: no n"
  ):
    prompt_sets.open("parti")
