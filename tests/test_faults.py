# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with machines: killed, full, closed, damaged, changed.

All three passes, catalogue, caption and encode, through the command line. What
they leave is compared with what nobody disturbed, byte for byte.
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pyarrow as pa
from pyarrow import parquet
import pytest
import tiny
import toys

from cc_jax.data import shards
from cc_jax.models import hub

STAGES = ("catalogue", "caption", "encode")
# What is the same code for all is tried with the quickest.
ONE = pytest.mark.parametrize(
  "stage",
  ["catalogue", *(pytest.param(x, marks=pytest.mark.slow) for x in STAGES[1:])],
)
# A user that is root where it may mount, and root without its right to write
# everywhere.
NAMESPACE = ("unshare", "--mount", "--map-root-user")
PLAIN = ("setpriv", "--bounding-set=-dac_override") if not os.getuid() else ()


@functools.cache
def allowed(prefix):
  """Whether commands may begin so here."""
  if not prefix:
    return True
  if not shutil.which(prefix[0]):
    return False
  script = "mount -t tmpfs tmpfs /mnt" if prefix == NAMESPACE else "true"
  done = subprocess.run([*prefix, "sh", "-c", script], capture_output=True)
  return done.returncode == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A source, a catalogue and captions; what each stage makes of them.

  They are in "STAGE_straight", with links to what the stage reads beside.
  """
  place = tmp_path_factory.mktemp("data")
  tiny.write_source(place / "source")
  tiny.save_vae(f"{place}/vae", seed=0)
  (place / "source/07.png").write_bytes(b"<html>404</html>")
  for stage, made in zip(STAGES, ("catalogue", "captions", None), strict=True):
    straight = f"{stage}_straight"
    drive("make", stage, place, place / straight)
    if made:
      (place / made).symlink_to(f"{straight}/{made}")
    if stage == "caption":
      (place / "tokenizer").symlink_to(f"{straight}/tokenizer")
  return place


def drive(fault, stage, data, place, seeds=1, prefix=()):
  """Runs tests/faults.py."""
  if not allowed(prefix):
    pytest.skip(f"{prefix[0]} is not allowed here")
  script = str(pathlib.Path(__file__).with_name("faults.py"))
  words = [fault, stage, str(data), str(place), str(seeds)]
  compiled = {
    "PYTHONPATH": str(tiny.ROOT),
    "JAX_COMPILATION_CACHE_DIR": f"{data}/compiled",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
  }
  done = subprocess.run(
    [*prefix, sys.executable, script, *words],
    cwd=tiny.ROOT,
    env=os.environ | tiny.FLAGS | compiled,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments(stage, data, tmp_path):
  seeds = 1 if stage == "encode" else 2
  drive("kill", stage, data, tmp_path / "out", seeds=seeds)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_many_more_moments(stage, data, tmp_path):
  drive("kill", stage, data, tmp_path / "out", seeds=10)


@ONE
def test_two_processes_at_once(stage, data, tmp_path):
  drive("twice", stage, data, tmp_path / "out", seeds=2)


@ONE
def test_files_that_may_not_be_so_large(stage, data, tmp_path):
  drive("small", stage, data, tmp_path / "out", seeds=2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(stage, data, tmp_path):
  seeds = 1 if stage == "encode" else 2
  drive("full", stage, data, tmp_path / "out", seeds, prefix=NAMESPACE)


@ONE
def test_a_disk_that_may_only_be_read(stage, data, tmp_path):
  drive("closed", stage, data, tmp_path / "out", prefix=NAMESPACE)


@ONE
def test_a_folder_that_may_not_be_written_to(stage, data, tmp_path):
  drive("forbidden", stage, data, tmp_path / "out", prefix=PLAIN)


def damage(path, how, at=b"PNG"):
  """Cuts a file in half, or alters one byte behind some others."""
  path = pathlib.Path(path)
  whole = bytearray(path.read_bytes())
  if how == "altered":
    whole[whole.index(at) + 20] ^= 0xFF
  keep = {"cut": len(whole) // 2, "altered": len(whole), "empty": 0}
  path.write_bytes(whole[: keep[how]])


def copy(data, place):
  """What stages read and have written, to be changed."""
  for name in ("source", "catalogue", "captions", "tokenizer", "vae"):
    shutil.copytree(data / name, place / name)
  return place


@pytest.mark.parametrize("how", ["cut", "altered", "empty"])
@pytest.mark.parametrize("stage", ["caption", "encode"])
def test_a_damaged_shard_is_named(stage, how, data, tmp_path, capsys):
  place = copy(data, tmp_path / "data")
  shard = shards.open(place / "catalogue").path("train", 0)
  damage(shard, how)
  flags = [
    f"--config.{stage}.folder={tmp_path}/out",
    f"--config.model.tokenizer={place}/tokenizer",
  ]
  status = toys.run(stage, place, tmp_path / "w", *flags)
  words = f"cc-jax: {shard} is damaged (", "; copy it from where it was made"
  toys.check_refused(capsys, status, *words)
  assert list(toys.contents(tmp_path / "out")) == [".pass/pass.json"]


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
@pytest.mark.parametrize("how", ["cut", "altered", "empty"])
def test_a_damaged_note_is_named_and_made_again(
  suffix, how, data, tmp_path, capsys
):
  place = copy(data, tmp_path / "data")
  straight = data / "catalogue_straight/catalogue"
  out = shutil.copytree(straight, tmp_path / "out")
  (out / "dataset_info.json").unlink()
  note = sorted(out.glob(f".pass/train-*{suffix}"))[2]
  damage(note, how, at=b"PAR1" if suffix == ".parquet" else b'{\n  "settings"')
  flags = [
    f"--config.catalogue.folder={out}",
    f"--config.catalogue.source={data}/source",
    "--config.catalogue.records_per_shard=6",
  ]
  status = toys.run("catalogue", place, tmp_path / "w", *flags)
  words = f"cc-jax: {note} is ", "delete it and what has its name beside it"
  toys.check_refused(capsys, status, *words)
  for path in out.glob(f".pass/{note.stem}.*"):
    path.unlink()
  assert toys.run("catalogue", place, tmp_path / "w", *flags) == 0
  assert toys.contents(out) == toys.contents(straight)


def counts(place, source, *flags):
  """Read, kept and rejected of a catalogue with a source that is damaged."""
  flags = [
    f"--config.catalogue.source={source}",
    f"--config.catalogue.folder={place}/out",
    "--config.catalogue.columns.image=image",
    "--config.catalogue.columns.licence_url=licence_url",
    *flags,
  ]
  assert toys.run("catalogue", place, place / "w", *flags) == 0
  found = json.loads((place / "out/provenance.json").read_text())["counts"]
  assert found["kept"] + sum(found["rejected"].values()) == found["read"]
  lines = (place / "out/rejects.jsonl").read_text().splitlines()
  assert len(lines) == sum(found["rejected"].values())
  return found


@pytest.mark.parametrize(
  ("how", "rejected", "read"),
  [("cut", "file_broken", 25), ("altered", "group_broken", 48)],
)
def test_a_damaged_parquet_file_is_counted(how, rejected, read, tmp_path):
  rows = [
    {"image": toys.picture(i, side=16), "licence_url": toys.LICENCE}
    for i in range(24)
  ]
  (tmp_path / "source").mkdir()
  for name in "ab":
    path = tmp_path / f"source/{name}.parquet"
    parquet.write_table(
      pa.Table.from_pylist(rows),
      path,
      row_group_size=8,
      write_page_checksum=True,
      compression="none",
      use_dictionary=False,
    )
  damage(path, how, at=rows[10]["image"])
  found = counts(tmp_path, tmp_path / "source")
  assert set(found["rejected"]) == {rejected}
  assert found["read"] == read
  assert found["kept"] >= 24


@pytest.mark.parametrize("how", ["cut", "altered"])
def test_a_damaged_data_set_of_tfds_is_counted(how, data, tmp_path):
  place = copy(data, tmp_path / "data")
  dataset = shards.open(place / "catalogue")
  damage(dataset.path("train", 0), how)
  found = counts(place, place / "catalogue")
  # ArrayRecord gives no bytes for some records that it cannot read.
  assert set(found["rejected"]) <= {"record_broken", "image_missing"}
  lost = {"cut": dataset.splits["train"][0], "altered": 1}[how]
  assert (found["read"], found["kept"]) == (47, 47 - lost)


def test_weights_that_changed_are_refused(data, tmp_path, capsys):
  place = copy(data, tmp_path / "data")
  out = shutil.copytree(data / "encode_straight/latents_16", tmp_path / "out")
  (out / "dataset_info.json").unlink()
  for path in (*out.glob("*00003-of-*"), *out.glob(".pass/*00003-of-*")):
    path.unlink()
  before = toys.contents(out)
  old = hub.load(f"{place}/vae", "autoencoder").hash
  tiny.save_vae(f"{place}/vae", seed=9)
  new = hub.load(f"{place}/vae", "autoencoder").hash
  inputs = json.loads((out / ".pass/pass.json").read_text())["inputs"]
  images, captions = (entry["folder"] for entry in inputs)
  flags = [
    f"--config.encode.folder={out}",
    f"--config.encode.images={images}",
    f"--config.encode.captions={captions}",
  ]
  status = toys.run("encode", place, tmp_path / "w", *flags)
  words = f"begun with weights.latent_mean='{old}'; got '{new}'", "go on with"
  toys.check_refused(capsys, status, str(out), *words)
  assert toys.contents(out) == before
