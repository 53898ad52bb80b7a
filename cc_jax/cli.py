# SPDX-License-Identifier: Apache-2.0
"""cc-jax STAGE --config=configs/NAME.py[:ARG] --workdir=DIR [--config.a.b=1].

Any field of the config is a flag. What a user can get wrong is one line on
stderr and exit status 2; jax is imported by the stages, so help is quick.
"""

from collections.abc import Callable, Sequence
import contextlib
import importlib
import logging
import os
import sys
import time
import traceback

import ml_collections

from cc_jax.core import allocation, errors, versions
from cc_jax.core import config as configs

# The table of stages: module, then what it does.
STAGES = {
  "quickstart": ("cc_jax.quickstart", "all of it, on images that pip brings"),
  "catalogue": ("cc_jax.stages.catalogue", "images in, by licence"),
  "deduplicate": ("cc_jax.stages.deduplicate", "leaves out copies of images"),
  "remove": ("cc_jax.stages.remove", "takes out who does not want to be in"),
  "subset": ("cc_jax.stages.subset", "so many images of a dataset"),
  "caption": ("cc_jax.stages.caption", "a caption for each image"),
  "encode": ("cc_jax.stages.encode", "images to latents, captions to tokens"),
  "train": ("cc_jax.stages.train", "trains what the config names"),
  "sample": ("cc_jax.stages.sample", "prompts to images"),
  "evaluate": ("cc_jax.stages.evaluate", "how good a checkpoint is"),
  "export": ("cc_jax.stages.export", "a checkpoint to a diffusers folder"),
  "report": ("cc_jax.stages.report", "a page: a dataset, a run, or votes"),
  "votes": ("cc_jax.stages.votes", "which of two models people prefer"),
  "plan": ("cc_jax.stages.plan", "what a run takes on a TPU slice"),
  "bench": ("cc_jax.stages.bench", "speed of the loader and the train step"),
}

# Seconds that hosts wait for each other at the start, and without a sign of
# life after which one counts as lost and the others end; CC_JAX_JOIN_SECONDS
# and CC_JAX_HEARTBEAT_SECONDS say otherwise.
JOIN, HEARTBEAT = 300, 60
# That one which has failed gives the others to say what they found.
GRACE = 5

# How JAX names the loss of another host in an error that is about no program.
LOST = (
  "Gloo",
  "Connection closed",
  "Connection reset",
  "coordination service",
  "heartbeat",
  "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
)

# Stages that run one program again and again.
KEEPING = ("train", "bench")

DEFAULTS = {"quickstart": ("configs/quickstart.py:unet", "runs/quickstart")}

USAGE = """\
cc-jax STAGE --config=configs/NAME.py[:ARG] --workdir=DIR [options]

stages
{stages}

options
  --config.any.field=VALUE   sets a field of the config
  --hosts=N                  one of N processes that work together (or the
                             environment CC_JAX_HOSTS=N); off TPUs
                             and clusters that JAX knows, with the environment
                             JAX_COORDINATOR_ADDRESS=HOST:PORT,
                             JAX_NUM_PROCESSES=N, JAX_PROCESS_ID=0 to N-1
  --help                     this text
"""


def usage() -> str:
  """The help text."""
  width = max(map(len, STAGES))
  lines = (f"  {name:{width}}  {does}" for name, (_, does) in STAGES.items())
  return USAGE.format(stages="\n".join(lines))


def arguments(
  argv: Sequence[str],
) -> tuple[str, ml_collections.ConfigDict, str, int]:
  """(stage, config, workdir, hosts) of a command line.

  Raises:
    ValueError: whatever is wrong with it, in one line.
  """
  stage, *rest = argv
  if stage not in STAGES:
    raise configs.unknown("stage", stage, list(STAGES))
  where, workdir = DEFAULTS.get(stage, (None, None))
  hosts, fields = _number("CC_JAX_HOSTS") or 1, []
  for word in rest:
    name, equals, value = word.partition("=")
    if not equals:
      raise ValueError(f"{word!r}: expected --name=value")
    if name == "--config":
      where = value
    elif name == "--workdir":
      workdir = value
    elif name == "--hosts":
      hosts = configs.parse(value, 1, name)
    elif name.startswith("--config."):
      fields.append((name[2:], value))
    else:
      choices = ["--config", "--workdir", "--hosts", "--config.any.field"]
      raise configs.unknown("flag", name, choices)
  if not where:
    raise ValueError(f"{stage} needs --config=configs/NAME.py[:ARG]")
  if not workdir:
    raise ValueError(f"{stage} needs --workdir=DIR")
  config = configs.load(where)
  for name, value in fields:
    configs.override(config, name, value)
  workdir = workdir.rstrip("/")
  configs.resolve(config, workdir)
  return stage, config.lock(), workdir, hosts


def start(config: ml_collections.ConfigDict, hosts: int) -> None:
  """Starts JAX, on one of several hosts if there are.

  On TPUs, Slurm, Kubernetes and Open MPI the hosts find each other. Elsewhere
  the environment says who they are, by the names in `--help`; JAX itself reads
  only the first of the three.

  Raises:
    ValueError: the hosts do not find each other, fewer or more processes came
      together than were announced (a pod of which each host trains by itself
      would train that many copies), or a number in the environment is not one.
  """
  import jax

  # It would say that it cannot find torch, which nobody here looks for.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  for name in ("absl", "huggingface_hub"):
    logging.getLogger(name).setLevel(logging.ERROR)
  # A notebook or a test that calls `main` has made its devices already.
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
  if hosts == 1:
    _check_alone()
  else:
    _join(hosts)
  devices = _number("CC_JAX_DEVICES")
  if devices is not None and devices != jax.device_count():
    raise ValueError(
      f"CC_JAX_DEVICES={devices}, but there are {jax.device_count()} on "
      f"{hosts} hosts"
    )


def _join(hosts: int) -> None:
  """Finds the other hosts."""
  import jax

  count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
  try:
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      initialization_timeout=_number("CC_JAX_JOIN_SECONDS") or JOIN,
      heartbeat_timeout_seconds=_number("CC_JAX_HEARTBEAT_SECONDS")
      or HEARTBEAT,
    )
  except (ValueError, RuntimeError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"--hosts={hosts}: JAX cannot find the other hosts ({reason}); set "
      "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
    ) from error
  if jax.process_count() != hosts:
    raise ValueError(
      f"--hosts={hosts}, but {jax.process_count()} processes have joined"
    )


def _check_alone() -> None:
  """Refuses to be one of several hosts that do not know of each other."""
  workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  count = max(_number("JAX_NUM_PROCESSES") or 1, len(workers))
  if count > 1:
    raise ValueError(
      f"this is one of {count} hosts by its environment, and would work by "
      f"itself; set --hosts={count}"
    )


def _number(name: str) -> int | None:
  """A whole number from the environment; None where it is not set."""
  text = os.environ.get(name)
  if text is not None and not text.isdecimal():
    raise ValueError(f"{name}={text!r} in the environment: expected a number")
  return None if text is None else int(text)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a stage; the exit status is 2 for what a user can put right.

  One of several hosts that fails ends at once, also if others do not: they
  wait for it, and end when they find that it is gone.
  """
  try:
    status = _run(argv)
  except Exception as error:
    if not _joined():
      raise
    traceback.print_exc()
    if any(word in str(error) for word in LOST):
      print(
        "cc-jax: another host is lost or has failed; see what it said. When it "
        "is back, the same command goes on from the last checkpoint",
        file=sys.stderr,
      )
    status = 1
  if status and _joined():
    sys.stdout.flush()
    sys.stderr.flush()
    # Others may have found the same, and end when the first of them does.
    time.sleep(GRACE)
    # What else is done at the end waits for all hosts, for minutes.
    os._exit(status)
  return status


def _joined() -> bool:
  """Whether this process has found others."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def _run(argv: Sequence[str] | None) -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or {"-h", "--help", "help"} & set(argv):
    print(usage(), end="")
    return 0 if argv else 2
  try:
    stage, config, workdir, hosts = arguments(argv)
    if stage in KEEPING and allocation.only_cpus():
      allocation.keep()
    start(config, hosts)
    versions.COMMAND[:] = argv
    run: Callable = importlib.import_module(STAGES[stage][0]).main
    run(config, workdir)
  except (ValueError, OSError, FloatingPointError) as error:
    if (line := errors.line(error)) is None:
      raise
    print(f"cc-jax: {line}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("cc-jax: stopped; the same command goes on", file=sys.stderr)
    return 130
  return 0
