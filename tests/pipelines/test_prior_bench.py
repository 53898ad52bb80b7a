# SPDX-License-Identifier: Apache-2.0
from cc_jax.core import config as configs
from cc_jax.pipelines import prior_bench


def test_both_sides_write_the_same_codes():
  options = configs.load("configs/bench.py:prior").bench
  options.repeats = 1
  options.prior.width, options.prior.depth, options.prior.heads = 32, 2, 2
  options.prior.positions, options.prior.vocabulary = 9, 50
  found = prior_bench.measure(options)
  assert found["prior_same_codes"] == 1
  for what in ("second", "cpu_second"):
    ours, theirs = (
      found[f"prior_images_per_{what}_{side}"] for side in ("cc_jax", "torch")
    )
    assert min(ours, theirs) > 0
    assert found[f"prior_times_as_fast_by_{what}"] == ours / theirs
  options.compare = ""
  alone = prior_bench.measure(options)
  assert alone.keys() == {
    "prior_images_per_second_cc_jax",
    "prior_images_per_cpu_second_cc_jax",
  }
