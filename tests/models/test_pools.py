# SPDX-License-Identifier: Apache-2.0
"""Pooling beside torch's."""

import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
from torch.nn import functional as F

from cc_jax.models import pools

THEIRS = {
  "halve": lambda x: F.max_pool2d(x, 3, 2),
  "maximum": lambda x: F.max_pool2d(x, 3, 1, 1),
  "average": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (17, 12)])
def test_pooling_is_that_of_torch(name, size):
  if name == "halve" and min(size) < 3:
    pytest.skip("no window fits")
  x = np.random.default_rng(0).standard_normal((2, *size, 5), np.float32)
  theirs = THEIRS[name](torch.from_numpy(x).permute(0, 3, 1, 2))
  parity.check(
    getattr(pools, name)(jnp.asarray(x)),
    theirs.permute(0, 2, 3, 1),
    parity.LAYER,
  )
