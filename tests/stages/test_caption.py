# SPDX-License-Identifier: Apache-2.0
"""cc-jax caption on the tiny catalogue, with each of its captioners."""

import json
import pathlib

import pyarrow as pa
from pyarrow import parquet
import pytest
import tiny
import tiny_captioners
import toy_pass
import toys

from cc_jax.data import aligned, shards, tokenize
from cc_jax.models import hub
from cc_jax.stages import caption, encode


@pytest.fixture(scope="module")
def network(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("blip2"))
  tiny_captioners.save("blip2", folder)
  return folder


def config(data, folder, **fields):
  fields = {
    "caption__folder": f"{folder}/captions",
    "caption__vocabulary": 0,
    "caption__name": "x",
  } | fields
  return tiny.config(data, folder, **fields)


def by_network(data, folder, network, **fields):
  fields = {
    "caption__captioner": "blip2",
    "caption__model": network,
    "caption__batch_size": 8,
    "caption__length": 6,
    "caption__dtype": "float32",
    "caption__flags__min_words": 2,
  } | fields
  return config(data, folder, **fields)


def records(made):
  """Records of the catalogue with captions, and the captions' folder."""
  dataset = shards.open(made.caption.folder)
  both = [shards.open(made.caption.images), dataset]
  return [
    record
    for split, lengths in dataset.splits.items()
    for shard in range(len(lengths))
    for record in aligned.read(both, split, shard)
  ], dataset


def test_a_network_captions_a_catalogue(data, network, tmp_path, capfd):
  made = by_network(data, tmp_path, network)
  counts = caption.main(made, str(tmp_path))
  found, dataset = records(made)
  assert counts.kept == len(found) == tiny.RECORDS + tiny.VALIDATION
  assert all(isinstance(record["caption_x"], str) for record in found)
  assert len({record["caption_x"] for record in found}) > 1
  flags = [flag for record in found for flag in record["flags_x"]]
  expected = {name: flags.count(name) for name in sorted(set(flags))}
  assert counts.flags == expected == dataset.provenance["counts"]["flags"]
  *others, shown = capfd.readouterr().out.splitlines()
  assert all(f"{n} {name}" in shown for name, n in expected.items())
  assert " limits; of 1,000 images: read " in others[-1]
  noted = json.loads((tmp_path / "caption.seconds.json").read_text())
  assert (noted["stage"], noted["images"]) == ("caption", counts.read)
  assert min(noted["seconds"].values()) >= 0 < max(noted["seconds"].values())
  provenance = dataset.provenance
  assert provenance["weights"] == {"caption_x": hub.load(network, "blip2").hash}
  recipe = provenance["config"]
  assert recipe["tokenizer"].startswith("sha256:")
  del recipe["tokenizer"]
  assert recipe == {
    "method": "blip2",
    "kind": "blip2",
    "prompt": "",
    "resize": "squash",
    "middle": 0,
    "decoding": "greedy",
    "length": 6,
    "min_length": 0,
    "dtype": "float32",
    "size": 28,
    "flags": {"min_words": 2, "tokenizer": "", "tokens": 77},
  }


def test_a_pass_that_was_stopped_ends_with_the_same_bytes(
  data, network, tmp_path, monkeypatch
):
  drawn = dict(caption__decoding="nucleus", caption__temperature=2.0)
  straight = by_network(data, tmp_path / "a", network, **drawn)
  caption.main(straight, str(tmp_path / "a"))
  made = by_network(data, tmp_path / "b", network, **drawn)
  with (
    toy_pass.stopped(monkeypatch, shards=1),
    pytest.raises(KeyboardInterrupt),
  ):
    caption.main(made, str(tmp_path / "b"))
  counts = caption.main(made, str(tmp_path / "b"))
  assert counts.skipped == 1
  assert counts.complete
  contents = toy_pass.contents
  assert contents(made.caption.folder) == contents(straight.caption.folder)


def test_captions_of_others_are_joined(data, tmp_path):
  images = shards.open(f"{data}/catalogue")
  keys = [record["key"] for record in shards.read(images, "train", 0)]
  table = pa.table(
    {"sha": keys[1:], "text": [f"this is {k}" for k in keys[1:]]}
  )
  parquet.write_table(table, tmp_path / "others.parquet")
  made = config(
    data,
    tmp_path,
    caption__captioner="join",
    caption__join__file=str(tmp_path / "others.parquet"),
    caption__join__by="key",
    caption__join__column="sha",
    caption__join__caption="text",
  )
  counts = caption.main(made, str(tmp_path))
  found, dataset = records(made)
  for record in found:
    there = record["key"] in keys[1:]
    assert record["caption_x"] == there * f"this is {record['key']}"
    assert record["flags_x"] == ([] if there else ["no_caption"])
  missing = len(found) - len(keys) + 1
  assert counts.flags == {"no_caption": missing}
  assert dataset.provenance["config"]["captions"].startswith("sha256:")


def test_what_a_killed_run_left_of_a_tokenizer_is_swept(data, tmp_path):
  made = config(
    data,
    tmp_path,
    caption__vocabulary=514,
    model__tokenizer=f"{tmp_path}/tokenizer",
  )
  # The first run makes it, the second finds it there.
  for _ in range(2):
    left = tmp_path / ".tokenizer.a1b2.tmp/tokenizer"
    left.mkdir(parents=True)
    (left / "vocab.json").write_text("{")
    (tmp_path / ".mine.tmp").mkdir(exist_ok=True)
    caption.main(made, str(tmp_path))
    hidden = [x.name for x in tmp_path.iterdir() if x.name.startswith(".")]
    assert hidden == [".mine.tmp"]
  assert tokenize.load(f"{tmp_path}/tokenizer")


def test_titles_are_cleaned_and_captions_judged(data, tmp_path):
  made = config(
    data,
    tmp_path,
    caption__clean=True,
    caption__templates=("{title}", "a photo of the colour {title}"),
    caption__flags__tokenizer=f"{data}/tokenizer",
    caption__flags__tokens=6,
  )
  caption.main(made, str(tmp_path))
  found, _ = records(made)
  tokenizer = tokenize.load(f"{data}/tokenizer")
  for record in found:
    short = record["caption_x"] == record["title"]
    expected = ["no_sentence"] if short else []
    tokens = tokenizer(record["caption_x"])["input_ids"]
    expected += ["too_long"] * (len(tokens) > 6)
    assert record["flags_x"] == expected
  assert {len(record["flags_x"]) for record in found} >= {1, 2}


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config.caption.captioner=blip"], "caption.captioner='blip'; expected"),
    (
      ["--config.caption.captioner=blip2", "--config.caption.model=nowhere"],
      "no blip2 'nowhere'",
    ),
    (
      ["--config.caption.captioner=join", "--config.caption.join.file=x.csv"],
      "no file 'x.csv'",
    ),
  ],
)
def test_what_cannot_caption_is_one_line(data, tmp_path, words, message, capfd):
  words = [*words, f"--config.caption.folder={tmp_path}/captions"]
  assert toys.run("caption", data, str(tmp_path), *words) == 2
  error = capfd.readouterr().err.strip()
  assert message in error
  assert "\n" not in error
  assert not pathlib.Path(tmp_path / "captions").exists()


def test_encode_leaves_out_captions_with_a_flag(data, tmp_path):
  made = config(
    data,
    tmp_path,
    caption__templates=("{title}", "a photo of the colour {title}"),
    encode__captions=f"{tmp_path}/captions",
    encode__caption="caption_x",
    encode__folder=f"{tmp_path}/latents",
    encode__refuse=("no_sentence",),
  )
  flagged = caption.main(made, str(tmp_path)).flags["no_sentence"]
  counts = encode.main(made, str(tmp_path))
  assert counts.rejected == {"caption_no_sentence": flagged}
  assert 0 < counts.kept == counts.read - flagged
