# SPDX-License-Identifier: Apache-2.0
"""Networks without their weights, for programs that are compiled and not run.

A plan of a run needs the shapes of all arrays and the values of none, so that
no file of weights has to be here and none is downloaded.
"""

from contextlib import AbstractContextManager
import contextvars
from typing import Any

import jax
import jax.numpy as jnp

from cc_jax.core import scoped, sharding
from cc_jax.models import kinds

_UNREAD = contextvars.ContextVar("unread", default=False)


def weights() -> AbstractContextManager[None]:
  """Inside, `hub.load` and `hub.open` give shapes in place of arrays.

  A network is known by its config alone then: a preset serves as well as a row
  of models/published.py.
  """
  return scoped.holding(_UNREAD, True)


def are_weights() -> bool:
  """Whether this runs inside `weights`."""
  return _UNREAD.get()


def shapes(
  kind: str, config: Any, dtype: Any, mesh: jax.sharding.Mesh | None
) -> dict[str, Any]:
  """The shapes of a network's weights, with layouts where a mesh is given."""
  made = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)),
    kinds.structure(kind, config)[1],
  )
  return made if mesh is None else sharding.with_layouts(made, mesh)
