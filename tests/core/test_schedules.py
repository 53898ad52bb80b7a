# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from cc_jax.core import schedules


@pytest.fixture
def folder(monkeypatch):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_given=true")
  schedules.folder.cache_clear()
  yield schedules.folder()
  schedules.folder.cache_clear()


def test_libtpu_is_told_where_to_write(folder):
  given, place, label = os.environ["LIBTPU_INIT_ARGS"].split()
  assert given == "--xla_given=true"
  assert place == f"--xla_jf_dump_to={folder}"
  assert label.endswith(f"={schedules.LABEL}")
  assert schedules.folder() == folder


def test_bundles_are_taken_once_by_the_name_of_an_operation(folder):
  text = "Schedule analysis:\n\ttotal scheduled bundles:    {}\n\tempty: 1\n"
  write = lambda name, text: (folder / name).write_text(text)
  write(
    f"17-attention_forward.5-00-schedule-analysis_{schedules.LABEL}.txt",
    text.format(1148),
  )
  write(
    f"18-fusion-12.3-41-schedule-analysis_{schedules.LABEL}.txt", text.format(7)
  )
  write(f"19-TLP-00-schedule-analysis_{schedules.LABEL}.txt", "no schedule")
  write("17-TLP-hlo.txt", text.format(3))
  assert schedules.take() == {"attention_forward.5": 1148, "fusion-12.3": 7}
  assert schedules.take() == {}
