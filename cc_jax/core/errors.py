# SPDX-License-Identifier: Apache-2.0
"""Which errors are for a person who runs a stage, and in what words.

What we raise says what to do; the rest, out of a library or out of an
expression of ours that should not fail, is a bug and keeps its traceback, as
everything does with CC_JAX_TRACEBACK=1.
"""

import dis
import os
import pathlib

from cc_jax.core import files


def line(error: BaseException) -> str | None:
  """The one line that says what a person can put right; None for a bug."""
  if isinstance(error, FloatingPointError):
    return str(error)
  if os.environ.get("CC_JAX_TRACEBACK"):
    return None
  if isinstance(error, ValueError) and _ours(error):
    return str(error)
  if isinstance(error, OSError) and error.errno in files.REFUSALS:
    where = f"{error.filename}: " if error.filename else ""
    return (
      f"{where}{os.strerror(error.errno)}; {files.REFUSALS[error.errno]}; then "
      "the same command goes on"
    )
  return None


def _ours(error: ValueError) -> bool:
  """Whether a `raise` of this package or of a config raised it."""
  trace = error.__traceback__
  while trace.tb_next:
    trace = trace.tb_next
  code = trace.tb_frame.f_code
  # What C raises (np.concatenate([]), say) has our own line as its last frame.
  if dis.opname[code.co_code[trace.tb_lasti]] != "RAISE_VARARGS":
    return False
  file = pathlib.Path(code.co_filename).resolve()
  package = pathlib.Path(__file__).resolve().parents[1]
  return package in file.parents or file.parent.name == "configs"
