# SPDX-License-Identifier: Apache-2.0
"""The optimiser against torch's; average and gradients in closed form."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from cc_jax.core import optim


def weights(seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(0, scale, shape).astype(np.float32)
  return {
    "block": {
      "attn": {"kernel": draw(8, 4), "bias": draw(4)},
      "norm": {"scale": draw(4)},
    },
    "token": {"embedding": draw(6, 4)},
  }


def quadratic(params, batch, key):
  del key
  out = batch["x"] @ params["kernel"]
  loss = jnp.mean((out - batch["y"]) ** 2)
  return loss, {"loss": loss, "mean": jnp.mean(out)}


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_adamw_equals_torch_for_twenty_steps(decay):
  params = weights()
  rate = optim.schedule("cosine", 1e-2, warmup=5, steps=20, final=0.0)
  tx = optim.optimizer(rate, weight_decay=0.1, decay=decay, clip=1.0)
  state = tx.init(params)

  leaves, treedef = jax.tree.flatten(params)
  theirs = [torch.nn.Parameter(torch.tensor(x)) for x in leaves]
  decayed = [
    p
    for p, m in zip(
      theirs, jax.tree.leaves(optim.decay_mask(params)), strict=True
    )
    if m or decay == "all"
  ]
  free = [p for p in theirs if not any(p is q for q in decayed)]
  groups = [{"params": decayed, "weight_decay": 0.1}]
  if free:
    groups.append({"params": free, "weight_decay": 0.0})
  adam = torch.optim.AdamW(groups, lr=1e-2)
  plan = transformers.get_scheduler("cosine", adam, 5, 20)

  for step in range(20):
    # Every other gradient is under the limit, where clipping does nothing.
    grads = weights(step + 1, scale=1.0 if step % 2 else 0.01)
    updates, state = tx.update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    for p, g in zip(theirs, jax.tree.leaves(grads), strict=True):
      p.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    adam.step()
    plan.step()

  expected = jax.tree.unflatten(treedef, [p.detach().numpy() for p in theirs])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6),
    params,
    expected,
  )


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_schedules_equal_those_of_transformers(name):
  ours = optim.schedule(name, 3e-4, warmup=10, steps=100)
  optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
  theirs = transformers.get_scheduler(
    "constant_with_warmup" if name == "constant" else name, optimiser, 10, 100
  )
  for step in range(100):
    expected = theirs.get_last_lr()[0]
    np.testing.assert_allclose(ours(step), expected, rtol=1e-5, atol=1e-10)
    optimiser.step()
    theirs.step()


def test_a_schedule_ends_at_its_final_fraction_and_stays():
  for name in ["cosine", "linear"]:
    rate = optim.schedule(name, 2.0, warmup=0, steps=10, final=0.1)
    np.testing.assert_allclose([rate(0), rate(10), rate(99)], [2.0, 0.2, 0.2])


def test_wrong_options_are_named():
  with pytest.raises(ValueError, match=r"unknown schedule 'cosin'; .*linear"):
    optim.schedule("cosin", 1.0, 0, 10)
  with pytest.raises(ValueError, match=r"warmup=10 does not fit .* steps=10"):
    optim.schedule("linear", 1.0, 10, 10)
  with pytest.raises(ValueError, match="unknown decay 'kernels'"):
    optim.optimizer(1e-3, decay="kernels")
  with pytest.raises(ValueError, match="clip=0"):
    optim.optimizer(1e-3, clip=0.0)
  with pytest.raises(ValueError, match="no leaf named 'kernel'"):
    optim.optimizer(1e-3, decay="matrices").init({"w": jnp.ones(3)})


def test_the_state_has_the_same_leaves_whatever_the_options():
  params = weights()
  plain = optim.optimizer(1e-3, clip=None, weight_decay=0.0).init(params)
  full = optim.optimizer(1e-3, clip=1.0, decay="matrices").init(params)
  paths = lambda tree: [p for p, _ in jax.tree.leaves_with_path(tree)]
  assert paths(plain) == paths(full)


def test_the_first_moment_can_be_stored_in_half_the_space():
  state = optim.optimizer(1e-3, mu_dtype="bfloat16").init(weights())
  assert state["adam"].mu["token"]["embedding"].dtype == jnp.bfloat16
  assert state["adam"].nu["token"]["embedding"].dtype == jnp.float32


def test_the_average_copies_until_its_start_then_moves_every_so_often():
  ema = {"w": jnp.zeros(())}
  seen = []
  for step in range(1, 9):
    ema = optim.ema_update(
      ema, {"w": jnp.float32(step)}, step, decay=0.5, start=3, every=2
    )
    seen.append(float(ema["w"]))
  # Copies at 1, 2, 3; moves at 5 and 7; rests at 4, 6, 8.
  assert seen == [1.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.5, 5.5]


def test_the_average_of_constant_weights_is_exact_after_many_steps():
  params = {"w": jnp.float32(1.0)}

  def body(step, ema):
    return optim.ema_update(ema, params, step, decay=0.999, start=0)

  ema = jax.lax.fori_loop(1, 30_001, body, {"w": jnp.float32(0.5)})
  np.testing.assert_allclose(ema["w"], 1.0, rtol=5e-5)
  still = optim.ema_update(params, params, 7, decay=0.9999)
  assert still["w"] == 1.0


def test_a_young_average_forgets_faster():
  ema = {"w": jnp.zeros(())}
  params = {"w": jnp.ones(())}
  first = optim.ema_update(ema, params, 11, decay=0.9999, start=10, warmup=True)
  np.testing.assert_allclose(first["w"], 9 / 11, rtol=1e-6)
  late = optim.ema_update(ema, params, 10**7, decay=0.9999, warmup=True)
  np.testing.assert_allclose(late["w"], 1e-4, rtol=1e-5)


def test_accumulated_gradients_equal_those_of_the_whole_batch():
  rng = np.random.default_rng(0)
  params = {"kernel": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
  batch = {
    "x": jnp.asarray(rng.normal(size=(12, 5)), jnp.float32),
    "y": jnp.asarray(rng.normal(size=(12, 3)), jnp.float32),
  }
  key = jax.random.key(0)
  whole = jax.jit(optim.value_and_grad(quadratic))(params, batch, key)
  parts = jax.jit(optim.value_and_grad(quadratic, 4))(params, batch, key)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    whole,
    parts,
  )


def test_micro_batches_have_keys_of_their_own():
  def loss(params, batch, key):
    noise = jax.random.normal(key)
    return jnp.sum(params["w"]) * 0 + jnp.mean(batch), {"noise": noise}

  key = jax.random.key(3)
  (_, metrics), _ = optim.value_and_grad(loss, 4)(
    {"w": jnp.ones(2)}, jnp.ones((8,)), key
  )
  draws = [jax.random.normal(jax.random.fold_in(key, a)) for a in range(4)]
  np.testing.assert_allclose(metrics["noise"], np.mean(draws), rtol=1e-6)


def test_gradients_of_half_precision_weights_are_summed_in_float32():
  params = {"kernel": jnp.ones((5, 3), jnp.bfloat16)}
  batch = {"x": jnp.ones((4, 5)), "y": jnp.zeros((4, 3))}
  for accumulate in (1, 2):
    _, grads = optim.value_and_grad(quadratic, accumulate)(
      params, batch, jax.random.key(0)
    )
    assert grads["kernel"].dtype == jnp.float32


def test_a_batch_that_does_not_divide_is_an_error():
  batch = {"x": jnp.ones((10, 5)), "y": jnp.ones((10, 3))}
  with pytest.raises(ValueError, match=r"batch of 10 .* accumulate=4"):
    optim.value_and_grad(quadratic, 4)(
      {"kernel": jnp.ones((5, 3))}, batch, jax.random.key(0)
    )
  with pytest.raises(ValueError, match="accumulate=0"):
    optim.value_and_grad(quadratic, 0)


def test_micro_batches_move_no_rows_between_devices():
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  place = lambda *names: jax.NamedSharding(mesh, jax.P(*names))
  batch = {
    "x": jax.ShapeDtypeStruct((32, 5), jnp.float32, sharding=place("data")),
    "y": jax.ShapeDtypeStruct((32, 3), jnp.float32, sharding=place("data")),
  }
  params = {
    "kernel": jax.ShapeDtypeStruct((5, 3), jnp.float32, sharding=place())
  }
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=place())
  step = jax.jit(optim.value_and_grad(quadratic, 4))
  text = step.lower(params, batch, key).compile().as_text()
  assert "all-reduce" in text
  for moves in ("all-to-all", "all-gather", "collective-permute"):
    assert moves not in text


def test_tracing_takes_calls_linear_in_the_number_of_leaves():
  def calls(leaves):
    params = {str(i): {"kernel": jnp.ones(2)} for i in range(leaves)}
    tx = optim.optimizer(1e-3, decay="matrices")

    def step(params, opt, ema):
      updates, opt = tx.update(params, opt, params)
      params = jax.tree.map(jnp.add, params, updates)
      return params, opt, optim.ema_update(ema, params, 5, decay=0.99)

    opt, made = tx.init(params), [0]

    def count(frame, event, argument):
      made[0] += event in ("call", "c_call")

    # Calls and not seconds: a busy machine changes seconds.
    sys.setprofile(count)
    try:
      jax.jit(step).lower(params, opt, params)
    finally:
      sys.setprofile(None)
    return made[0]

  calls(10)
  assert calls(400) < 10 * calls(50)
