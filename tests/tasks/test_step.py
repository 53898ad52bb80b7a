# SPDX-License-Identifier: Apache-2.0
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cc_jax.core import sharding
from cc_jax.models import attention, convolution, recompute
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks

B, D = 8, 4


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


def line(scale=1.0):
  """A task of one weight matrix, with noise from its key if batches ask."""

  def init(key):
    return {"line": {"kernel": jax.random.normal(key, (D, 1))}}

  def loss(params, batch, key):
    noise = batch["noise"][:, None] * jax.random.normal(key, (1,))
    error = batch["x"] @ params["line"]["kernel"] - batch["y"] + noise
    return scale * jnp.mean(error**2), {"abs": jnp.mean(jnp.abs(error))}

  return tasks.Task(
    init=init,
    loss=jax.tree_util.Partial(loss),
    features=("x", "y", "noise"),
    transform=None,
    weights={},
    parts={},
  )


def batch(noise=0.0):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, D)).astype(np.float32)
  return {
    "x": jnp.asarray(x),
    "y": jnp.asarray(x.sum(1, keepdims=True)),
    "noise": jnp.full(B, noise, jnp.float32),
  }


def run(count=1, task=None, rows=None, **fields):
  """States after each step from the first on, and their metrics."""
  fields = {f"train__{name}": value for name, value in fields.items()}
  task, rows = task or line(), rows or batch()
  config = tiny.config("/nowhere", "/nowhere", **fields)
  init, update = steps.make(config, task)
  update = jax.jit(update)
  states, metrics = [init(jax.random.key(0))], []
  for _ in range(count):
    state, found = update(states[-1], task.loss, rows)
    states.append(state)
    metrics.append({name: float(value) for name, value in found.items()})
  return states, metrics


def kernel(state, part="params"):
  return np.asarray(getattr(state, part)["line"]["kernel"])


def test_a_step_counts_and_lowers_the_loss():
  states, metrics = run(20, lr=0.05, warmup=0)
  assert [int(state.step) for state in states] == list(range(21))
  assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
  assert set(metrics[0]) == {"loss", "abs", "grad_norm", "param_norm", "lr"}


def test_weights_and_average_start_equal_in_buffers_of_their_own():
  (state,), _ = run(0)
  np.testing.assert_array_equal(kernel(state), kernel(state, "ema"))
  buffers = [
    leaf.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(state)
    if isinstance(leaf, jax.Array)
  ]
  assert len(set(buffers)) == len(buffers)


def test_norms_are_of_the_gradient_before_and_the_weights_after():
  (before, after), (metrics,) = run()
  x, y = batch()["x"], batch()["y"]
  gradient = 2 / B * x.T @ (x @ kernel(before) - y)
  assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(gradient))
  assert metrics["param_norm"] == pytest.approx(np.linalg.norm(kernel(after)))


def test_a_step_is_traced_with_the_ways_of_the_config():
  seen = []

  def loss(params, batch, key):
    seen.append(
      (attention.choice(), convolution.owns(), recompute.recomputes())
    )
    return line().loss(params, batch, key)

  task = line()._replace(loss=jax.tree_util.Partial(loss))
  run(1, task)
  run(1, task, attention="einsum", own_convolutions=False, recompute=False)
  assert seen == [("auto", True, True), ("einsum", False, False)]
  with pytest.raises(ValueError, match="unknown attention 'flash'"):
    run(1, task, attention="flash")


def test_the_learning_rate_is_the_schedules():
  _, metrics = run(4, lr=0.5, warmup=2, schedule="linear", steps=6)
  np.testing.assert_allclose(
    [row["lr"] for row in metrics], [0, 0.25, 0.5, 0.375], rtol=1e-6
  )


def test_the_rate_may_grow_with_the_root_of_the_batch():
  """PixArt-alpha's: 2e-5 for 256 is 1.33e-4 for its batches of 11,392."""
  _, metrics = run(1, lr=2e-5, warmup=0, batch_size=11_392, lr_batch=256)
  assert float(metrics[0]["lr"]) == pytest.approx(1.334e-4, rel=1e-3)


def test_the_key_of_a_step_is_the_seeds_with_its_number():
  states, _ = run(2, rows=batch(noise=1.0), lr=0.0, warmup=0)
  config = tiny.config("/nowhere", "/nowhere")
  _, metrics = run(2, rows=batch(noise=1.0), lr=0.0, warmup=0)
  for step in range(2):
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    loss, _ = line().loss(states[0].params, batch(noise=1.0), key)
    assert metrics[step]["loss"] == pytest.approx(float(loss), rel=1e-6)
  assert metrics[0]["loss"] != metrics[1]["loss"]


def test_the_average_copies_up_to_its_start_and_then_decays():
  states, _ = run(4, lr=0.1, warmup=0, ema_start=2, ema_decay=0.75)
  for state in states[:3]:
    np.testing.assert_array_equal(kernel(state), kernel(state, "ema"))
  for before, after in itertools.pairwise(states[2:]):
    wanted = 0.75 * kernel(before, "ema") + 0.25 * kernel(after)
    np.testing.assert_allclose(kernel(after, "ema"), wanted, rtol=1e-6)


def test_a_young_average_forgets_faster():
  states, _ = run(1, lr=0.1, warmup=0, ema_warmup=True, ema_decay=0.99)
  before, after = states
  wanted = kernel(before) * 2 / 11 + kernel(after) * 9 / 11
  np.testing.assert_allclose(kernel(after, "ema"), wanted, rtol=1e-5)


def test_clipping_bounds_what_reaches_the_optimiser():
  # Adam's mean of gradients is a tenth of the first one it sees.
  (_, state), (metrics,) = run(task=line(100.0), clip=1.0)
  assert metrics["grad_norm"] > 10
  seen = optim_norm(state) / 0.1
  assert seen == pytest.approx(1, rel=1e-5)
  (_, state), (metrics,) = run(task=line(100.0), clip=0.0)
  assert optim_norm(state) / 0.1 == pytest.approx(metrics["grad_norm"])


def optim_norm(state):
  return float(jnp.linalg.norm(state.opt["adam"].mu["line"]["kernel"]))


def test_micro_batches_give_the_update_of_the_batch_where_noise_has_no_part():
  whole, metrics = run(3, lr=0.05, warmup=0)
  for accumulate in (2, 4, 8):
    parts, found = run(3, lr=0.05, warmup=0, accumulate=accumulate)
    np.testing.assert_allclose(kernel(parts[-1]), kernel(whole[-1]), rtol=1e-5)
    for row, other in zip(found, metrics, strict=True):
      assert row == pytest.approx(other, rel=1e-5)


def test_micro_batches_have_noise_of_their_own():
  rows = batch(noise=1.0)
  config = tiny.config("/nowhere", "/nowhere")
  (before, _), (metrics,) = run(rows=rows, accumulate=2)
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  losses = [
    line().loss(
      before.params,
      {name: value[part::2] for name, value in rows.items()},
      jax.random.fold_in(key, part),
    )[0]
    for part in range(2)
  ]
  assert metrics["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-6)


def test_an_update_that_ruins_the_weights_shows_in_the_same_step():
  _, metrics = run(2, lr=3e38, warmup=0)
  assert np.isfinite(metrics[0]["loss"])
  assert not np.isfinite(metrics[0]["param_norm"])


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"batch_size": 12}, "batch_size=12 does not divide over 8 devices$"),
    ({"batch_size": 0}, "batch_size=0 does not divide over 8 devices$"),
    (
      {"batch_size": 24, "accumulate": 2},
      "batch_size=24 does not divide over 8 devices times accumulate=2",
    ),
    ({"accumulate": 0}, "train.accumulate=0; expected 1 or more"),
    ({"steps": 0}, "train.steps=0"),
    ({"keep": 0}, "train.keep=0"),
  ],
)
def test_numbers_that_do_not_fit_are_refused(fields, words):
  fields = {f"train__{name}": value for name, value in fields.items()}
  config = tiny.config("/nowhere", "/nowhere", **fields)
  with pytest.raises(ValueError, match=words):
    steps.check(config.train, sharding.make_mesh())


def test_a_batch_divides_over_the_devices_that_hold_different_rows():
  config = tiny.config("/nowhere", "/nowhere", train__batch_size=4)
  steps.check(config.train, sharding.make_mesh(data=2, fsdp=2, tensor=2))


def test_the_sharded_step_is_that_of_one_device(data, monkeypatch):
  # So that these small arrays are split at all.
  monkeypatch.setattr(sharding, "SMALL", 64)
  # Adam divides by the size of a gradient; this is above what sums in
  # another order change in the smallest.
  config = tiny.config(data, data, train__eps=1e-3, train__warmup=0)
  task = tasks.make(config)
  init, update = steps.make(config, task)
  source = tasks.source(task, config.train.folders, "train")
  examples = [source[row] for row in range(8)]
  rows = {
    name: np.stack([example[name] for example in examples])
    for name in task.features
  }
  found = []
  for mesh in (
    sharding.make_mesh(devices=jax.devices()[:1]),
    sharding.make_mesh(data=2, fsdp=2, tensor=2),
  ):
    with jax.set_mesh(mesh), tiny.compiled_once(data):
      key = jax.random.key(0)
      shapes = sharding.with_layouts(jax.eval_shape(init, key), mesh, True)
      layouts = jax.tree.map(lambda leaf: leaf.sharding, shapes)
      state = jax.jit(init, out_shardings=layouts)(key)
      arrays = sharding.put_batch(rows, mesh)
      loss = jax.device_put(task.loss, sharding.layouts(task.loss, mesh))
      compiled = steps.compile_update(update, state, loss, arrays)
      found.append(compiled(state, loss, arrays))
      assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  (one, one_metrics), (sharded, metrics) = found
  split = [x for x in jax.tree.leaves(sharded) if not x.is_fully_replicated]
  assert len(split) > 100
  # Averages and moments are split over `data`, too, and weights are not.
  for part, ways in ((sharded.params, 4), (sharded.ema, 8), (sharded.opt, 8)):
    shares = [
      leaf.size // leaf.addressable_shards[0].data.size
      for leaf in jax.tree.leaves(part)
    ]
    assert max(shares) == ways
  for name, value in one_metrics.items():
    assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5)
  # Adam's means are the gradients, times 0.1.
  moments = [state.opt["adam"].mu for state in (one, sharded)]
  assert tiny.largest_difference(*moments) < 1e-6
  assert tiny.largest_difference(one.params, sharded.params) < 1e-5
  assert tiny.largest_difference(one.ema, sharded.ema) < 1e-5


def test_optimiser_states_have_the_same_names_with_and_without_clipping():
  (with_, _), _ = run(clip=1.0)
  (without, _), _ = run(clip=0.0)
  assert tiny.leaves(with_).keys() == tiny.leaves(without).keys()


def test_adams_first_moment_may_be_bfloat16():
  (state, _), _ = run(moments="bfloat16")
  adam = state.opt["adam"]
  assert {x.dtype for x in jax.tree.leaves(adam.mu)} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(adam.nu)} == {jnp.dtype("float32")}
  with pytest.raises(ValueError, match=r"train\.moments 'float16'"):
    run(moments="float16")
