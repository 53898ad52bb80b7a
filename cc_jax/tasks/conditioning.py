# SPDX-License-Identifier: Apache-2.0
"""What a denoiser is told of an image, out of a record.

  tokens   ids of the caption, which text towers read in the step; of the
           caption itself, where a record has not been encoded
  states   of T5 for the caption, stored by `cc-jax encode` for valid tokens
           only: its encoder would cost more than the step (PixArt-alpha)
  label    the number of a class (DiT)

Each of them knows what stands for no caption, which is put in place of some,
drawn anew each time a record is read, so that one network learns both sides of
guidance (arXiv 2207.12598, §3.2).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import ml_collections
import numpy as np

from cc_jax.core import files
from cc_jax.data import classes, clean_caption, empty_caption, tokenize
from cc_jax.models import families, hub, unread

NULLS = ("empty", "buffer")


class Words(NamedTuple):
  """What must be known of tokenizers.

  Attributes:
    empty: ids of the empty caption.
    eos: id of the end token.
    pads: id of the padding of each text tower.
  """

  empty: Int[Any, "T"]
  eos: Int[Any, ""]
  pads: tuple[Int[Any, ""], ...]


class Reader(NamedTuple):
  """One way to read captions.

  Attributes:
    feature: of a record.
    weights: the hash of what must have made it, where it is known.
    ids: what `families.open` must know.
    known: arrays that `read` and `drop` are given, and no constants of a
      program, which so serves any tokenizer.
    read: they and a batch -> one `families.Captions` a text tower.
    drop: they, captions and which rows -> no caption in these rows.
    transform: of a record, on the host, or None.
  """

  feature: str
  weights: dict[str, str]
  ids: dict[str, dict[str, int]]
  known: Any
  read: Callable[[Any, Mapping[str, Array]], list[families.Captions]]
  drop: Callable[..., list[families.Captions]]
  transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def make(config: ml_collections.ConfigDict, family: str) -> Reader:
  """The reader of a model's captions.

  Raises:
    ValueError: no tokenizer, classes or stored states, or a null caption that
      the family does not have.
  """
  names = config.model
  if names.null_caption not in NULLS:
    raise ValueError(
      f"model.null_caption={names.null_caption!r}; expected {', '.join(NULLS)}"
    )
  if names.null_caption == "buffer" and family != "pixart":
    raise ValueError(
      f"model.null_caption='buffer' is for pixart; a {family} model reads the "
      "empty caption"
    )
  if family == "dit":
    if planned(names.classes):
      count = hub.config(names.transformer, "dit").classes
      return of_classes(classes.Classes(tuple(map(str, range(count)))))
    return of_classes(classes.load(names.classes))
  if config.encode.text_states:
    if family != "pixart" or config.latent_diffusion.train_text:
      raise ValueError(
        "encode.text_states is for pixart without latent_diffusion.train_text; "
        f"this is {family}"
      )
    length, folders = config.encode.tokens, config.train.folders
    if all(planned(folder) for folder in folders):
      width = hub.config(names.transformer, "pixart").caption_width
      none = np.zeros((length, width), np.float32), np.zeros(length, bool)
      return of_states(none, length)
    return of_states(empty_caption.load(folders, length), length)
  tokenizers = {
    name: None if planned(one) else tokenize.load(one)
    for name, one in families.tokenizers(family, names).items()
  }
  if config.latent_diffusion.from_images:
    return of_captions(tokenizers, config.encode, names.clean)
  return of_tokens(tokenizers, config.encode.tokens)


def planned(path: str) -> bool:
  """Whether a run is only planned, and this file of it is not here."""
  return unread.are_weights() and not files.path(path).exists()


def of_tokens(tokenizers: Mapping[str, Any], length: int) -> Reader:
  """Captions as ids of the first tokenizer.

  Args:
    tokenizers: of each text tower; None where a run is planned.
    length: of captions in tokens, T.
  """
  first = tokenizers["text"]
  return Reader(
    feature="tokens",
    weights={"tokens": first and tokenize.digest(first)},
    ids={
      name: tokenize.ids(one) if one else {} for name, one in tokenizers.items()
    },
    known=words_of(tokenizers, length),
    read=lambda words, batch: captions(batch["tokens"], words),
    drop=lambda words, read, dropped: captions(
      drop(read[0].tokens, words.empty, dropped), words
    ),
  )


def of_captions(
  tokenizers: Mapping[str, Any],
  options: ml_collections.ConfigDict,
  clean: bool,
) -> Reader:
  """The same of captions as text: `cc-jax encode` has not been there.

  Args:
    tokenizers: as of `of_tokens`.
    options: `config.encode`, of which the caption's name and length are read.
    clean: by T5's rules, before they are tokenised.
  """
  first, length = tokenizers["text"], options.tokens

  def transform(record):
    caption = record[options.caption]
    caption = clean_caption.clean(caption) if clean else caption
    if first is None:
      ids = np.zeros(length, np.int32)
    else:
      ids = np.asarray(tokenize.encode(first, [caption], length)[0][0])
    rest = {k: v for k, v in record.items() if k != options.caption}
    return {**rest, "tokens": ids}

  return of_tokens(tokenizers, length)._replace(
    feature=options.caption, weights={}, transform=transform
  )


def words_of(tokenizers: Mapping[str, Any], length: int) -> Words:
  """What must be known of them; of none, arrays of the same shapes."""
  first = tokenizers["text"]
  if first is None:
    zero = np.int32(0)
    return Words(np.zeros(length, np.int32), zero, (zero,) * len(tokenizers))
  return Words(
    tokenize.encode(first, [""], length)[0][0],
    np.int32(first.eos_token_id),
    tuple(np.int32(one.pad_token_id) for one in tokenizers.values()),
  )


def of_classes(found: classes.Classes) -> Reader:
  """Classes as captions of one token."""
  count = len(found.names)
  as_captions = lambda tokens: [families.Captions(tokens)]
  return Reader(
    feature="label",
    weights={"label": classes.digest(found)},
    ids={"transformer": {"classes": count}},
    known=np.array([count], np.int32),
    read=lambda _, batch: as_captions(batch["label"][:, None]),
    drop=lambda empty, read, dropped: as_captions(
      drop(read[0].tokens, empty, dropped)
    ),
  )


def of_states(empty: Any, length: int) -> Reader:
  """States of T5, padded to one length.

  Args:
    empty: those of the empty caption and their mask, of that length.
    length: to which they are padded.
  """

  def read(_, batch):
    valid = batch["text_mask"]
    tokens = jnp.zeros(valid.shape, jnp.int32)
    return [families.Captions(tokens, valid, batch["text_states"])]

  def drop_states(empty, read, dropped):
    (states, mask), (one,) = empty, read
    rows = dropped[:, None]
    return [
      one._replace(
        mask=jnp.where(rows, jnp.asarray(mask), one.mask),
        states=jnp.where(
          rows[..., None], jnp.asarray(states, one.states.dtype), one.states
        ),
      )
    ]

  def transform(record):
    states, valid = empty_caption.pad(record["text_states"], length)
    return {**record, "text_states": states, "text_mask": valid}

  return Reader("text_states", {}, {}, empty, read, drop_states, transform)


def captions(
  tokens: Int[Array, "B T"], words: Words
) -> list[families.Captions]:
  """One array of ids as each text tower reads it, with its own padding."""
  ends = tokens == words.eos
  mask = ends.cumsum(axis=-1) <= ends
  return [
    families.Captions(tokenize.repad(tokens, words.eos, pad), mask)
    for pad in words.pads
  ]


def drop(
  tokens: Int[Array, "B T"],
  empty: Int[Any, "T"],
  dropped: Bool[Array, "B"],
) -> Int[Array, "B T"]:
  """Puts the empty caption in place of some captions."""
  return jnp.where(dropped[:, None], jnp.asarray(empty), tokens)
