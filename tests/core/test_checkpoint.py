# SPDX-License-Identifier: Apache-2.0
"""Checkpoints come back bit for bit, on other meshes, and only if they fit."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.core import checkpoint, optim

PLACE = {"next_index": 7, "global_batch": 64}
META = {"model": {"preset": "TINY", "widths": [8, 16]}}


class State(NamedTuple):
  step: Any
  params: Any
  ema: Any
  opt: Any


def make_state(seed=0, depth=8):
  def init(key):
    kernel = jax.random.normal(key, (depth, 16, 8))
    half = jax.random.normal(key, (24, 8)).astype(jnp.bfloat16)
    params = {
      "blocks": {"attn": {"q": {"kernel": kernel, "bias": kernel[:, 0]}}},
      "token": {"embedding": half},
    }
    grads = jax.tree.map(lambda x: x * 0.1, params)
    tx = optim.optimizer(1e-3, decay="matrices")
    _, opt = tx.update(grads, tx.init(params), params)
    ema = jax.tree.map(lambda x: x * 0.5, params)
    return State(jnp.int32(12), params, ema, opt)

  return jax.jit(init)(jax.random.key(seed))


def place(state, mesh, split):
  """Puts the axes of every array that divide over mesh axes, in order."""

  def sharding(x):
    names, axes = [], list(split)
    for size in x.shape:
      fits = axes and size % mesh.shape[axes[0]] == 0
      names.append(axes.pop(0) if fits else None)
    return jax.NamedSharding(mesh, jax.P(*names))

  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)),
    state,
  )


def make_mesh(**sizes):
  kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder that holds steps 6 and 12 of a state on fsdp=8."""
  state = make_state()
  abstract = place(state, make_mesh(fsdp=8), ["fsdp"])
  state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract))
  folder = tmp_path_factory.mktemp("run") / "checkpoints"
  manager = checkpoint.manager(folder, keep=2)
  checkpoint.save(manager, 6, make_state(seed=1), PLACE, META)
  checkpoint.save(manager, 12, state, PLACE, META)
  checkpoint.close(manager)
  return folder, state


def reopen(folder, abstract, step=None):
  manager = checkpoint.manager(folder)
  out = checkpoint.restore(manager.folder, abstract, step)
  checkpoint.close(manager)
  return out


def test_a_state_comes_back_bit_for_bit_on_another_mesh(saved):
  folder, state = saved
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  abstract = place(state, mesh, ["fsdp", "tensor"])
  restored, where = reopen(folder, abstract)
  assert where == PLACE
  assert isinstance(restored, State)
  assert_same(state, restored)
  for leaf, wanted in zip(
    jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True
  ):
    assert leaf.sharding == wanted.sharding


def test_a_restored_optimiser_goes_on(saved):
  folder, state = saved
  restored, _ = reopen(folder, place(state, make_mesh(fsdp=2), ["fsdp"]))
  tx = optim.optimizer(1e-3, decay="matrices")
  state, restored = jax.device_get((state, restored))
  grads = jax.tree.map(np.ones_like, state.params)
  expected, _ = tx.update(grads, state.opt, state.params)
  got, _ = tx.update(grads, restored.opt, restored.params)
  assert_same(expected, got)


def test_on_disk_are_plain_dicts(saved):
  folder, _ = saved
  opt = checkpoint.load(folder, "opt")
  assert set(opt) == {"adam", "rate"}
  assert set(opt["adam"]) == {"count", "mu", "nu"}


def test_an_earlier_step_can_be_restored(saved):
  folder, state = saved
  abstract = place(state, make_mesh(fsdp=1), [])
  restored, _ = reopen(folder, abstract, step=6)
  assert_same(restored.params, make_state(seed=1).params)
  with pytest.raises(ValueError, match=r"no checkpoint of step 7 .* is 12"):
    reopen(folder, abstract, step=7)


def test_one_part_is_loaded_without_the_others(saved):
  folder, state = saved
  assert_same(checkpoint.load(folder, "ema"), jax.device_get(state.ema))
  abstract = place(state.ema, make_mesh(data=4), [])
  loaded = checkpoint.load(folder, "ema", abstract)
  assert_same(loaded, state.ema)
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state.params
  )
  loaded = checkpoint.load(folder, "params", half)
  expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
  assert_same(loaded, jax.device_get(expected))
  with pytest.raises(ValueError, match="no 'avg'; it has ema, opt, params, st"):
    checkpoint.load(folder, "avg")


def test_meta_is_read_alone(saved):
  assert checkpoint.meta(saved[0]) == META


def test_a_checkpoint_of_another_model_is_one_line_that_names_paths(saved):
  folder, state = saved
  other = place(make_state(depth=4), make_mesh(fsdp=1), [])
  with pytest.raises(ValueError, match="is of another model") as error:
    reopen(folder, other)
  text = str(error.value)
  assert "\n" not in text
  assert (
    "ema.blocks.attn.q.bias expected float32[4, 8], got float32[8, 8]" in text
  )
  assert "and 5 more" in text

  abstract = place(state, make_mesh(fsdp=1), [])
  no_ema = abstract._replace(ema=None)
  with pytest.raises(ValueError, match=r"expected nothing, got float32\[8, 16"):
    reopen(folder, no_ema)
  wrong = jax.ShapeDtypeStruct((), jnp.float32)
  with pytest.raises(ValueError, match=r"step expected float32\[\], got int32"):
    reopen(folder, abstract._replace(step=wrong))
  more = abstract._replace(params={**abstract.params, "new": wrong})
  with pytest.raises(ValueError, match=r"params.new .* got nothing"):
    reopen(folder, more)


def test_no_checkpoint_is_an_error_and_no_silent_start(tmp_path):
  assert checkpoint.latest_step(tmp_path / "missing") is None
  assert checkpoint.latest_step(tmp_path) is None
  with pytest.raises(ValueError, match="no checkpoint in"):
    checkpoint.load(tmp_path / "missing")
  with pytest.raises(ValueError, match="no checkpoint in"):
    reopen(tmp_path, {"step": jax.ShapeDtypeStruct((), jnp.int32)})


def test_damaged_arrays_are_an_error(tmp_path):
  manager = checkpoint.manager(tmp_path, async_=False)
  checkpoint.save(manager, 12, {"params": np.ones(3)}, PLACE, META)
  checkpoint.close(manager)
  for file in (tmp_path / "12" / "state").rglob("d/*"):
    file.write_bytes(b"")
  with pytest.raises(ValueError, match=r"12 is damaged: .*delete what") as e:
    checkpoint.load(tmp_path, "params")
  assert "\n" not in str(e.value)


def test_only_the_last_are_kept_and_no_step_is_saved_twice(tmp_path):
  manager = checkpoint.manager(tmp_path, keep=2)
  state = {"step": np.int32(0)}
  for step in (1, 2, 3):
    assert checkpoint.save(manager, step, state, PLACE, META)
  assert not checkpoint.save(manager, 3, state, PLACE, META)
  with pytest.raises(ValueError, match=r"step 2 in .* later step 3"):
    checkpoint.save(manager, 2, state, PLACE, META)
  checkpoint.close(manager)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
  with pytest.raises(ValueError, match="keep=0"):
    checkpoint.manager(tmp_path, keep=0)


def test_multiples_of_a_number_of_steps_are_kept_beside_the_newest(tmp_path):
  manager = checkpoint.manager(tmp_path, keep=2, every=10)
  for step in (5, 10, 15, 20, 25, 30):
    checkpoint.save(manager, step, {"step": np.int32(step)}, PLACE, META)
  checkpoint.close(manager)
  assert checkpoint.steps(tmp_path) == [10, 20, 25, 30]
  with pytest.raises(ValueError, match="every=-1"):
    checkpoint.manager(tmp_path, every=-1)


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jnp.zeros((4096, 1024))
  manager = checkpoint.manager(tmp_path, keep=None)
  for number in range(3):
    checkpoint.save(manager, number, {"params": x}, PLACE, META)
    for _ in range(5):
      x = step(x)
  checkpoint.close(manager)
  for number in range(3):
    loaded = checkpoint.load(tmp_path, "params", step=number)
    assert np.all(loaded == 5 * number)


def test_a_save_that_was_killed_leaves_the_one_before(tmp_path):
  code = f"""
    import jax.numpy as jnp, os, threading, time
    from cc_jax.core import checkpoint
    manager = checkpoint.manager({str(tmp_path)!r})
    params = jnp.arange(1e7).reshape(1000, -1)
    for step in range(1, 1000):
      checkpoint.save(manager, step, {{"params": params + step}}, {{}}, {{}})
      print(step, flush=True)
  """
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE
  )
  for _ in range(3):
    process.stdout.readline()
  partial = []
  while not partial:
    partial = [p for p in tmp_path.iterdir() if not p.name.isdigit()]
  process.kill()
  process.wait()
  process.stdout.close()

  # What a copy that broke off would leave.
  (tmp_path / "5000" / "state").mkdir(parents=True)
  latest = checkpoint.latest_step(tmp_path)
  assert 1 <= latest < 1000
  params = checkpoint.load(tmp_path, "params")
  assert params[0, 0] == latest
  assert params[-1, -1] == np.float32(1e7 - 1) + latest


PROCESS = """
import os, signal, sys, time
port, rank, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
jax.distributed.initialize(f"localhost:{port}", 2, rank)
import jax.numpy as jnp
from cc_jax.core import checkpoint

mesh = jax.make_mesh(
  (4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
)
split = jax.NamedSharding(mesh, jax.P("fsdp"))
like = jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=split)
manager = checkpoint.manager(folder)
state, place = checkpoint.restore(manager.folder, {"params": {"w": like}})
assert place == {"next_index": 7, "global_batch": 64}
double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree))
checkpoint.save(manager, 2, double(state), {"next_index": 9}, {})
checkpoint.wait(manager)
if rank == 0:
  os.kill(os.getpid(), signal.SIGTERM)
step = 3
while not checkpoint.preempted(manager, step):
  step += 1
  time.sleep(0.02)
  assert step < 1000
checkpoint.save(manager, step, double(state), {"next_index": step}, {})
checkpoint.close(manager)
print(step)
"""


def test_two_hosts_read_what_one_wrote_and_stop_at_the_same_step(tmp_path):
  w = np.arange(48, dtype=np.float32).reshape(16, 3)
  manager = checkpoint.manager(tmp_path)
  checkpoint.save(manager, 1, {"params": {"w": w}}, PLACE, META)
  checkpoint.close(manager)

  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(port), str(rank), str(tmp_path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(2)
  ]
  told = [process.communicate(timeout=100) for process in processes]
  for process, (_, error) in zip(processes, told, strict=True):
    assert process.returncode == 0, error
  # Gloo talks on stdout, too.
  steps = {int(out.splitlines()[-1]) for out, _ in told}
  assert len(steps) == 1
  assert checkpoint.latest_step(tmp_path) == max(steps) > 2

  like = place({"params": {"w": w}}, make_mesh(fsdp=8), ["fsdp"])
  restored, where = reopen(tmp_path, like, step=2)
  assert where == {"next_index": 9}
  np.testing.assert_array_equal(restored["params"]["w"], 2 * w)


def test_sigterm_is_seen_and_given_back(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  manager = checkpoint.manager(tmp_path)
  assert not checkpoint.preempted(manager, 1)
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.05)
  assert checkpoint.preempted(manager, 2)
  checkpoint.close(manager)
  assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_is_said_on_the_terminal(tmp_path):
  code = f"""
    import jax, jax.numpy as jnp
    from cc_jax.core import checkpoint
    manager = checkpoint.manager({str(tmp_path)!r}, keep=1)
    for step in (1, 2):
      checkpoint.save(manager, step, {{"params": jnp.ones(3)}}, {{}}, {{}})
    checkpoint.wait(manager)
    like = {{"params": jax.ShapeDtypeStruct((3,), jnp.float32)}}
    checkpoint.restore(manager.folder, like)
    checkpoint.close(manager)
    checkpoint.load({str(tmp_path)!r}, "params")
  """
  done = subprocess.run(
    [sys.executable, "-W", "default", "-c", textwrap.dedent(code)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout + done.stderr == ""
