# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import pathlib

import diffusers
import huggingface_hub
import numpy as np
import pytest
import tiny_tokenizers
import torch
import transformers

from cc_jax.data import tokenize, tokenizer_files
from cc_jax.models import published

TRAPS = tiny_tokenizers.TRAPS
PROMPTS = [*tiny_tokenizers.CAPTIONS, *TRAPS]
MAKERS = {
  "sd2": lambda folder: tiny_tokenizers.clip(folder, "!"),
  "sdxl": lambda folder: tiny_tokenizers.clip(folder, tokenize.END),
  "t5": tiny_tokenizers.t5,
}
# What either version of transformers opens, besides what 4 has its words in.
SETTINGS = ["special_tokens_map.json", "tokenizer_config.json"]
VOCABULARY = {
  "sd2": ["merges.txt", "vocab.json"],
  "sdxl": ["merges.txt", "vocab.json"],
  "t5": ["spiece.model"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  found = {}
  for name, make in MAKERS.items():
    found[name] = tmp_path_factory.mktemp(name) / "tokenizer"
    make(found[name])
  return found


def seen_by(encoder, call):
  """The ids and the mask with which `call` calls a text encoder."""
  seen = []
  hook = encoder.register_forward_pre_hook(
    lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
  )
  with torch.no_grad():
    call()
  hook.remove()
  ((ids,), kwargs), *_ = seen
  return ids.numpy(), kwargs.get("attention_mask")


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_ids_of_clip_are_those_of_diffusers_pipeline(folders, name):
  config = transformers.CLIPTextConfig(
    vocab_size=640, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
  )
  encoder = transformers.CLIPTextModel(config)
  parts = dict.fromkeys(("vae", "unet", "safety_checker", "feature_extractor"))
  theirs = transformers.CLIPTokenizer.from_pretrained(folders[name])
  pipeline = diffusers.StableDiffusionPipeline(
    **parts,
    text_encoder=encoder,
    tokenizer=theirs,
    scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    requires_safety_checker=False,
  )
  expected, _ = seen_by(
    encoder, lambda: pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
  )
  ours = tokenize.load(str(folders[name]))
  tokens, mask = tokenize.encode(ours, PROMPTS, 77)
  np.testing.assert_array_equal(tokens, expected)
  pad = {"sd2": 0, "sdxl": ours.eos_token_id}[name]
  assert ours.pad_token_id == pad
  assert (tokens[~mask] == pad).all()
  mark = tokenize.encode(ours, ["!"], 77)[0][0, 1]
  # The word "!", or the padding.
  assert mark == {"sd2": 0, "sdxl": 256}[name]


def test_ids_and_masks_of_t5_are_those_of_diffusers_pipeline(folders):
  config = transformers.T5Config(
    vocab_size=200, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=1
  )
  encoder = transformers.T5EncoderModel(config).eval()
  ours = tokenize.load(str(folders["t5"]))
  pipeline = diffusers.PixArtAlphaPipeline(
    tokenizer=ours,
    text_encoder=encoder,
    vae=None,
    transformer=None,
    scheduler=diffusers.DDIMScheduler(),
  )
  expected, valid = seen_by(
    encoder,
    lambda: pipeline.encode_prompt(
      PROMPTS, do_classifier_free_guidance=False, device="cpu"
    ),
  )
  # The pipeline does this before; the tokenizer does not.
  captions = [prompt.lower().strip() for prompt in PROMPTS]
  tokens, mask = tokenize.encode(ours, captions, 120)
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_array_equal(mask, valid.numpy().astype(bool))
  for row, seen in zip(tokens, mask, strict=True):
    assert row[seen.sum() - 1] == ours.eos_token_id == 1
    assert not row[seen.sum() :].any()
  assert mask[-2:].all(), "a long caption keeps its end"
  marked = TRAPS.index("<pad> in </s> the <extra_id_3> middle<|endoftext|>")
  assert len(ours) - 4 in tokens[marked - len(TRAPS)], "<extra_id_3>"


def test_a_sentencepiece_model_is_read_as_transformers_does(
  folders, monkeypatch
):
  slow = importlib.import_module("transformers.convert_slow_tokenizer")
  # It asks for the SentencePiece library, and then does without.
  monkeypatch.setattr(slow, "requires_backends", lambda *_: None)
  theirs = transformers.T5Tokenizer.from_pretrained(folders["t5"])
  ours = tokenize.load(str(folders["t5"]))
  assert type(ours) is type(theirs)
  assert tokenize.digest(ours) == tokenize.digest(theirs)
  assert ours.special_tokens_map == theirs.special_tokens_map
  assert ours.model_max_length == theirs.model_max_length == 512
  assert ours("ﬁve\uff01")["input_ids"] == ours("five!")["input_ids"]


def test_a_sentencepiece_model_opens_without_settings(folders, tmp_path):
  source = folders["t5"] / "spiece.model"
  (tmp_path / "spiece.model").write_bytes(source.read_bytes())
  bare = tokenize.load(str(tmp_path))
  assert tokenize.digest(bare) == tokenize.digest(
    tokenize.load(str(folders["t5"]))
  )


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_tokenizer_keeps_its_files_and_opens_in_4_and_5(
  folders, name, tmp_path
):
  source, saved = folders[name], tmp_path / "saved"
  tokenizer = tokenize.load(str(source))
  expected = tokenize.encode(tokenizer, PROMPTS, 40)
  digest = tokenize.digest(tokenizer)
  tokenize.save(tokenizer, str(saved))
  for path in source.iterdir():
    assert (saved / path.name).read_bytes() == path.read_bytes(), path.name
  names = {path.name for path in saved.iterdir()}
  assert names == {"tokenizer.json", *SETTINGS, *VOCABULARY[name]}
  vocabulary = {"4": VOCABULARY[name], "5": ["tokenizer.json"]}
  for version, files in vocabulary.items():
    part = tmp_path / version
    part.mkdir()
    for file in [*files, *SETTINGS]:
      (part / file).write_bytes((saved / file).read_bytes())
    again = tokenize.load(str(part))
    assert tokenize.digest(again) == digest, version
    np.testing.assert_array_equal(tokenize.encode(again, PROMPTS, 40), expected)
  theirs = transformers.AutoTokenizer.from_pretrained(saved)
  assert type(theirs).__name__ == {"t5": "T5Tokenizer"}.get(
    name, "CLIPTokenizer"
  )
  assert tokenize.digest(theirs) == digest
  np.testing.assert_array_equal(tokenize.encode(theirs, PROMPTS, 40), expected)


def test_a_tokenizer_saved_by_5_is_made_to_open_in_4(folders, tmp_path):
  tokenizer = tokenize.load(str(folders["t5"]))
  tokenizer.save_pretrained(tmp_path / "five")
  settings = json.loads((tmp_path / "five/tokenizer_config.json").read_text())
  assert isinstance(settings["extra_special_tokens"], list)
  tokenize.save(tokenize.load(str(tmp_path / "five")), str(tmp_path / "both"))
  settings = json.loads((tmp_path / "both/tokenizer_config.json").read_text())
  assert "extra_special_tokens" not in settings
  assert len(settings["additional_special_tokens"]) == 100
  assert settings["tokenizer_class"] == "T5Tokenizer"
  again = tokenize.load(str(tmp_path / "both"))
  assert tokenize.digest(again) == tokenize.digest(tokenizer)


def test_a_class_that_4_does_not_have_is_named_as_in_4(folders, tmp_path):
  tokenizer = tokenize.load(str(folders["t5"]))
  plain = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer.backend_tokenizer, **tiny_tokenizers.SPECIAL
  )
  tokenize.save(plain, str(tmp_path))
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
  again = tokenize.load(str(tmp_path))
  assert tokenize.digest(again) == tokenize.digest(tokenizer)


def test_a_changed_tokenizer_does_not_keep_the_files_it_came_with(
  folders, tmp_path
):
  tokenizer = tokenize.load(str(folders["sdxl"]))
  tokenizer.add_tokens(["<cat-toy>"])
  tokenize.save(tokenizer, str(tmp_path))
  again = tokenize.load(str(tmp_path))
  assert tokenize.digest(again) == tokenize.digest(tokenizer)
  assert again.convert_tokens_to_ids("<cat-toy>") == len(again) - 1


def test_a_tokenizer_may_be_saved_over_itself(folders, tmp_path):
  tokenizer_files.write(tokenize.load(str(folders["t5"])), str(tmp_path))
  before = tokenize.digest(tokenize.load(str(tmp_path)))
  tokenize.save(tokenize.load(str(tmp_path)), str(tmp_path))
  assert tokenize.digest(tokenize.load(str(tmp_path))) == before


def test_every_published_text_encoder_has_its_tokenizer():
  """By name and by repository, though the tables do not know each other."""
  encoders = {
    name.replace("/text", "/tokenizer"): entry
    for name, entry in published.TABLE.items()
    if entry.kind == "clip_text" and "/text" in name
  }
  encoders["t5-xxl/tokenizer"] = published.TABLE["t5-xxl"]
  for name, entry in encoders.items():
    repository, folder = tokenizer_files.HUB[name]
    assert repository == entry.repository, name
    assert folder == entry.subfolder.replace("text_encoder", "tokenizer"), name


@pytest.mark.parametrize(
  ("name", "subfolder", "repository", "folder"),
  [
    ("sdxl/tokenizer_2", "", "stabilityai/stable-diffusion-xl-base-1.0", 2),
    ("t5-xxl/tokenizer", "", "PixArt-alpha/PixArt-XL-2-1024-MS", 1),
    ("a/b", "tokenizer", "a/b", 1),
  ],
)
def test_a_row_is_fetched_by_its_files_and_opened(
  folders, tmp_path, monkeypatch, name, subfolder, repository, folder
):
  folder = {1: "tokenizer", 2: "tokenizer_2"}[folder]
  calls = []

  def fetch(repository, allow_patterns):
    calls.append(repository)
    (tmp_path / folder).mkdir(exist_ok=True)
    for path in folders["sd2"].iterdir():
      if f"{folder}/{path.name}" in allow_patterns:
        (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  found = tokenize.load(name, subfolder)
  assert calls == [repository]
  assert tokenize.digest(found) == tokenize.digest(
    tokenize.load(str(folders["sd2"]))
  )


def test_what_cannot_be_fetched_or_read_is_one_line(
  folders, tmp_path, monkeypatch
):
  data = (folders["t5"] / "spiece.model").read_bytes()
  vocabulary, unknown, _ = tokenizer_files.sentencepiece(data)
  assert unknown == 2
  assert vocabulary[1][0] == "</s>"
  pairs = tiny_tokenizers.spiece(vocabulary, b"", kind=2)
  cases = [
    ("sdxl/tokenizer_3", r"did you mean 'sdxl/tokenizer_\d'\?"),
    ("sd2/tokenizer", r"base/tokenizer: it is no folder .*allow the network$"),
  ]
  for number, (file, content, message) in enumerate(
    [
      ("spiece.model", data[:-300], "not a SentencePiece model"),
      ("spiece.model", pairs, "of kind 2 .* expected a unigram model"),
      ("spiece.model", b"", "with 0 pieces"),
      ("tokenizer.json", b"{}", "KeyError"),
      ("tokenizer.json", b"null", "AttributeError"),
      ("vocab.json", b"[", "expected tokenizer.json, vocab.json"),
      ("merges.txt", b"", "expected tokenizer.json, vocab.json"),
    ]
  ):
    folder = pathlib.Path(tmp_path / str(number))
    folder.mkdir()
    (folder / file).write_bytes(content)
    cases.append((str(folder), message))
  for name, message in cases:
    with pytest.raises(ValueError, match=message) as caught:
      tokenize.load(name)
    assert str(caught.value).startswith("no tokenizer in ")
    assert "\n" not in str(caught.value)
  monkeypatch.setattr(
    huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path)
  )
  with pytest.raises(ValueError, match="no such files there"):
    tokenize.load("sd2/tokenizer")
