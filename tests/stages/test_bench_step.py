# SPDX-License-Identifier: Apache-2.0
"""cc-jax bench on train steps, and the same ones in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny

from cc_jax.core import config as configs
from cc_jax.core import sharding, tree
from cc_jax.models import hub, unread
from cc_jax.pipelines import ablation, reference_training
from cc_jax.stages import bench
from cc_jax.tasks import denoiser
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks


def small(workdir, **fields):
  """A bench of the train step of a tiny U-Net, on made-up latents."""
  fields = {
    "bench__steps": 3,
    "bench__loader_seconds": 0.0,
    "bench__repeats": 1,
    "train__folders": (),
    "train__warmup": 0,
  } | fields
  made = tiny.config("no data", workdir, **fields)
  with made.unlocked(), made.ignore_type():
    made.model.vae = tiny.VAE
  return made


def test_a_step_is_measured_beside_torch(tmp_path):
  found = bench.main(small(tmp_path, bench__compare="torch"), str(tmp_path))
  seconds, theirs = found["step_seconds"], found["torch_step_seconds"]
  assert found["speedup"] == theirs / seconds
  assert found["images_per_second"] == pytest.approx(8 / seconds)
  assert found["torch_images_per_second"] == pytest.approx(8 / theirs)
  assert found["tflop_per_step"] > 0
  assert found["gib_per_device"] > 0
  # Of what a product of matrices takes here, as no peak of a CPU is known.
  rate = found["matmul_gflop_per_second"] / 1e3
  share = found["tflop_per_step"] / seconds / rate
  assert found["share_of_matmul"] == pytest.approx(share)
  for name in ("input_stall", "saving_stall"):
    assert 0 <= found[name] < 1


@pytest.mark.slow
def test_an_ablation_measures_each_step_on_top_of_those_before(
  tmp_path, capsys
):
  made = small(tmp_path, ablate=True)
  # What a run on a CPU can tell apart.
  with made.unlocked():
    made.ablation = made.ablation[:2]
  found = bench.main(made, str(tmp_path))["ablation"]
  rates = [row["images_per_s_per_chip"] for row in found]
  names = [ablation.changes([text])[0].name for text in made.ablation]
  assert [row["name"] for row in found] == names
  for row, rate in zip(found, rates, strict=True):
    per_step = row["figures"]["step_seconds"] * jax.device_count()
    assert rate == pytest.approx(8 / per_step)
    assert row["speedup"] == rate / rates[0]
  # The first encodes images.
  tflop = [row["figures"]["tflop_per_step"] for row in found]
  assert tflop[0] > tflop[1] > 0
  assert "| latents encoded before |" in capsys.readouterr().out
  assert "1.00x" in (tmp_path / "ablation.svg").read_text()


def test_a_step_of_an_ablation_that_memory_is_too_small_for_is_no_error(
  tmp_path, monkeypatch
):
  made = small(tmp_path, ablate=True)

  def refuse(reason):
    def compile_step(*args):
      raise jax.errors.JaxRuntimeError(reason)

    monkeypatch.setattr(bench, "compile_step", compile_step)

  refuse("RESOURCE_EXHAUSTED: Out of memory")
  assert bench.measure_whole(made) == {"fits": False}
  refuse("INTERNAL: something else")
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    bench.measure_whole(made)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("bench__compare", "torch", r"set bench\.compare=''"),
    ("bench__steps", 0, r"set bench\.steps"),
  ],
)
def test_an_ablation_of_nothing_or_beside_torch_is_refused(
  tmp_path, field, value, message
):
  made = small(tmp_path, ablate=True, **{field: value})
  with pytest.raises(ValueError, match=message):
    bench.main(made, str(tmp_path))


@pytest.mark.parametrize(
  "name",
  [
    "base.py",
    "sd2.py:256",
    "common_canvas_l.py:512",
    "sdxl.py:256",
    "sdxl.py:1024",
    "pixart.py:pixel",
    "pixart.py:align",
    "pixart.py:aesthetic_1024",
  ],
)
def test_the_steps_of_an_ablation_end_where_a_config_begins(name):
  """All that makes a step slow in the first is set back by those after it."""
  made = configs.load(f"configs/{name}")
  first, *rest = ablation.changes(made.ablation)
  undone = dict(pair for change in rest for pair in change.fields)
  assert set(undone) == {field for field, _ in first.fields}
  naive, *_, last = ablation.cumulative(made, [first, *rest])
  with unread.weights():
    features = [tasks.make(one).features for one in (naive, last)]
  assert ("image" in features[0]) == (name != "pixart.py:pixel")
  assert "latent_mean" in features[1]
  own, found = tree.flatten(made.to_dict()), tree.flatten(last.to_dict())
  differ = {path: x for path, x in found.items() if own[path] != x}
  assert differ == {"train.moments": "bfloat16"}


@pytest.mark.parametrize(
  "decay", [pytest.param("matrices", marks=pytest.mark.slow), "all"]
)
def test_both_sides_learn_the_same(tmp_path, decay):
  made = small(
    tmp_path,
    train__decay=decay,
    train__weight_decay=0.1,
    # Both divide by roots of what is almost zero otherwise.
    train__eps=1e-3,
  )
  mesh = sharding.make_mesh(**made.train.mesh)
  batch = denoiser.batch(made, made.train.batch_size)
  with jax.set_mesh(mesh):
    task = denoiser.make(made)
    step = steps.make(made, task)
    state = step.init(jax.random.key(0))
    params = parity.scramble(state.params)
    state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
    theirs = reference_training.unet_step(
      task.parts["unet"][1], params["unet"], batch, made.train
    )
    update = jax.jit(step.update)
    for _ in range(4):
      state, metrics = update(state, task.loss, batch)
      np.testing.assert_allclose(metrics["loss"], theirs(), rtol=1e-4)


@pytest.mark.slow
def test_torch_may_compute_in_its_other_order_and_type(tmp_path):
  made = small(tmp_path, train__dtype="bfloat16")
  batch = denoiser.batch(made, 2)
  task = denoiser.make(made)
  params = parity.scramble(task.init(jax.random.key(0)))
  given = jax.tree.map(jnp.asarray, batch)
  loss = task.loss(params, given, jax.random.key(0))[0]
  for last in (False, True):
    theirs = reference_training.unet_step(
      task.parts["unet"][1],
      params["unet"],
      batch,
      made.train,
      channels_last=last,
    )
    np.testing.assert_allclose(theirs(), loss, rtol=3e-2)


def test_networks_with_pooled_text_are_given_it(tmp_path):
  made = small(tmp_path)
  with made.unlocked(), made.model.unet.ignore_type():
    made.model.unet.pooled_conditions = "text_time"
    made.model.unet.size_width = 4
    made.model.unet.conditions_width = 36
  batch = denoiser.batch(made, 2)
  assert batch["pooled"].shape == (2, 12)
  task = denoiser.make(made)
  params = parity.scramble(task.init(jax.random.key(0)))
  theirs = reference_training.unet_step(
    task.parts["unet"][1], params["unet"], batch, made.train
  )
  given = jax.tree.map(jnp.asarray, batch)
  loss = task.loss(params, given, jax.random.key(0))[0]
  np.testing.assert_allclose(theirs(), loss, rtol=1e-4)


def test_a_config_of_full_size_is_measured_without_its_files():
  """What SD2 would be given; nothing is downloaded."""
  made = configs.load("configs/sd2.py:256")
  batch = denoiser.batch(made, 2)
  shapes = {name: array.shape for name, array in batch.items()}
  assert shapes["xt"] == shapes["target"] == (2, 32, 32, 4)
  assert shapes["context"] == (2, 77, 1024)
  params = jax.eval_shape(denoiser.make(made).init, jax.random.key(0))
  expected = 865_910_724
  assert tree.count(params) == expected
  assert hub.config(made.model.unet, "unet").channels[0] == 320


def test_configs_of_gpus_are_whole():
  for arg, side in (("sd2_256", 32), ("sd2_512", 64)):
    made = configs.load(f"configs/bench.py:{arg}")
    assert made.bench.compare == "torch"
    assert made.bench.torch_compile
    assert made.train.dtype == "bfloat16"
    assert denoiser.batch(made, 1)["xt"].shape == (1, side, side, 4)


def test_what_has_no_u_net_is_refused(tmp_path):
  made = small(tmp_path)
  with made.unlocked(), made.ignore_type():
    made.model.transformer = "XL_256"
  with pytest.raises(ValueError, match="only U-Nets are measured"):
    bench.main(made, str(tmp_path))
