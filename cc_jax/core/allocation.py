# SPDX-License-Identifier: Apache-2.0
"""How this process asks the system for memory, where CPUs compute."""

import ctypes
import glob
import os

# Of <malloc.h>: parameters of glibc's allocator, and what they are set to.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
SETTINGS = {TRIM_THRESHOLD: -1, MMAP_MAX: 0, ARENA_MAX: 1}
# TPUs, and GPUs of both makers.
ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/kfd")


def keep() -> bool:
  """Memory that was freed stays with the process, to be used again.

  XLA asks for the memory of a program each time that it runs. glibc gives large
  pieces back to the system, which fills the next ones with zeros page by page:
  a third of the time of a block of transformers, forward and backward (8 x 256
  tokens of width 128: 51 of 155 ms on one core, nothing afterwards).

  From one arena, since the others get large pieces from the system in any case:
  to be called before JAX starts its threads, which would have others by then.

  Returns:
    Whether it is so: another C library has no such settings.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  return all([mallopt(name, value) for name, value in SETTINGS.items()])


def only_cpus() -> bool:
  """Whether JAX, which need not have started, will find nothing else here."""
  if named := os.environ.get("JAX_PLATFORMS"):
    return named == "cpu"
  return not any(glob.glob(pattern) for pattern in ACCELERATORS)
