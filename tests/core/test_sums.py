# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.core import sums

RNG = np.random.default_rng(0)
ARRAYS = {
  "float": RNG.standard_normal((6, 4, 8)).astype(np.float32),
  "half": RNG.standard_normal((5, 8)).astype(jnp.bfloat16),
  "count": np.int32(-3),
  "flags": np.array([True, False, True]),
  "none": np.zeros((0, 3), np.float32),
}

# In a process of its own, since JAX finds the error again when that ends.
FAILING = """
import jax
import numpy as np
from cc_jax.core import sums

def call(index):
  if index == 7:
    raise ValueError("it is lost")
  return np.float32(1)

def one():
  index = jax.lax.axis_index("data")
  return jax.pure_callback(call, jax.ShapeDtypeStruct((), "float32"), index)

jax.config.update("jax_num_cpu_devices", 8)
mesh = jax.make_mesh((8,), ("data",))
kinds = dict(mesh=mesh, in_specs=(), out_specs=jax.P(), check_vma=False)
array = jax.jit(jax.shard_map(one, **kinds))()
try:
  print("a sum", sums.sums({"array": array}))
except jax.errors.JaxRuntimeError as error:
  print("no sum", str(error).splitlines()[-1])
"""


def test_a_sum_is_of_bits_weighed_by_their_places():
  bits = ARRAYS["float"].reshape(-1).view(np.uint32).tolist()
  expected = sum(b * (2 * i + 1) for i, b in enumerate(bits)) % 2**32
  assert sums.sums(ARRAYS)["float"] == expected
  assert sums.sums({"x": np.array([-0.0], np.float32)}) == {"x": 2**31}
  assert sums.sums({"x": np.array([7, 5], np.int32)}) == {"x": 7 + 3 * 5}


@pytest.mark.parametrize("layout", [(), ("fsdp",), (None, "fsdp")])
def test_sums_do_not_depend_on_where_an_array_lies(layout):
  kinds = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=kinds)

  def put(array):
    fits = array.ndim == 3
    spec = jax.P(*layout) if fits else jax.P()
    return jax.device_put(array, jax.NamedSharding(mesh, spec))

  there = {name: put(array) for name, array in ARRAYS.items()}
  assert sums.sums(there) == sums.sums(ARRAYS)


def test_an_array_that_failed_on_one_device_has_no_sum():
  done = subprocess.run(
    [sys.executable, "-c", FAILING], capture_output=True, text=True
  )
  assert done.stdout == "no sum ValueError: it is lost\n", done.stderr


def test_any_bit_and_any_two_places_change_the_sum():
  array = ARRAYS["float"]
  whole = sums.sums({"x": array})
  for bit in range(32):
    changed = array.copy()
    changed.reshape(-1).view(np.uint32)[bit] ^= np.uint32(1 << bit)
    assert sums.sums({"x": changed}) != whole
  swapped = array[:, ::-1]
  assert sums.sums({"x": swapped}) != whole
