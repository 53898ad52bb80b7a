# SPDX-License-Identifier: Apache-2.0
"""T5's states of the empty caption, kept beside those of all captions.

    empty_caption.npz   states: float32 [S D], of its valid tokens

`cc-jax encode` writes it where it stores `text_states`, so that training drops
captions for guidance, in the way of diffusers, without T5.
"""

from collections.abc import Sequence
import io
import os
from typing import Any

from jaxtyping import Bool, Float, Shaped
import numpy as np

from cc_jax.core import files

FILE = "empty_caption.npz"


def write(folder: str, states: Float[Any, "S D"]) -> None:
  """Writes the file of a dataset folder."""
  content = io.BytesIO()
  np.savez(content, states=np.asarray(states, np.float32))
  files.write_atomic(os.path.join(folder, FILE), content.getvalue())


def load(
  folders: Sequence[str], length: int
) -> tuple[Float[np.ndarray, "T D"], Bool[np.ndarray, "T"]]:
  """States padded to one length, and where they are no padding.

  Args:
    folders: aligned ones, the first of which that has the file is read.
    length: T.

  Raises:
    ValueError: none has it.
  """
  for folder in folders:
    path = files.path(os.path.join(folder, FILE))
    if path.exists():
      return pad(np.load(io.BytesIO(path.read_bytes()))["states"], length)
  raise ValueError(
    f"no {FILE} in {', '.join(folders)}; run `cc-jax encode` with "
    "encode.text_states"
  )


def pad(
  states: Shaped[np.ndarray, "S D"], length: int
) -> tuple[Shaped[np.ndarray, "T D"], Bool[np.ndarray, "T"]]:
  """States with zeros behind them, and where they are none.

  Raises:
    ValueError: there are more than `length`.
  """
  count = len(states)
  if count > length:
    raise ValueError(
      f"text states of {count} tokens; set encode.tokens to what they were "
      f"encoded with, not {length}"
    )
  padded = np.zeros((length, states.shape[1]), states.dtype)
  padded[:count] = states
  return padded, np.arange(length) < count
