# SPDX-License-Identifier: Apache-2.0
"""cc-jax votes: what voters exported from a page of pairs says."""

from typing import Any

import ml_collections

from cc_jax.core import files, log, versions
from cc_jax.pipelines import pairwise


def main(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Writes `config.votes.result` and returns it.

  Raises:
    ValueError: no votes, or none of the page of the key.
  """
  options = config.votes
  key = files.read_json(options.key)
  if not isinstance(key, dict) or not {"id", "models", "pairs"} <= set(key):
    raise ValueError(
      f"{options.key} is not the key that `cc-jax report "
      "--config.report.kind=pairwise` wrote"
    )
  found = pairwise.count_votes(key, pairwise.read_votes(options.files))
  if log.is_first():
    files.write_json(options.result, found)
  versions.record(workdir, "votes", config)
  one, other = found["models"]["b"], found["models"]["a"]
  for name, row in {
    "all": found["prefers_b"],
    **found["by_category"],
  }.items():
    log.announce(
      "votes",
      f"{name}: {one} preferred to {other} in {100 * row['share']:.1f} % "
      f"({100 * row['low']:.1f} to {100 * row['high']:.1f}), sign test p = "
      f"{row['p']:.2g}; {row['wins']} to {row['losses']}, {row['ties']} ties",
    )
  log.summary(
    "votes",
    {
      "votes": found["votes"],
      "pairs": found["pairs"],
      "voters": found["voters"],
      "refused": sum(found["refused"].values()),
    },
    output=options.result,
  )
  return found
