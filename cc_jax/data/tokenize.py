# SPDX-License-Identifier: Apache-2.0
"""Captions -> token ids, through transformers' tokenizers.

Models read ids of one length: start, caption, end, padding (T5's have no
start). A tokenizer is a folder of files, which data/tokenizer_files.py opens
and writes, and which `train` makes for a tower that is trained from scratch.
The format is then CLIP's byte-pair encoding: arXiv 1508.07909 on the UTF-8
bytes of lower-case text, a word's last byte marked by "</w>", so that every
caption has ids and none is unknown.
"""

from collections.abc import Iterable, Sequence
import hashlib
import json
from typing import Any

from jaxtyping import Bool, Int32
import numpy as np
import tokenizers
from tokenizers import trainers
import transformers

from cc_jax.data import tokenizer_files

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"


def load(
  name: str, subfolder: str = ""
) -> transformers.PreTrainedTokenizerBase:
  """Opens a tokenizer.

  Args:
    name: a row of `tokenizer_files.HUB`, a folder on this machine, or a
      repository on the Hugging Face hub.
    subfolder: of the repository or folder, as "tokenizer" in diffusers' ones.

  Raises:
    ValueError: there is none, or it cannot be fetched.
  """
  return tokenizer_files.open(tokenizer_files.find(name, subfolder))


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


def lengths(
  tokenizer: transformers.PreTrainedTokenizerBase, captions: Sequence[str]
) -> list[int]:
  """Tokens that each caption has, none cut, with the start and the end."""
  if not captions:
    return []
  encoded = tokenizer(
    list(captions), padding=False, truncation=False, verbose=False
  )
  return [len(row) for row in encoded["input_ids"]]


def ids(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, int]:
  """What a text tower must know of its tokenizer: sizes and special ids."""
  return {
    "vocabulary": len(tokenizer),
    "bos": tokenizer.bos_token_id,
    "eos": tokenizer.eos_token_id,
    "pad": tokenizer.pad_token_id,
  }


def repad(tokens: Any, eos: Any, pad: Any) -> Any:
  """Ids with another padding: what follows the first `eos` becomes `pad`.

  SDXL's two towers share their ids but not their padding, so one array is
  stored for both. (Where the stored padding is the end token, an exclamation
  mark of a caption stays a word; diffusers, which encodes the caption twice,
  gives the second tower its padding id there.)

  Args:
    tokens: int32 [... T], of numpy or jax.
    eos: id of the end token, a number or an array of none
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
  """Writes files that transformers 4 and 5 open, and diffusers with them.

  The files of the folder that it came from stay as they are, and what is not
  among them is added.

  Args:
    tokenizer: from `load`.
    folder: where to.
    length: of captions in tokens, to which pipelines pad and cut; None for the
      tokenizer's own.
  """
  source = tokenizer.name_or_path or None
  if source is not None:
    try:
      same = digest(tokenizer_files.open(source)) == digest(tokenizer)
    except ValueError:
      same = False
    source = source if same else None
  tokenizer_files.write(tokenizer, folder, source, length)


def digest(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
  """A hash of all that decides ids: "sha256:" and 64 digits."""
  state = json.loads(tokenizer.backend_tokenizer.to_str())
  # What the last call of `encode` asked for.
  del state["truncation"], state["padding"]
  model = state["model"]
  if model["type"] == "Unigram":
    # The last bits of a score are lost on the way through tokenizer.json.
    model["vocab"] = [
      (piece, float(np.float32(s))) for piece, s in model["vocab"]
    ]
  state["pad_token_id"] = tokenizer.pad_token_id
  text = json.dumps(state, sort_keys=True)
  return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
