# SPDX-License-Identifier: Apache-2.0
"""How fast the loader is, on records like those that training reads."""

import os
import tempfile
import time
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cc_jax.data import aligned, loader, records, shards


class Speed(NamedTuple):
  """What `measure` found; rates are records per second."""

  records: int
  cpu_seconds: float
  wall_seconds: float
  per_cpu_second: float
  per_wall_second: float
  stall: float


def measure(
  *,
  stored: int = 4096,
  seconds: float = 3.0,
  batch_size: int = 256,
  rate: float = 0.0,
) -> Speed:
  """Measures the loader on SD2-256 records, about 16.7 kB each.

  Writes `stored` records of latents and token ids to a temporary folder and
  reads batches for `seconds`, after a few to warm up. A record has latent_mean
  and latent_std [32 32 4] bfloat16 and tokens [77] int32.

  Then, for as long again, `rate` records a second are taken at even times, as
  by devices that compute between: `stall` is the share of that time that was
  spent waiting for batches; 0 for a rate of 0.
  """
  fields = records.fields(
    {
      "latent_mean": ("bfloat16", (32, 32, 4)),
      "latent_std": ("bfloat16", (32, 32, 4)),
      "tokens": ("int32", (77,)),
    }
  )
  rng = np.random.default_rng(0)

  def example() -> dict[str, Any]:
    latents = rng.normal(size=(2, 32, 32, 4)).astype(ml_dtypes.bfloat16)
    tokens = rng.integers(49408, size=77, dtype=np.int32)
    mean, std = latents
    return {"latent_mean": mean, "latent_std": std, "tokens": tokens}

  with tempfile.TemporaryDirectory() as folder:
    count = 16
    lengths = [stored // count + (i < stored % count) for i in range(count)]
    done = [
      shards.write(
        os.path.join(folder, shards.filename("sd2", "train", i, count)),
        fields,
        (example() for _ in range(length)),
      )
      for i, length in enumerate(lengths)
    ]
    shards.write_metadata(folder, "sd2", fields, {"train": done})
    source = aligned.source([shards.open(folder)], "train")
    made = loader.batches(source, batch_size=batch_size, seed=0)
    for _ in range(2 * loader.AHEAD):
      next(made)
    read, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < seconds:
      read += len(next(made)["tokens"])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    stall = _stall(made, batch_size / rate, seconds) if rate else 0.0
    made.close()
    source.close()
  return Speed(read, cpu, wall, read / cpu, read / wall, stall)


def _stall(made: loader.Batches, period: float, seconds: float) -> float:
  """The share of a time that a batch each `period` was waited for."""
  waited, started = 0.0, time.perf_counter()
  while time.perf_counter() - started < seconds:
    time.sleep(period)
    asked = time.perf_counter()
    next(made)
    waited += time.perf_counter() - asked
  return waited / (time.perf_counter() - started)
