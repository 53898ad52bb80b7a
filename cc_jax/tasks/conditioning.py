# SPDX-License-Identifier: Apache-2.0
"""What a denoiser is told of an image, out of a record.

  tokens   ids of the caption, which text towers read in the step
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

from cc_jax.data import classes, empty_caption, tokenize
from cc_jax.models import families

NULLS = ("empty", "buffer")


class Reader(NamedTuple):
  """One way to read captions.

  Attributes:
    feature: of a record.
    weights: the hash of what must have made it, where it is known.
    ids: what `families.open` must know.
    read: a batch -> one `families.Captions` a text tower.
    drop: those and which rows -> the same with no caption in these rows.
    transform: of a record, on the host, or None.
  """

  feature: str
  weights: dict[str, str]
  ids: dict[str, dict[str, int]]
  read: Callable[[Mapping[str, Array]], list[families.Captions]]
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
    return of_classes(classes.load(names.classes))
  if config.encode.text_states:
    if family != "pixart" or config.latent_diffusion.train_text:
      raise ValueError(
        "encode.text_states is for pixart without latent_diffusion.train_text; "
        f"this is {family}"
      )
    return of_states(config.train.folders, config.encode.tokens)
  tokenizers = {
    name: tokenize.load(one)
    for name, one in families.tokenizers(family, names).items()
  }
  return of_tokens(tokenizers, config.encode.tokens)


def of_tokens(tokenizers: Mapping[str, Any], length: int) -> Reader:
  """Captions as ids of the first tokenizer.

  Args:
    tokenizers: of each text tower.
    length: of captions in tokens, T.
  """
  first = tokenizers["text"]
  empty = tokenize.encode(first, [""], length)[0][0]
  return Reader(
    feature="tokens",
    weights={"tokens": tokenize.digest(first)},
    ids={name: tokenize.ids(one) for name, one in tokenizers.items()},
    read=lambda batch: captions(batch["tokens"], tokenizers),
    drop=lambda read, dropped: captions(
      drop(read[0].tokens, empty, dropped), tokenizers
    ),
  )


def of_classes(found: classes.Classes) -> Reader:
  """Classes as captions of one token."""
  count = len(found.names)
  empty = np.array([count], np.int32)
  as_captions = lambda tokens: [families.Captions(tokens)]
  return Reader(
    feature="label",
    weights={"label": classes.digest(found)},
    ids={"transformer": {"classes": count}},
    read=lambda batch: as_captions(batch["label"][:, None]),
    drop=lambda read, dropped: as_captions(
      drop(read[0].tokens, empty, dropped)
    ),
  )


def of_states(folders: Any, length: int) -> Reader:
  """States of T5, padded to one length; the empty caption's from a file.

  Args:
    folders: of the run, one of which has the states.
    length: to which they are padded.

  Raises:
    ValueError: no states of the empty caption there.
  """
  empty, mask = empty_caption.load(folders, length)

  def read(batch):
    valid = batch["text_mask"]
    tokens = jnp.zeros(valid.shape, jnp.int32)
    return [families.Captions(tokens, valid, batch["text_states"])]

  def drop_states(read, dropped):
    (one,) = read
    rows = dropped[:, None]
    return [
      one._replace(
        mask=jnp.where(rows, jnp.asarray(mask), one.mask),
        states=jnp.where(
          rows[..., None], jnp.asarray(empty, one.states.dtype), one.states
        ),
      )
    ]

  def transform(record):
    states, valid = empty_caption.pad(record["text_states"], length)
    return {**record, "text_states": states, "text_mask": valid}

  return Reader("text_states", {}, {}, read, drop_states, transform)


def captions(
  tokens: Int[Array, "B T"], tokenizers: Mapping[str, Any]
) -> list[families.Captions]:
  """One array of ids as each text tower reads it, with its own padding."""
  eos = tokenizers["text"].eos_token_id
  ends = tokens == eos
  mask = ends.cumsum(axis=-1) <= ends
  return [
    families.Captions(tokenize.repad(tokens, eos, one.pad_token_id), mask)
    for one in tokenizers.values()
  ]


def drop(
  tokens: Int[Array, "B T"],
  empty: Int[Any, "T"],
  dropped: Bool[Array, "B"],
) -> Int[Array, "B T"]:
  """Puts the empty caption in place of some captions."""
  return jnp.where(dropped[:, None], jnp.asarray(empty), tokens)
