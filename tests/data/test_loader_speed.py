# SPDX-License-Identifier: Apache-2.0
from cc_jax.data import loader_speed


def test_a_host_reads_enough_records_for_its_devices():
  # Four chips of v4 train on 890 images a second (README), which one core
  # should read. Measured: 3 to 25 thousand, on machines slow and fast, with the
  # tests' checks of types and without.
  speed = loader_speed.measure(stored=512, seconds=0.4)
  assert speed.records > 0
  assert speed.per_cpu_second >= 1000
  # Nothing was asked of it at a rate.
  assert speed.stall == 0


def test_a_loader_that_is_asked_for_little_is_hardly_waited_for():
  slow = loader_speed.measure(stored=512, seconds=0.5, batch_size=8, rate=80.0)
  fast = loader_speed.measure(stored=512, seconds=0.5, batch_size=64, rate=1e6)
  assert 0 < slow.stall < fast.stall <= 1
