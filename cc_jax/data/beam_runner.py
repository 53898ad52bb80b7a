# SPDX-License-Identifier: Apache-2.0
"""A pass on Apache Beam, for sources that one machine does not get through.

Beam only says which worker makes which shard: the shards, the notes on them and
what is written when all are done come from data/passes.py, so the folder is
byte for byte what one process makes, and either goes on with what the other
began. It needs the extra `beam`; launch/constraints-beam.txt has the versions.
"""

from collections.abc import Callable, Sequence
import importlib.util
import pickle

from cc_jax.data import passes


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
    with beam.Pipeline(options=made) as pipeline:
      _ = (
        pipeline
        # As bytes, since Beam has ideas of its own about named tuples.
        | "Pieces" >> beam.Create([pickle.dumps(piece) for piece in pieces])
        # Else one worker would make all that one Create has made.
        | "Spread" >> beam.Reshuffle()
        | "Shards" >> beam.Map(_make, one)
      )

  return run


def _make(piece: bytes, one: Callable[[passes.Piece], None]) -> None:
  one(pickle.loads(piece))
