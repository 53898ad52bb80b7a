# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers in the files that published checkpoints come with."""

import json
import pathlib
import struct

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from cc_jax.data import tokenize

CAPTIONS = [
  template.format(word)
  for word in "zero one two three four five six seven eight nine".split()
  for template in ("a handwritten {}", "the digit {}, in ink.", "{}!")
]
TRAPS = [
  "",
  " \n\t ",
  "the digit\nseven\r\n",
  "Seven!!! SEVEN! seven",
  "!",
  "👩‍🚀 on 🌕, naïve İstanbul ǅ",
  "a 1024x768 photo — №5 ½ 中文字幕 हिन्दी ‮right‬ to left",
  "zero\x00width\u200bjoined\ufeff \U0010ffff",
  "tail </w> ## don't we'll <|startoftext|>",
  "<pad> in </s> the <extra_id_3> middle<|endoftext|>",
  "  two  spaces   ▁ ﬁve \uff01",
  "nine " * 500,
  "x" * 5000,
]
SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def clip(folder, pad, length=77):
  """The files of CLIP's tokenizer in SD2 ("!") and SD1 or SDXL's first."""
  path = pathlib.Path(folder)
  tokenize.train(CAPTIONS, str(path), vocabulary=640, length=length)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (path / name).unlink()

  def added(content):
    return dict(
      content=content,
      lstrip=False,
      normalized=True,
      rstrip=False,
      single_word=False,
    )

  start, end = added(tokenize.START), added(tokenize.END)
  kind = {"__type": "AddedToken"}
  settings = {
    "add_prefix_space": False,
    "bos_token": {**kind, **start},
    "do_lower_case": True,
    "eos_token": {**kind, **end},
    "errors": "replace",
    "model_max_length": length,
    "name_or_path": "somebody/else",
    # Also where the other file says "!", which counts.
    "pad_token": tokenize.END,
    "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": {**kind, **end},
  }
  special = {
    "bos_token": start,
    "eos_token": end,
    "pad_token": pad,
    "unk_token": end,
  }
  _write(path / "tokenizer_config.json", settings)
  _write(path / "special_tokens_map.json", special)


def t5(folder):
  """The files of PixArt's tokenizer: a SentencePiece model and settings."""
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  made = tokenizers.Tokenizer(models.Unigram())
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  made.train_from_iterator(
    CAPTIONS,
    trainers.UnigramTrainer(
      vocab_size=90,
      special_tokens=["<pad>", "</s>", "<unk>"],
      unk_token="<unk>",
      show_progress=False,
    ),
  )
  vocabulary = json.loads(made.to_str())["model"]["vocab"]
  characters = charsmap({"ﬁ": "fi", "\uff01": "!", "\n": " ", "№": "No"})
  (path / "spiece.model").write_bytes(spiece(vocabulary, characters))
  marks = [f"<extra_id_{mark}>" for mark in range(100)]
  settings = {
    **SPECIAL,
    "additional_special_tokens": marks,
    "clean_up_tokenization_spaces": True,
    "extra_ids": 100,
    "legacy": True,
    "model_max_length": 512,
    "sp_model_kwargs": {},
    "tokenizer_class": "T5Tokenizer",
  }
  _write(path / "tokenizer_config.json", settings)
  special = {**SPECIAL, "additional_special_tokens": marks}
  _write(path / "special_tokens_map.json", special)


def spiece(vocabulary, characters, kind=None):
  """A SentencePiece model: sentencepiece_model.proto, by hand."""
  data = b""
  for id, (piece, score) in enumerate(vocabulary):
    inner = _text(1, piece.encode()) + b"\x15" + struct.pack("<f", score)
    # Control, control and unknown; the rest are normal, which is left out.
    inner += bytes([0x18, (3, 3, 2)[id]]) if id < 3 else b""
    data += _text(1, inner)
  trainer = b"" if kind is None else bytes([0x18, kind])
  # unk_id=2 is field 40; sentencepiece also writes many that nobody reads.
  trainer += _text(2, b"bpe") + b"\xc0\x02\x02"
  return data + _text(2, trainer) + _text(3, _text(2, characters))


def charsmap(pairs):
  """A map of characters as SentencePiece stores it: a trie, then texts.

  The trie is a double array in the form of darts-clone; here each node has a
  block of its own for the bytes that may follow.
  """
  units, texts = [0] * 256, b""

  def node(place, label, prefix):
    nonlocal texts
    block = len(units)
    units.extend([0] * 256)
    rest = {
      key.encode()[len(prefix) :] for key in pairs if _starts(key, prefix)
    }
    units[place] = (place ^ block) << 10 | (b"" in rest) << 8 | label
    if b"" in rest:
      units[block] = 1 << 31 | len(texts)
      texts += pairs[prefix.decode()].encode() + b"\0"
    for byte in sorted({tail[0] for tail in rest if tail}):
      node(block ^ byte, byte, prefix + bytes([byte]))

  node(0, 0, b"")
  trie = struct.pack(f"<{len(units)}I", *units)
  return struct.pack("<I", len(trie)) + trie + texts


def _starts(key, prefix):
  return key.encode().startswith(prefix)


def _text(field, data):
  """A field of bytes in a protobuf message."""
  size, digits = len(data), b""
  while size > 127:
    digits += bytes([size & 127 | 128])
    size >>= 7
  return bytes([field << 3 | 2]) + digits + bytes([size]) + data


def _write(path, value):
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False))
