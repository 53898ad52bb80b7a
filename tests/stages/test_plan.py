# SPDX-License-Identifier: Apache-2.0
"""Plans: arithmetic and programs here, slices in a process that has libtpu."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
import test_repository
import tiny
import tiny_plan

from cc_jax.core import config as configs
from cc_jax.core import hardware, hlo_cost, programs, sharding, tree
from cc_jax.stages import plan, train
from cc_jax.tasks import step as steps

KEYS = (
  "hbm_gib flops cycles step_s mfu images_per_s_per_chip days dollars"
).split()
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  """(folder, plans, what was printed) of tests/tiny_plan.py."""
  found = importlib.util.find_spec("libtpu")
  if found is None:
    pytest.skip("libtpu, which compiles for TPUs, is not installed")
  folder = tmp_path_factory.mktemp("plan")
  libtpu = pathlib.Path(found.origin).parents[1]
  run = subprocess.run(
    [sys.executable, tiny_plan.__file__, str(folder)],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{libtpu}"},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert run.returncode == 0, run.stderr[-2000:]
  plans = json.loads((folder / "plans.json").read_text())
  return folder, plans, run.stdout


def test_a_plan_has_its_figures_and_the_parts_of_each(planned):
  _, plans, printed = planned
  found = plans["fits"]
  assert set(KEYS) <= set(found)
  assert found["fits"]
  for name in ("hbm_gib", "cycles", "step_s"):
    assert sum(found[f"{name}_parts"].values()) == pytest.approx(found[name])
  assert all(found[name] > 0 for name in KEYS)
  weights, moments = (found["hbm_gib_parts"][k] for k in ("weights", "moments"))
  # Weights on each of four chips in float32, two moments of each, an average.
  assert weights * 2**30 == 4 * found["parameters"]
  assert moments * 2**30 == pytest.approx(8 * found["parameters"], rel=1e-3)
  assert found["hbm_gib_parts"]["ema"] == weights
  assert "images/s a chip" in printed
  assert "HBM" in printed


def test_a_plan_is_consistent_with_itself(planned):
  found = planned[1]["fits"]
  assert (found["chips"], found["images_per_chip"]) == (4, 8)
  rate = found["images_per_s_per_chip"] * found["step_s"] * 4
  assert rate == pytest.approx(32)
  seconds = found["steps"] * found["step_s"]
  assert found["days"] == pytest.approx(seconds / 86400)
  assert found["dollars"] == pytest.approx(seconds / 3600 * 4 * 3.22)
  peak = found["flops"] / found["step_s"] / (4 * 275e12)
  assert found["mfu"] == pytest.approx(peak)
  cycles = found["cycles"] - found["cycles_parts"]["kernels"]
  compute = cycles / 1.05e9
  assert found["step_s_parts"]["compute"] == pytest.approx(compute)
  assert found["energy"]["kwh"] > 0


def test_a_plan_says_what_it_took_others_and_what_it_assumes(planned):
  found, printed = planned[1]["fits"], planned[2]
  theirs, days = found["published"], found["dollars_parts"]["chip_hours"] / 24
  # 400 W, of which a tenth more is drawn, at 0.37 kg a kWh.
  assert theirs["energy"]["kwh"] == pytest.approx(105.6)
  assert theirs["planned_chip_days"] == pytest.approx(days * 275 / 312)
  assert (
    "a paper: 10.0 days of one A100-40GB, 480 dollars, 106 kWh, 39 kg CO2; "
    "this plan: "
  ) in printed
  assert all(f"assumed: {one}" in printed for one in found["assumptions"])
  assert any("3.22 dollars" in one for one in found["assumptions"])


def test_pixarts_stages_add_up_to_what_the_paper_says():
  stages = test_repository.arguments(ROOT / "configs/pixart.py")
  plans = [configs.load(f"configs/pixart.py:{stage}").plan for stage in stages]
  assert len(plans) == 5
  for field, total in (("days", 753), ("dollars", 28_400)):
    found = sum(one.published[field] for one in plans)
    assert found == pytest.approx(total)


def test_the_gradients_of_all_weights_are_reduced_over_the_chips(planned):
  found = planned[1]["fits"]
  (row,) = [r for r in found["collectives"] if r["kind"] == "all-reduce"]
  assert row["devices"] == 4
  assert 2 * found["parameters"] <= row["bytes"] <= 5 * found["parameters"]


def test_the_text_of_a_plan_says_what_the_plan_says(planned):
  folder, plans, _ = planned
  cost = hlo_cost.cost((folder / "step.hlo").read_text())
  kernels = plans["fits"]["cycles_parts"]["kernels"]
  assert sum(cost.cycles.values()) == plans["fits"]["cycles"] - kernels
  assert min(cost.cycles.values()) > 0
  assert {"text", "down_0", "mid", "up_0", "optimizer"} <= set(cost.scopes)
  assert cost.unknown == 0
  head = (folder / "step.program").read_bytes().partition(b"\n")[0]
  assert json.loads(head)["device"] == "TPU v4"


def test_images_that_are_encoded_in_the_step_are_planned(planned):
  plain, found = planned[1]["fits"], planned[1]["images"]
  assert found["fits"]
  assert found["cycles_scopes"]["vae"] > 0
  assert "vae" not in plain["cycles_scopes"]
  parts = found["flops_parts"]
  assert parts["vae"] > 0
  assert parts["trained"] + parts["text"] + parts["vae"] == found["flops"]
  assert found["hbm_gib_parts"]["frozen"] > plain["hbm_gib_parts"]["frozen"]


def test_what_does_not_fit_is_told_with_what_would(planned):
  _, plans, printed = planned
  found = plans["large"]
  assert not found["fits"]
  assert (found["slice"], found["chips"]) == ("2xv5e-4", 8)
  assert found["hbm_gib"] > found["hbm_gib_usable"] == 15.75
  assert "train.remat=full" in found["try"]
  assert "GiB of 15.8: try train.remat=dots" in printed
  assert "mfu" not in found


def test_a_custom_kernel_is_found_with_its_operations(planned):
  (found,) = planned[1]["kernels"]
  # Values have eight rows of ones beside them.
  assert found["flops"] == 2 * 2 * 2 * 256 * 256 * (64 + 64 + 8)
  arrays = 4 * 2 * 2 * 256 * 64 * 2
  assert arrays <= found["size"] <= 1.1 * arrays
  assert found["name"] == "attention_forward"


def test_the_schedule_of_a_custom_kernel_is_read(planned):
  (found,) = planned[1]["kernels"]
  # What the matrix units of a core would take at their best.
  least = found["flops"] / (4 * 2 * 128**2)
  assert least < found["bundles"] < 8 * least


def test_train_runs_the_program_that_a_plan_has_saved(
  tmp_path_factory, tmp_path
):
  data, mesh = tiny.shared(tmp_path_factory), sharding.make_mesh()
  file = str(tmp_path / "step.program")
  made = tiny.config(data, tmp_path / "a", train__steps=2)
  compiled = plan.compile_step(made, mesh, "none of TPU")
  programs.save(
    file, compiled.lowered, compiled.program, mesh, steps.decides(made)
  )
  fields = {"train__steps": 2, "train__program": file}
  loaded = tiny.config(data, tmp_path / "a", **fields)
  first = train.main(loaded, str(tmp_path / "a"))
  plain = tiny.config(data, tmp_path / "b", train__steps=2)
  second = train.main(plain, str(tmp_path / "b"))
  assert tiny.largest_difference(first, second) == 0
  other = tiny.config(data, tmp_path / "c", train__lr=1e-4, **fields)
  with pytest.raises(ValueError, match=r"train\.lr=0\.002 \(now 0\.0001\)"):
    train.main(other, str(tmp_path / "c"))
  assert not (tmp_path / "c").exists()


# TFLOP of a training step an image, counted by hand for Google's recipes.
PUBLISHED = {
  "256": (0.543, 256, {}),
  "512": (2.413, 512, {}),
  "xl": (
    20.284,
    1024,
    {
      "unet": "SDXL",
      "text": "sdxl/text_1",
      "text_2": "sdxl/text_2",
      "vae": "sdxl/vae",
      "zero_empty": True,
    },
  ),
}


@pytest.mark.parametrize(
  "name",
  [
    "256",
    pytest.param("512", marks=pytest.mark.slow),
    pytest.param("xl", marks=pytest.mark.slow),
  ],
)
def test_operations_are_those_that_were_counted_by_hand(name):
  expected, size, networks = PUBLISHED[name]
  made = configs.load(f"{ROOT}/configs/sd2.py:256")
  configs.resolve(made, "runs/x")
  made.train.batch_size, made.encode.size = 1, size
  with made.model.ignore_type():
    made.model.update(networks)
  found = plan.operations(made)
  text = found.pop("text")
  assert sum(found.values()) / 1e12 == pytest.approx(expected, rel=0.01)
  # 23 blocks of ViT-H on 77 tokens, or SDXL's two towers.
  assert text / 1e12 == pytest.approx(0.111 if networks else 0.045, rel=0.02)


def test_a_search_ends_at_the_largest_batch_that_fits(
  tmp_path, monkeypatch, capsys
):
  made, mesh = tiny_plan.config(str(tmp_path)), sharding.make_mesh()
  target = hardware.target("v5e-8")
  seen = []

  def planned(config, target, mesh):
    seen.append(config.train.batch_size)
    each = config.train.batch_size / mesh.size
    needed = 0.05 + 0.4 * each
    return {"fits": needed <= 15.75, "hbm_gib": needed, "images": each}

  monkeypatch.setattr(plan, "plan", planned)
  found = plan.search(made, target, mesh)
  assert found["fits"]
  assert 37 <= found["images"] <= 39
  assert [row["batch_size"] for row in found["search"]] == seen
  assert len(seen) <= 5
  assert "does not fit" in capsys.readouterr().out
  # Not even one image a device.
  monkeypatch.setattr(
    plan, "plan", lambda *args: {"fits": False, "hbm_gib": 99.0}
  )
  assert not plan.search(made, target, mesh)["fits"]


def test_an_ablation_plans_each_change(tmp_path, monkeypatch):
  fields = {
    "ablation": ("naive: train.remat=full", "fast: train.remat=none"),
    "plan__result": f"{tmp_path}/plan.json",
  }
  made = tiny_plan.config(str(tmp_path), **fields)
  rates = {"full": 10.0, "none": 30.0}
  monkeypatch.setattr(
    plan,
    "plan",
    lambda config, target, mesh: {
      "images_per_s_per_chip": rates[config.train.remat]
    },
  )
  target = hardware.target("v4-8")
  found = plan.ablate(made, target, jax.devices())
  assert [row["speedup"] for row in found["ablation"]] == [1, 3]
  assert "3.00x" in (tmp_path / "ablation.svg").read_text()


def test_a_slice_or_subject_that_there_is_not_is_refused(tmp_path, monkeypatch):
  made = tiny_plan.config(str(tmp_path), slice="v4-9")
  with pytest.raises(ValueError, match="'v4-9'; there are v4-8, v4-16"):
    plan.main(made, str(tmp_path))
  monkeypatch.setattr(hardware, "aot_devices", lambda *args: jax.devices())
  made = tiny_plan.config(str(tmp_path), plan__of="samples")
  with pytest.raises(ValueError, match=r"plan\.of='samples'; expected train"):
    plan.main(made, str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_recomputed_operations_count_for_nothing():
  fields = {"train__batch_size": 2, "latent_diffusion__train_text": False}
  plain = tiny_plan.config("runs/x", **fields)
  again = tiny_plan.config("runs/x", train__remat="full", **fields)
  assert plan.operations(plain) == plan.operations(again)


def test_batches_have_the_shapes_that_encode_would_make():
  made = tiny_plan.config("runs/x", encode__size=64, train__batch_size=4)
  update, state, loss, batch = plan.abstract(made)
  del update, loss
  shapes = {name: (leaf.shape, leaf.dtype.name) for name, leaf in batch.items()}
  assert shapes == {
    "latent_mean": ((4, 32, 32, 4), "bfloat16"),
    "latent_std": ((4, 32, 32, 4), "bfloat16"),
    "tokens": ((4, 8), "int32"),
  }
  assert tree.count(state.ema) == tree.count(state.params) > 0
  assert all(
    isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)
  )
