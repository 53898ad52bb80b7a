# SPDX-License-Identifier: Apache-2.0
"""Small trees of arrays and the way through a file, for tests of tables."""

import jax
import numpy as np

from cc_jax.core import weight_files

NAMES = (
  ("blocks", "h.{l}"),
  ("attn.q", "attn.qkv[0/3]"),
  ("attn.k", "attn.qkv[1/3]"),
  ("attn.v", "attn.qkv[2/3]"),
  ("norm", "ln"),
)


def arrays(*names):
  """An array with values of its own for each (path, shape)."""
  rng = np.random.default_rng(0)
  return {name: rng.standard_normal(shape, np.float32) for name, shape in names}


def attention(*axes):
  """q, k and v of 4 -> 2, below stacked axes."""
  return {
    name: arrays(("kernel", (*axes, 4, 2)), ("bias", (*axes, 2)))
    for name in "qkv"
  }


def written(folder, tensors):
  weight_files.save_folder(str(folder), tensors, {}, stem="model")
  return weight_files.open_tensors(str(folder))


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
