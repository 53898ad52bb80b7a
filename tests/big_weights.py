# SPDX-License-Identifier: Apache-2.0
"""Weights of 1.5 GB, imported by a process that tells how much memory it took.

python tests/big_weights.py FILE numpy|mesh
"""

import json
import os
import resource
import sys

import jax
import ml_dtypes
import numpy as np

from cc_jax.core import convert, safetensors_files, sharding, tree

LAYERS, WIDTH, HIDDEN = 8, 2048, 8192
NAMES = (
  ("blocks", "h.{l}"),
  ("attn.q", "qkv[0/3]"),
  ("attn.k", "qkv[1/3]"),
  ("attn.v", "qkv[2/3]"),
)


def shapes():
  """A stacked and fused model: blocks of attention and MLP."""
  sizes = {
    **{f"attn.{name}": (WIDTH, WIDTH) for name in "qkv"},
    "mlp.up": (WIDTH, HIDDEN),
    "mlp.down": (HIDDEN, WIDTH),
  }
  return tree.unflatten(
    {
      f"blocks.{path}.kernel": jax.ShapeDtypeStruct((LAYERS, *size), "float32")
      for path, size in sizes.items()
    }
  )


def write(file):
  """Each tensor is full of a number of its own; returns the bytes of all."""
  tensors = {}
  for number, (name, shape) in enumerate(
    sorted(convert.export_shapes(shapes(), NAMES).items())
  ):
    read = lambda shape=shape, number=number: np.full(shape, number, np.float32)
    tensors[name] = safetensors_files.Tensor(shape, np.dtype("float32"), read)
  safetensors_files.write_file(file, tensors)
  return sum(tensor.bytes for tensor in tensors.values())


def peak():
  """The most bytes that this process has had in memory."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(file, where):
  """Prints by how much import and export in bfloat16 raised the peak."""
  mesh = sharding.make_mesh(data=1, fsdp=8)
  # What the first array costs is not the weights'.
  jax.block_until_ready(jax.device_put(np.ones(8), sharding.replicated(mesh)))
  put = convert.Leaf.read
  if where == "mesh":
    put = lambda leaf: jax.block_until_ready(sharding.make_array(leaf, mesh))
  before = peak()
  params = convert.import_weights(
    safetensors_files.open_file(file),
    shapes(),
    NAMES,
    dtype=ml_dtypes.bfloat16,
    put=put,
  )
  imported = peak()
  last = np.asarray(params["blocks"]["mlp"]["up"]["kernel"][-1, 0, 0])
  safetensors_files.write_file(
    f"{file}.half",
    convert.export_tensors(params, NAMES, ml_dtypes.bfloat16),
  )
  exported = peak()
  print(
    json.dumps(
      {
        "last": float(last),
        "size": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "imported": imported - before,
        "exported": exported - imported,
        "written": os.path.getsize(f"{file}.half"),
      }
    )
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
