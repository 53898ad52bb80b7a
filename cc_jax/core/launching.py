# SPDX-License-Identifier: Apache-2.0
"""What the environment of a TPU host must say, for a slice of a given type.

  python -m cc_jax.core.launching v4-128 [SLICES]

prints it as lines that a shell reads: how many hosts and devices there are, by
which `cc-jax` finds out that one is missing, and the one table of flags of
libtpu, the compiler. launch/on_host.sh calls it.
"""

from collections.abc import Sequence
import shlex
import sys

from cc_jax.core import hardware

# Gathers of weights that are split (fsdp) run beside the computation, on all.
GATHER = ("xla_enable_async_all_gather=true",)

# Sums of gradients too: Google's recipe for Stable Diffusion on v5p
# (github.com/AI-Hypercomputer/tpu-recipes, training/v5p).
REDUCE = (
  "xla_enable_async_all_reduce=true",
  "xla_enable_async_collective_permute=true",
  "xla_tpu_data_parallel_opt_different_sized_ops=true",
  "xla_tpu_enable_ag_backward_pipelining=true",
  "xla_tpu_enable_async_collective_fusion=true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
  "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
  "xla_tpu_enable_data_parallel_all_reduce_opt=true",
  "xla_tpu_overlap_compute_collective_tc=true",
)

# Of each kind of chip. Few: none was seen here to help on v4, v5e or v6e; the
# memory is what MaxText gives its kernels on v6e.
LIBTPU = {
  "v4": GATHER,
  "v5e": GATHER,
  "v5p": GATHER + REDUCE,
  "v6e": (*GATHER, "xla_tpu_scoped_vmem_limit_kib=98304"),
}

# Both cores of a chip are one device; for those that can be two.
MEGACORE = {"v4": "MEGACORE_DENSE", "v5p": "MEGACORE_DENSE"}


def options(chip: str) -> dict[str, str]:
  """The flags of a kind of chip, as a compiler takes them; others have none.

  >>> options("v4")
  {'xla_enable_async_all_gather': 'true'}
  """
  return dict(flag.split("=") for flag in LIBTPU.get(chip, ()))


def environment(name: str, slices: int = 1) -> dict[str, str]:
  """The variables of every host of so many slices.

  Args:
    name: of the slice, "v4-128".
    slices: joined by the data centre's network.

  Raises:
    ValueError: no such slice, or less than one.
  """
  if slices < 1:
    raise ValueError(f"slices={slices}; expected 1 or more")
  found = hardware.slice_of(name)
  kind = found.hardware
  made = {
    "CC_JAX_HOSTS": str(found.hosts * slices),
    "CC_JAX_DEVICES": str(found.chips * kind.devices * slices),
    "LIBTPU_INIT_ARGS": " ".join(f"--{flag}" for flag in LIBTPU[kind.name]),
  }
  if kind.name in MEGACORE:
    made["TPU_MEGACORE"] = MEGACORE[kind.name]
  return made


def main(argv: Sequence[str]) -> int:
  """Prints the lines; the exit status is 2 for a wrong command."""
  try:
    if len(argv) not in (1, 2) or not all(n.isdecimal() for n in argv[1:]):
      raise ValueError(f"{' '.join(argv)!r}; expected TYPE [SLICES]")
    made = environment(argv[0], *map(int, argv[1:]))
  except ValueError as error:
    print(f"launching: {error}", file=sys.stderr)
    return 2
  for name, value in made.items():
    print(f"export {name}={shlex.quote(value)}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
