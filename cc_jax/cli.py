# SPDX-License-Identifier: Apache-2.0
"""cc-jax STAGE --config=configs/NAME.py[:ARG] --workdir=DIR [--config.a.b=1].

Any field of the config is a flag. What a user can get wrong is one line on
stderr and exit status 2; jax is imported by the stages, so help is quick.
"""

from collections.abc import Callable, Sequence
import contextlib
import dis
import importlib
import logging
import os
import pathlib
import sys

import ml_collections

from cc_jax.core import config as configs
from cc_jax.core import files

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
  "report": ("cc_jax.stages.report", "one HTML page of a dataset"),
  "bench": ("cc_jax.stages.bench", "speed of the loader and the train step"),
}

DEFAULTS = {"quickstart": ("configs/quickstart.py:unet", "runs/quickstart")}

USAGE = """\
cc-jax STAGE --config=configs/NAME.py[:ARG] --workdir=DIR [options]

stages
{stages}

options
  --config.any.field=VALUE   sets a field of the config
  --hosts=N                  one of N processes that work together; off TPUs
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
  hosts, fields = 1, []
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
    ValueError: fewer or more processes came together than were announced (a
      pod whose hosts do not find each other would train that many copies), or
      a number in the environment is not one.
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
    return
  count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
  try:
    jax.distributed.initialize(num_processes=count, process_id=index)
  except ValueError as error:
    raise ValueError(
      f"--hosts={hosts}: JAX cannot find the other hosts ({error}); set "
      "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
    ) from error
  if jax.process_count() != hosts:
    raise ValueError(
      f"--hosts={hosts}, but {jax.process_count()} processes have joined"
    )


def _number(name: str) -> int | None:
  """A whole number from the environment; None where it is not set."""
  text = os.environ.get(name)
  if text is not None and not text.isdecimal():
    raise ValueError(f"{name}={text!r} in the environment: expected a number")
  return None if text is None else int(text)


def ours(error: ValueError) -> bool:
  """Whether a `raise` of this package or of a config raised it.

  What we raise says what to do; the rest, out of a library or out of an
  expression of ours that should not fail, is a bug and keeps its traceback, as
  everything does with CC_JAX_TRACEBACK=1.
  """
  if os.environ.get("CC_JAX_TRACEBACK"):
    return False
  trace = error.__traceback__
  while trace.tb_next:
    trace = trace.tb_next
  code = trace.tb_frame.f_code
  # What C raises (np.concatenate([]), say) has our own line as its last frame.
  if dis.opname[code.co_code[trace.tb_lasti]] != "RAISE_VARARGS":
    return False
  file = pathlib.Path(code.co_filename).resolve()
  package = pathlib.Path(__file__).resolve().parent
  return package in file.parents or file.parent.name == "configs"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a stage; the exit status is 2 for what a user can put right."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or {"-h", "--help", "help"} & set(argv):
    print(usage(), end="")
    return 0 if argv else 2
  try:
    stage, config, workdir, hosts = arguments(argv)
    start(config, hosts)
    run: Callable = importlib.import_module(STAGES[stage][0]).main
    run(config, workdir)
  except ValueError as error:
    if not ours(error):
      raise
    print(f"cc-jax: {error}", file=sys.stderr)
    return 2
  except OSError as error:
    if error.errno not in files.REFUSALS or os.environ.get("CC_JAX_TRACEBACK"):
      raise
    where = f"{error.filename}: " if error.filename else ""
    print(
      f"cc-jax: {where}{os.strerror(error.errno)}; "
      f"{files.REFUSALS[error.errno]}; then the same command goes on",
      file=sys.stderr,
    )
    return 2
  except FloatingPointError as error:
    print(f"cc-jax: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("cc-jax: stopped; the same command goes on", file=sys.stderr)
    return 130
  return 0
