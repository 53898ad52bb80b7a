# SPDX-License-Identifier: Apache-2.0
"""cc-jax remove: takes what an opt-out list names out of finished folders."""

import jax
import ml_collections

from cc_jax.core import log, versions
from cc_jax.data import opt_out, removal


def main(config: ml_collections.ConfigDict, workdir: str) -> removal.Counts:
  """Rewrites the shards that hold what the list names, on the first process.

  Raises:
    ValueError: no list, or folders that cannot be changed together.
  """
  options = config.remove
  if not options.opt_out:
    raise ValueError(
      "remove.opt_out is empty; expected a list, as data/opt_out.py has it"
    )
  listed = opt_out.read(options.opt_out)
  log.announce(
    "remove",
    f"{len(listed)} entries of {options.opt_out} from "
    f"{', '.join(options.folders)}",
  )
  counts = removal.Counts({}, 0)
  if jax.process_index() == 0:
    counts = removal.remove(options.folders, listed)
  versions.record(workdir, "remove", config)
  log.announce("remove", f"{counts}")
  return counts
