# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from cc_jax.data import tokenize

WORDS = "zero one two three four five six seven eight nine".split()
CAPTIONS = [
  template.format(word)
  for word in WORDS
  for template in ("a handwritten {}", "the digit {}, in ink.", "{}!")
]
TRAPS = [
  "",
  " \n\t ",
  "the digit\nseven\r\n",
  "Seven!!! SEVEN! seven",
  "👩‍🚀 on 🌕, naïve İstanbul ǅ",
  "a 1024x768 photo — №5 ½ 中文字幕 हिन्दी ‮right‬ to left",
  "zero\x00width\u200bjoined\ufeff \U0010ffff",
  "tail </w> ## don't we'll <|startoftext|>",
  "nine " * 500,
  "x" * 5000,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("tokenizer"))
  tokenize.train(CAPTIONS, folder, vocabulary=640, length=16)
  return folder


def files(folder):
  paths = sorted(pathlib.Path(folder).iterdir())
  return {path.name: path.read_bytes() for path in paths}


def test_captions_become_ids_of_one_length_with_a_mask(folder):
  tokenizer = tokenize.load(folder)
  start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  tokens, mask = tokenize.encode(tokenizer, [*CAPTIONS, *TRAPS], 16)
  assert (tokens.dtype, mask.dtype) == (np.int32, bool)
  assert tokens.shape == mask.shape == (len(CAPTIONS) + len(TRAPS), 16)
  assert (tokens[:, 0] == start).all()
  for row, valid in zip(tokens, mask, strict=True):
    count = valid.sum()
    assert valid[:count].all()
    assert row[count - 1] == end
    assert (row[count:] == tokenizer.pad_token_id).all()
  assert mask[len(CAPTIONS)].sum() == 2, "an empty caption is start and end"
  assert mask[-2:].all(), "a long caption fills its tokens"


def test_every_caption_comes_back_from_its_bytes(folder):
  tokenizer = tokenize.load(folder)
  normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
  marks = str.maketrans("", "", " ")
  for caption in TRAPS[:7]:
    ids = tokenizer(caption)["input_ids"][1:-1]
    assert tokenizer.eos_token_id not in ids, "an unknown byte"
    back = tokenizer.decode(ids).translate(marks)
    assert back == normalise(caption).translate(marks)


def test_a_long_caption_loses_its_last_words_and_keeps_its_end(folder):
  tokenizer = tokenize.load(folder)
  whole, _ = tokenize.encode(tokenizer, ["a handwritten seven"], 16)
  cut, mask = tokenize.encode(tokenizer, ["a handwritten seven"], 3)
  assert cut[0, :2].tolist() == whole[0, :2].tolist()
  assert cut[0, 2] == tokenizer.eos_token_id
  assert mask.all()


def test_the_same_captions_in_any_order_give_the_same_files(folder, tmp_path):
  for name, captions in (("again", CAPTIONS), ("turned", CAPTIONS[::-1])):
    tokenize.train(captions, str(tmp_path / name), vocabulary=640, length=16)
    assert files(tmp_path / name) == files(folder)


def test_pairs_of_equal_count_are_learnt_in_one_order(tmp_path):
  rng = np.random.default_rng(0)
  letters = [chr(code) for code in rng.choice(range(0x3B1, 0x3C9), 600)]
  words = ["".join(letters[i : i + 4]) for i in range(0, 600, 4)] * 2
  for name in ("one", "two", "three"):
    tokenize.train(words, str(tmp_path / name), vocabulary=1200)
  assert files(tmp_path / "one") == files(tmp_path / "two")
  assert files(tmp_path / "one") == files(tmp_path / "three")


def test_words_that_were_seen_are_single_tokens_and_the_ends_are_last(folder):
  vocab = json.loads((pathlib.Path(folder) / "vocab.json").read_text())
  assert {f"{word}</w>" for word in WORDS} <= vocab.keys()
  assert sorted(vocab.values()) == list(range(len(vocab)))
  assert len(vocab) <= 640
  assert vocab["!"] == 0
  assert vocab[tokenize.START] == len(vocab) - 2
  assert vocab[tokenize.END] == len(vocab) - 1


@pytest.mark.parametrize(
  "names",
  [
    ["tokenizer.json", "tokenizer_config.json"],
    ["vocab.json", "merges.txt", "tokenizer_config.json"],
  ],
  ids=["files of transformers 5", "files of transformers 4"],
)
def test_transformers_gives_our_ids_from_either_set_of_files(
  folder, tmp_path, names
):
  for name in names:
    (tmp_path / name).write_bytes((pathlib.Path(folder) / name).read_bytes())
  theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
  ours = tokenize.load(folder)
  assert theirs.model_max_length == 16
  expected, mask = tokenize.encode(ours, [*CAPTIONS, *TRAPS], 16)
  found = theirs(
    [*CAPTIONS, *TRAPS],
    padding="max_length",
    max_length=theirs.model_max_length,
    truncation=True,
    return_tensors="np",
  )
  np.testing.assert_array_equal(found["input_ids"], expected)
  np.testing.assert_array_equal(found["attention_mask"], mask)


def test_a_diffusers_pipeline_opens_the_folder_and_encodes_alike(
  folder, tmp_path
):
  config = transformers.CLIPTextConfig(
    vocab_size=640, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
  )
  parts = dict.fromkeys(("vae", "unet", "safety_checker", "feature_extractor"))
  pipeline = diffusers.StableDiffusionPipeline(
    **parts,
    text_encoder=transformers.CLIPTextModel(config),
    tokenizer=tokenize.load(folder),
    scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    requires_safety_checker=False,
  )
  pipeline.save_pretrained(tmp_path)
  again = tokenize.load(str(tmp_path), "tokenizer")
  expected = tokenize.encode(tokenize.load(folder), CAPTIONS, 16)
  found = tokenize.encode(again, CAPTIONS, 16)
  np.testing.assert_array_equal(found, expected)


def test_an_exclamation_mark_is_padding_where_the_files_say_so(
  folder, tmp_path
):
  for name, data in files(folder).items():
    (tmp_path / name).write_bytes(data)
  # These two repeat the setting and come before it.
  (tmp_path / "tokenizer.json").unlink()
  (tmp_path / "special_tokens_map.json").unlink()
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  text = json.dumps({**settings, "pad_token": "!"})
  (tmp_path / "tokenizer_config.json").write_text(text)
  padded = tokenize.load(str(tmp_path))
  assert padded.pad_token_id == 0
  tokens, mask = tokenize.encode(padded, ["seven!", "seven"], 6)
  assert tokens[0, 2] == 0
  assert mask.sum(axis=1).tolist() == [4, 3]
  plain, _ = tokenize.encode(tokenize.load(folder), ["seven!", "seven"], 6)
  assert plain[0, 2] == 256, "the word '!</w>'"
  # Without the mark in the caption one array serves both.
  end = padded.eos_token_id
  assert tokenize.repad(plain[1], end, 0).tolist() == tokens[1].tolist()


def test_a_saved_tokenizer_has_the_files_and_the_hash_it_came_with(
  folder, tmp_path
):
  tokenizer = tokenize.load(folder)
  before = tokenize.digest(tokenizer)
  tokenize.encode(tokenizer, CAPTIONS, 9)
  tokenize.save(tokenizer, str(tmp_path / "copy"))
  assert files(tmp_path / "copy") == files(folder)
  assert tokenize.digest(tokenizer) == before
  assert tokenize.digest(tokenize.load(str(tmp_path / "copy"))) == before
  (tmp_path / "copy" / "tokenizer.json").unlink()
  assert tokenize.digest(tokenize.load(str(tmp_path / "copy"))) == before
  other = tokenize.train(CAPTIONS[:9], str(tmp_path / "other"), length=16)
  assert tokenize.digest(other) != before


def test_repad_changes_what_follows_the_first_end():
  tokens = np.array(
    [[7, 1, 9, 9, 9], [7, 9, 0, 0, 0], [7, 1, 2, 3, 9]], np.int32
  )
  expected = [[7, 1, 9, 5, 5], [7, 9, 5, 5, 5], [7, 1, 2, 3, 9]]
  found = tokenize.repad(tokens, 9, 5)
  assert found.dtype == np.int32
  assert found.tolist() == expected
  jitted = jax.jit(lambda tokens: tokenize.repad(tokens, 9, 5))
  found = jitted(jnp.asarray(tokens))
  assert found.dtype == jnp.int32
  assert found.tolist() == expected


def test_no_captions_are_no_rows(folder):
  tokens, mask = tokenize.encode(tokenize.load(folder), [], 16)
  assert tokens.shape == mask.shape == (0, 16)


@pytest.mark.parametrize("length", [1, 17])
def test_a_length_that_does_not_suit_is_refused(folder, length):
  with pytest.raises(ValueError, match=rf"length={length} .* 2 to 16"):
    tokenize.encode(tokenize.load(folder), ["seven"], length)


def test_a_caption_that_is_no_unicode_is_named(folder):
  with pytest.raises(ValueError, match=r"caption 1 .* at character 2"):
    tokenize.encode(tokenize.load(folder), ["fine", "a \ud83d"], 16)


def test_a_missing_tokenizer_is_one_line(tmp_path):
  missing = str(tmp_path / "none")
  for name in (str(tmp_path), missing, "nobody/has-this", "sd2/tokenizer"):
    with pytest.raises(ValueError, match=r"no tokenizer in \S+: ") as caught:
      tokenize.load(name)
    assert "\n" not in str(caught.value)


def test_settings_of_training_that_cannot_be_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"vocabulary=500 .* at least 514"):
    tokenize.train(CAPTIONS, str(tmp_path), vocabulary=500)
  with pytest.raises(ValueError, match=r"length=1 .* at least 2"):
    tokenize.train(CAPTIONS, str(tmp_path), length=1)
