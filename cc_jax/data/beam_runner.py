# SPDX-License-Identifier: Apache-2.0
"""A pass on Apache Beam, for sources that one machine does not get through.

Beam only says which worker makes which shard: the shards, the notes on them and
what is written when all are done come from data/passes.py, so the folder is
byte for byte what one process makes, and either goes on with what the other
began. It needs the extra `beam`; launch/constraints-beam.txt has the versions.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import importlib.util
import logging
from logging import handlers
import pickle
import re
import sys

from cc_jax.core import errors
from cc_jax.data import passes

# Around what a worker says to a person: Beam puts tracebacks around that.
_MARK = "[[cc-jax]]"
_SAID = re.escape(_MARK) + "(.*?)" + re.escape(_MARK)


def make(options: Sequence[str]) -> passes.Runner:
  """A runner for `passes.run`.

  Args:
    options: of the pipeline, as on Beam's command line: "--runner=FlinkRunner",
      "--direct_num_workers=8". Beam's own default is its runner on this
      machine.

  Raises:
    ValueError: Beam is not installed.
  """
  if importlib.util.find_spec("apache_beam") is None:
    raise ValueError(
      "Apache Beam is not installed; run `pip install --constraint "
      "launch/constraints-beam.txt 'cc_jax[beam]'`, best in a virtual "
      "environment of its own"
    )
  options = list(options)

  def run(
    one: Callable[[passes.Piece], None], pieces: Sequence[passes.Piece]
  ) -> None:
    # Late: it takes seconds, and who does not ask for it need not have it.
    import apache_beam as beam
    from apache_beam.options import pipeline_options

    made = pipeline_options.PipelineOptions(options)
    try:
      with _held(), beam.Pipeline(options=made) as pipeline:
        _ = (
          pipeline
          # As bytes, since Beam has ideas of its own about named tuples.
          | "Pieces" >> beam.Create([pickle.dumps(piece) for piece in pieces])
          # Else one worker would make all that one Create has made.
          | "Spread" >> beam.Reshuffle()
          | "Shards" >> beam.Map(_make, one)
        )
    except Exception as error:
      if said := _said(error):
        raise ValueError(said) from None
      raise

  return run


def _said(error: Exception) -> str:
  """What a worker said to a person; "" where it did not."""
  found = re.search(_SAID, str(error), re.DOTALL)
  return found[1] if found else ""


@contextlib.contextmanager
def _held() -> Iterator[None]:
  """Shows what is logged when all is done, and not beside one line of ours."""
  root, shown = logging.getLogger(), logging.StreamHandler()
  held = handlers.MemoryHandler(1000, flushLevel=sys.maxsize, target=shown)
  before, root.handlers = root.handlers, [held]
  try:
    yield
  except Exception as error:
    if _said(error):
      held.buffer.clear()
    raise
  finally:
    root.handlers = before
    held.close()


def _make(piece: bytes, one: Callable[[passes.Piece], None]) -> None:
  try:
    one(pickle.loads(piece))
  except (ValueError, OSError) as error:
    if (line := errors.line(error)) is None:
      raise
    raise RuntimeError(f"{_MARK}{line}{_MARK}") from None
