# SPDX-License-Identifier: Apache-2.0
"""How long evaluation takes here: features beside torch's, and the metrics.

  python tests/evaluation_speed.py [IMAGES]

Random weights of the real sizes. Features: InceptionV3 from bytes of 256 x 256
pixels, in turn with torch's on the same weights and threads. Metrics: all of
configs/evaluate.py, and CMMD, on random features of IMAGES images and as many
real ones, 30,000 unless said otherwise; no metric is scaled from fewer.
"""

import importlib.util
import pathlib
import sys
import tempfile
import time

from flax import nnx
import jax
import numpy as np
import torch

from cc_jax.core import tree
from cc_jax.metrics import numbers
from cc_jax.models import hub, kinds
from cc_jax.pipelines import image_features

WHOLE = 30_000


def best(make, times=3):
  found = []
  for _ in range(times):
    started = time.perf_counter()
    make()
    found.append(time.perf_counter() - started)
  return min(found)


def features(folder, count=32):
  """Seconds an image of ours, torch's, and ours with both CLIPs."""
  path = pathlib.Path(__file__).parent / "models" / "test_inception.py"
  spec = importlib.util.spec_from_file_location("test_inception", path)
  theirs = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(theirs)
  for kind, preset in (("inception", "FID"), ("clip", "VIT_B16")):
    config = kinds.preset(kind, preset)
    made = kinds.make(kind, config, rngs=nnx.Rngs(0))
    hub.save(f"{folder}/{preset}", kind, config, tree.split(made)[1])
  pictures = np.random.default_rng(0).integers(
    0, 256, (count, 256, 256, 3), np.uint8
  )
  ours = image_features.inception(f"{folder}/FID")
  clip = image_features.clip(f"{folder}/VIT_B16")
  read = lambda row: pictures[row]
  model = theirs.random(kinds.preset("inception", "FID"), 2)

  def run(networks):
    image_features.extract(networks, read, count, batch_size=16)

  def run_torch():
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    with torch.no_grad():
      for part in x.split(16):
        part = torch.nn.functional.interpolate(
          part, (299, 299), mode="bilinear"
        )
        model((part - 128) / 128)

  run([ours])
  run([ours, clip])
  run_torch()
  one, other = [], []
  for _ in range(3):
    one.append(best(lambda: run([ours]), 1))
    other.append(best(run_torch, 1))
  both = best(lambda: run([ours, clip]), 2)
  return min(one) / count, min(other) / count, both / count


def metrics(count):
  """Seconds of all metrics over so many images; prints each."""
  rng = np.random.default_rng(0)
  draw = lambda width: rng.standard_normal((count, width), np.float32)
  real, made, logits = draw(2048), draw(2048), draw(1008)
  clip, other, text = draw(512), draw(512), draw(512)
  gaussian, against = numbers.statistics(real), numbers.statistics(clip)
  total = 0.0
  for name, make in {
    "fid": lambda: numbers.fid(gaussian, made),
    "kid": lambda: numbers.kid(real, made),
    "shares": lambda: numbers.shares(real, made),
    "inception score": lambda: numbers.inception(logits),
    "clip fid": lambda: numbers.fid(against, other),
    "cmmd": lambda: numbers.cmmd(clip, other),
    "clip score": lambda: numbers.agreement(other, text),
  }.items():
    seconds = best(make, 1)
    total += seconds
    print(f"{name:16} {seconds:6.1f} s of {count:,}", flush=True)
  return total


def main(argv):
  count = int(argv[0]) if argv else WHOLE
  jax.config.update("jax_num_cpu_devices", 2)
  with tempfile.TemporaryDirectory() as folder:
    ours, theirs, both = features(folder)
  print(f"InceptionV3: {1 / ours:.2f} images/s, torch {1 / theirs:.2f}")
  print(f"with CLIP ViT-B/16 too: {1 / both:.2f} images/s", flush=True)
  total = metrics(count)
  for name, seconds in (("InceptionV3", ours), ("both networks", both)):
    share = 1 + total / (count * seconds)
    print(
      f"metrics of {count:,}: {total:.0f} s; with features {share:.3f} of the "
      f"time of {name} alone"
    )


if __name__ == "__main__":
  main(sys.argv[1:])
