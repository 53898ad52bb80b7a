# SPDX-License-Identifier: Apache-2.0
"""Stands for gcloud, xpk, docker, kubectl and cc-jax in tests of launch/*.sh.

Run under one of their names it notes its arguments, and answers by what
`answers.json` beside it says: for the first rule whose words are all in the
command, [stdout, stderr, status], one after another and then the last again.
"""

import json
import os
import pathlib
import stat
import sys

# As the real gcloud says it.
ERROR = "ERROR: (gcloud.compute.tpus.queued-resources.{}) {}\n"
ABSENT = ERROR.format(
  "describe",
  "NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/n' was not "
  "found",
)
QUOTA = ERROR.format(
  "create",
  "RESOURCE_EXHAUSTED: Quota limit 'TPUV4PodPerProjectPerZone' has been "
  "exceeded. Limit: 0 in zone us-central2-b.",
)
THERE = ERROR.format(
  "create", "ALREADY_EXISTS: Resource 'queuedResources/n' already exists"
)
NETWORK = ERROR.format(
  "describe", "There was a problem refreshing your current auth tokens"
)


def install(folder, rules, *names):
  """Puts the tools into a folder that is to be first in PATH."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "answers.json").write_text(json.dumps(rules))
  for name in names:
    path = folder / name
    path.write_text(
      f"#!{sys.executable}\n" + pathlib.Path(__file__).read_text()
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return folder


def calls(folder):
  """The commands that were given, in order, each a list of words."""
  path = pathlib.Path(folder) / "calls.jsonl"
  text = path.read_text() if path.exists() else ""
  return [json.loads(line) for line in text.splitlines()]


def main(argv):
  folder = pathlib.Path(argv[0]).parent
  words = [os.path.basename(argv[0]), *argv[1:]]
  with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\n")
  rules = json.loads((folder / "answers.json").read_text())
  for needed, answers in rules:
    if all(any(part in word for word in words) for part in needed):
      out, err, status = answers[0]
      if len(answers) > 1:
        del answers[0]
        (folder / "answers.json").write_text(json.dumps(rules))
      sys.stdout.write(out)
      sys.stderr.write(err)
      return status
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
