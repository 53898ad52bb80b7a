# SPDX-License-Identifier: Apache-2.0
"""Passes in forked children that are killed or refused; see test_faults.py.

Run as `python faults.py FAULT STAGE DATA OUT SEEDS`. Whatever is imported is
imported once, here, and nothing starts a thread before the fork, so a child
costs little. An `assert` that fails ends it with a traceback.
"""

import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time
import traceback

import tiny
import toy_pass

from cc_jax import cli

SPLITS = "--config.catalogue.records_per_shard=6"
SIZES = "--config.encode.sizes=(16, 12)"
# Latents are of two sizes, in one pass.
FOLDERS = {
  "catalogue": "catalogue",
  "caption": "captions",
  "encode": "latents_16",
}


def child(stage, data, place, limit=None):
  """Starts `cc-jax STAGE`, which writes below `place`; its process id."""
  os.makedirs(place, exist_ok=True)
  pid = os.fork()
  if pid:
    return pid
  output = os.open(f"{place}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(output, 1)
  os.dup2(output, 2)
  if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
  status = 1
  try:
    where = f"--config={tiny.__file__}:{data}"
    name = FOLDERS[stage].removesuffix("_16")
    folder = f"--config.{stage}.folder={place}/{name}"
    words = [stage, where, f"--workdir={place}/work", SPLITS, folder, SIZES]
    if stage == "caption":
      words.append(f"--config.model.tokenizer={place}/tokenizer")
    status = cli.main(words)
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(pid):
  """The exit status, or less than 0 for a signal."""
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def output(place):
  return pathlib.Path(f"{place}.txt").read_text()


def finish(stage, data, place):
  assert wait(child(stage, data, place)) == 0, output(place)


def names(place):
  return {name for _, _, found in os.walk(place) for name in found}


def folders(place):
  return {name for _, found, _ in os.walk(place) for name in found}


def contents(place):
  """What a stage is to leave below a place; temporary files are none of it."""
  found = toy_pass.contents(place)
  return {
    name: data for name, data in found.items() if not name.startswith("work/")
  }


def final(place):
  """Of these, what is there under the name that it will have."""
  return {
    name: data
    for name, data in contents(place).items()
    if not name.endswith(".tmp") and ".tmp/" not in name
  }


def make(stage, data, place, seeds):
  """What nobody disturbs."""
  finish(stage, data, place)


def kill(stage, data, place, seeds):
  """SIGKILL at random moments after a child has begun to write."""
  expected = contents(f"{data}/{stage}_straight")
  kills = 0
  for seed in range(seeds):
    moments, own, status = random.Random(seed), 0, None
    here = f"{place}/{seed}"
    while status != 0:
      before = names(here)
      pid = child(stage, data, here)
      while names(here) == before:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
          break
        time.sleep(0.001)
      time.sleep(moments.uniform(0, 0.02 * 2**own))
      os.kill(pid, signal.SIGKILL)
      status = wait(pid)
      assert status in (0, -signal.SIGKILL), output(here)
      own += status != 0
      written = final(here)
      assert written == {name: expected[name] for name in written}
    kills += own
    # What is left over is below "work", or was swept.
    assert contents(here) == expected
    assert not [name for name in folders(here) if name.endswith(".tmp")]
  assert kills >= seeds, kills


def twice(stage, data, place, seeds):
  """Two processes that do not know of each other, on one folder."""
  for seed in range(seeds):
    here = f"{place}/{seed}"
    pids = [child(stage, data, here) for _ in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0], output(here)
    assert final(here) == contents(f"{data}/{stage}_straight")


def refused(stage, data, place, *words, limit=None):
  """One line with the words, and nothing under a name that is not whole."""
  assert wait(child(stage, data, place, limit)) == 2, output(place)
  lines = [x for x in output(place).splitlines() if not x.startswith(stage)]
  assert len(lines) == 1, lines
  for word in ("cc-jax: ", "then the same command goes on", *words):
    assert word in lines[0], lines
  expected = contents(f"{data}/{stage}_straight")
  written = contents(place)
  # A process that is refused also takes away what it had begun.
  assert written == {name: expected[name] for name in written}


def small(stage, data, place, seeds):
  """Files may not be larger than so much."""
  expected = contents(f"{data}/{stage}_straight")
  largest = max(map(len, expected.values()))
  for seed in range(seeds):
    here = f"{place}/{seed}"
    limit = random.Random(seed).randrange(largest // 3, largest)
    refused(stage, data, here, "File too large; allow", limit=limit)
    finish(stage, data, here)
    assert contents(here) == expected


def mount(place, *words):
  subprocess.run(["mount", *words, place], check=True)


def full(stage, data, place, seeds):
  """A disk of any size that is too small; needs a user namespace."""
  expected = contents(f"{data}/{stage}_straight")
  total = sum(-(-len(x) // 4096) * 4096 for x in expected.values())
  for seed in range(seeds):
    here = f"{place}/{seed}"
    os.makedirs(here)
    # Down to one page less than it all takes.
    size = total - 4096
    if seed:
      size = random.Random(seed).randrange(total // 10, size)
    mount(here, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    refused(stage, data, here, "No space left on device; make room")
    mount(here, "-o", "remount,size=1g")
    finish(stage, data, here)
    assert contents(here) == expected
    subprocess.run(["umount", here], check=True)


def closed(stage, data, place, seeds):
  """A disk that may only be read; needs a user namespace."""
  os.makedirs(place)
  mount(place, "-t", "tmpfs", "tmpfs")
  mount(place, "-o", "remount,ro")
  refused(stage, data, place, "Read-only file system; name another folder")
  mount(place, "-o", "remount,rw")
  finish(stage, data, place)
  assert contents(place) == contents(f"{data}/{stage}_straight")


def forbidden(stage, data, place, seeds):
  """A folder that may not be written to, from some moment on."""
  folder = pathlib.Path(place) / FOLDERS[stage]
  finish(stage, data, place)
  (folder / "dataset_info.json").unlink()
  for name in (".pass", "."):
    shard, note = (
      sorted(x for x in where.iterdir() if "train" in x.name)[0]
      for where in (folder, folder / ".pass")
    )
    shard.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    os.chmod(folder / name, 0o555)
    refused(stage, data, place, "Permission denied; get the permission", name)
    os.chmod(folder / name, 0o755)
  finish(stage, data, place)
  assert contents(place) == contents(f"{data}/{stage}_straight")


if __name__ == "__main__":
  fault, stage, data, place, seeds = sys.argv[1:]
  globals()[fault](stage, data, place, int(seeds))
