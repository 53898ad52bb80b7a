# SPDX-License-Identifier: Apache-2.0
"""launch/*.sh against tools that record what they are told, and answer."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest
import stub_tools

from cc_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def script(name, *words, tools, **environment):
  """(status, stdout, stderr) of a script with stubs for its tools."""
  environment = {"POLL": "0", "ZONE": "us-central2-b"} | environment
  path = f"{tools}:/usr/bin:/bin"
  done = subprocess.run(
    ["bash", f"launch/{name}", *words],
    cwd=ROOT,
    env=os.environ | {"PATH": path} | environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  return done.returncode, done.stdout, done.stderr


def verbs(calls):
  """What was asked of queued resources, in short."""
  short = []
  for words in calls:
    assert words[:4] == ["gcloud", "compute", "tpus", "queued-resources"]
    assert "--zone=us-central2-b" in words
    verb = words[4]
    command = [w for w in words if w.startswith("--command=")]
    if command:
      verb = next(
        v
        for v in ("install", "start", "status", "stop", "log")
        if f"on_host.sh {v}" in command[0]
      )
    short.append(verb)
  return short


DESCRIBED = [["describe", "description"], [["cc_jax v4-128 1\n", "", 0]]]


def test_scripts_pass_shellcheck():
  if shutil.which("shellcheck") is None:
    pytest.skip("no shellcheck; the extra `test` has it")
  scripts = [*map(str, SCRIPTS), *map(str, (ROOT / ".ci").glob("*"))]
  done = subprocess.run(
    ["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (
      ["v4-128"],
      ["--node-id=n", "--accelerator-type=v4-128", "tpu-ubuntu2204-base"],
    ),
    (
      ["v5e-16", "--spot"],
      ["--accelerator-type=v5litepod-16", "--spot", "v2-alpha-tpuv5-lite"],
    ),
    (
      ["v5p-128", "--reserved", "--slices=4"],
      ["--node-count=4", "--reserved", "--description=cc_jax v5p-128 4"],
    ),
    (["v6e-64", "--network=mine"], ["v2-alpha-tpuv6e", "--network=mine"]),
  ],
)
def test_a_slice_is_asked_for_in_gclouds_words(words, expected, tmp_path):
  tools = stub_tools.install(tmp_path, [], "gcloud")
  status, _, err = script("tpu.sh", "create", "n", *words, tools=tools)
  assert status == 0, err
  (call,) = stub_tools.calls(tools)
  assert call[:6] == "gcloud compute tpus queued-resources create n".split()
  for part in expected:
    assert any(part in word for word in call), part


@pytest.mark.parametrize("error", [stub_tools.QUOTA, stub_tools.THERE])
def test_what_gcloud_refuses_is_said_and_ends_the_script(error, tmp_path):
  rules = [[["create"], [["", error, 1]]]]
  tools = stub_tools.install(tmp_path, rules, "gcloud")
  status, _, err = script("tpu.sh", "create", "n", "v4-8", tools=tools)
  assert (status, err) == (1, error)


def test_a_command_comes_to_the_hosts_as_it_was_typed(tmp_path):
  tools = stub_tools.install(tmp_path, [DESCRIBED], "gcloud")
  words = ["cc-jax", "sample", "--config.sample.prompts=('a $HOME', \"b\")"]
  status, _, err = script(
    "tpu.sh", "run", "n", *words, tools=tools, CC_JAX_CACHE="gs://b/compiled"
  )
  assert status == 0, err
  call = stub_tools.calls(tools)[-1]
  assert {"--node=all", "--worker=all"} <= set(call)
  command = next(w for w in call if w.startswith("--command="))
  given = shlex.split(command.partition("=")[2])
  assert given[0] == "CC_JAX_CACHE=gs://b/compiled"
  assert given[1:] == [
    "cc_jax/launch/on_host.sh",
    "start",
    "v4-128",
    "1",
    *words,
  ]


def test_slices_of_others_are_left_alone(tmp_path):
  rules = [[["describe"], [["\n", "", 0]]]]
  tools = stub_tools.install(tmp_path, rules, "gcloud")
  status, _, err = script("tpu.sh", "run", "n", "true", tools=tools)
  assert status == 1
  assert "n was not made by tpu.sh create" in err
  assert verbs(stub_tools.calls(tools)) == ["describe"]


def state(*states):
  return [
    ["describe", "state.state"],
    [
      ["", stub_tools.ABSENT, 1] if one == "NONE" else [f"{one}\n", "", 0]
      for one in states
    ],
  ]


def answers(*lines):
  return [["on_host.sh status"], [[f"{line}\n", "", 0] for line in lines]]


def test_keep_goes_on_on_a_new_slice_when_one_was_taken_away(tmp_path):
  rules = [
    DESCRIBED,
    state(
      *["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE"],
      *["SUSPENDING", "SUSPENDED", "NONE", "PROVISIONING", "ACTIVE"],
      *["ACTIVE", "ACTIVE", "ACTIVE"],
    ),
    answers("none", "running", "none", "running", "preempted", "finished"),
  ]
  tools = stub_tools.install(tmp_path, rules, "gcloud")
  words = ["keep", "n", "v4-128", "--spot", "--", "cc-jax", "train"]
  status, out, err = script("tpu.sh", *words, tools=tools)
  assert status == 0, err
  made = ["scp", "install", "stop", "describe", "start"]
  assert [v for v in verbs(stub_tools.calls(tools)) if v != "status"] == [
    *["describe", "create", "describe", "describe", "describe", *made],
    *["describe", "describe", "describe", "delete"],
    *["describe", "create", "describe", "describe", *made],
    # Preempted, and the hosts are still there: nothing to install.
    *["describe", "describe", "stop", "describe", "start", "describe"],
  ]
  for call in stub_tools.calls(tools):
    assert call[4] != "create" or "--spot" in call
  assert "n: ACTIVE, the command finished" in out


def test_keep_gives_up_on_a_command_that_always_fails(tmp_path):
  rules = [DESCRIBED, state("ACTIVE"), answers("failed 2")]
  tools = stub_tools.install(tmp_path, rules, "gcloud")
  status, _, err = script("tpu.sh", "keep", "n", "v4-8", "--", "x", tools=tools)
  assert status == 1
  assert "the command failed 3 times" in err
  assert verbs(stub_tools.calls(tools)).count("start") == 2


def test_keep_outlasts_a_network_that_is_away_but_not_for_ever(tmp_path):
  gone = ["", stub_tools.NETWORK, 1]
  rules = [DESCRIBED, [["describe"], [gone, gone, ["ACTIVE\n", "", 0]]]]
  rules += [answers("finished")]
  tools = stub_tools.install(tmp_path / "a", rules, "gcloud")
  words = ["keep", "n", "v4-8", "--", "x"]
  assert script("tpu.sh", *words, tools=tools)[0] == 0
  tools = stub_tools.install(tmp_path / "b", [[["describe"], [gone]]], "gcloud")
  status, _, err = script("tpu.sh", *words, tools=tools)
  assert status == 1
  assert "auth tokens" in err
  assert "gcloud does not say how n is" in err
  assert set(verbs(stub_tools.calls(tools))) == {"describe"}


def test_keep_tries_again_what_fails_on_the_hosts(tmp_path):
  rules = [
    DESCRIBED,
    state("ACTIVE"),
    answers("none", "none", "installed", "finished"),
    [["scp"], [["", "ssh: connect to host: timed out\n", 255], ["", "", 0]]],
    [["on_host.sh start"], [["", "error\n", 1], ["", "", 0]]],
  ]
  tools = stub_tools.install(tmp_path, rules, "gcloud")
  status, _, err = script("tpu.sh", "keep", "n", "v4-8", "--", "x", tools=tools)
  assert status == 0, err
  assert "setup failed; once more" in err
  assert "did not start; once more" in err
  assert verbs(stub_tools.calls(tools)).count("start") == 2


def test_the_other_verbs_reach_their_hosts(tmp_path):
  rules = [state("ACTIVE")]
  tools = stub_tools.install(tmp_path, rules, "gcloud")
  assert script("tpu.sh", "logs", "n", "3", tools=tools)[0] == 0
  assert script("tpu.sh", "stop", "n", tools=tools)[0] == 0
  assert script("tpu.sh", "delete", "n", tools=tools)[0] == 0
  status, out, _ = script("tpu.sh", "status", "n", tools=tools)
  assert (status, out) == (0, "n: ACTIVE\n")
  calls = stub_tools.calls(tools)
  assert verbs(calls) == ["log", "stop", "delete", "describe", "status"]
  assert "--worker=3" in calls[0]
  assert {"--quiet", "--force"} <= set(calls[2])


@pytest.mark.parametrize(
  ("name", "words", "expected"),
  [
    ("tpu.sh", ["make", "n"], "unknown verb make"),
    ("tpu.sh", ["create", "n"], "too few arguments"),
    ("tpu.sh", ["create", "n", "v3-8"], "unknown TPU type v3-8"),
    ("tpu.sh", ["create", "n", "v4-8", "spot"], "spot: expected a flag"),
    ("tpu.sh", ["keep", "n", "v4-8", "--"], "no command; expected -- COMMAND"),
    ("xpk.sh", ["run", "c", "w", "v4-8"], "too few arguments"),
    ("common_canvas.sh", ["show", "sd3", "v4-8", "gs://b"], "unknown model"),
    ("common_canvas.sh", ["show", "sd2", "v4-7", "gs://b"], "unknown type"),
    ("common_canvas.sh", ["show", "sd2", "v4-8", "b"], "expected gs://"),
  ],
)
def test_a_wrong_command_is_one_line(name, words, expected, tmp_path):
  tools = stub_tools.install(tmp_path, [], "gcloud", "xpk")
  status, _, err = script(name, *words, tools=tools)
  assert status == 1
  assert expected in err
  assert err.count("\n") == 1
  assert stub_tools.calls(tools) == []


@pytest.mark.parametrize("name", ["tpu.sh", "xpk.sh", "common_canvas.sh"])
def test_help_is_the_head_of_the_script(name, tmp_path):
  words = [] if name == "common_canvas.sh" else ["help"]
  status, out, _ = script(name, *words, tools=tmp_path)
  assert status == 0
  assert "#" not in out
  assert "set -e" not in out
  assert name in out


def test_xpk_makes_clusters_and_workloads(tmp_path):
  tools = stub_tools.install(tmp_path, [], "xpk", "docker", "kubectl")
  run = lambda *words, **more: script("xpk.sh", *words, tools=tools, **more)
  assert run("create", "c", "v5e-16", "--slices=2", "--spot")[0] == 0
  assert run("image", "image")[0] == 0
  words = ["cc-jax", "train", "--config.name=a b"]
  given = ["run", "c", "w", "v4-128", "image", "--slices=2", "--", *words]
  assert run(*given, CC_JAX_CACHE="gs://b/c")[0] == 0
  assert run("logs", "c", "w")[0] == run("stop", "c", "w")[0] == 0
  assert run("delete", "c")[0] == 0
  calls = stub_tools.calls(tools)
  create, build, push, workload, logs, stop, delete = calls
  assert create[1:3] == ["cluster", "create"]
  flags = ["--cluster=c", "--tpu-type=v5litepod-16", "--num-slices=2"]
  assert {*flags, "--spot", "--zone=us-central2-b"} <= set(create)
  assert build[:2] == ["docker", "build"]
  assert push == ["docker", "push", "image"]
  assert workload[1:3] == ["workload", "create"]
  flags = ["--workload=w", "--tpu-type=v4-128", "--docker-image=image"]
  assert {*flags, "--num-slices=2", "--max-restarts=100"} <= set(workload)
  assert "--env=CC_JAX_CACHE=gs://b/c" in workload
  command = next(w for w in workload if w.startswith("--command="))
  assert shlex.split(command.partition("=")[2]) == [
    *["launch/on_host.sh", "exec", "v4-128", "2"],
    *words,
  ]
  assert logs[:2] == ["kubectl", "logs"]
  assert stop[1:3] == ["workload", "delete"]
  assert delete[1:3] == ["cluster", "delete"]


def test_what_xpk_refuses_is_said_and_what_is_missing_too(tmp_path):
  error = "[XPK] Error: cluster c does not exist\n"
  rules = [[["workload"], [["", error, 1]]]]
  tools = stub_tools.install(tmp_path / "a", rules, "xpk")
  words = ["run", "c", "w", "v4-8", "image", "--", "x"]
  assert script("xpk.sh", *words, tools=tools)[::2] == (1, error)
  empty = tmp_path / "b"
  empty.mkdir()
  for name in ("bash", "dirname", "sed"):
    (empty / name).symlink_to(shutil.which(name))
  for name, words in (("tpu.sh", ["stop", "n"]), ("xpk.sh", ["status", "c"])):
    done = subprocess.run(
      [empty / "bash", f"launch/{name}", *words],
      cwd=ROOT,
      env={"PATH": str(empty)},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 1
    assert "is not here: " in done.stderr


def commands(out):
  """The commands that common_canvas.sh printed, with the titles above them."""
  lines = out.splitlines()
  heads = [line[1:].split(maxsplit=2) for line in lines[::2]]
  return heads, [shlex.split(line) for line in lines[1::2]]


@pytest.mark.parametrize("model", ["sd2", "common_canvas_l", "sdxl"])
@pytest.mark.parametrize("type", ["v4-8", "v4-512"])
def test_the_recipes_commands_are_commands_of_cc_jax(model, type, tmp_path):
  status, out, err = script(
    "common_canvas.sh", "show", model, type, "gs://b/x", tools=tmp_path
  )
  assert status == 0, err
  _, found = commands(out)
  stages = [words[1] for words in found]
  sizes = 3 if model == "sdxl" else 2
  assert stages == [
    *["catalogue", "caption"],
    *["encode", "train", "export"] * sizes,
    "sample",
  ]
  chips = int(type.partition("-")[2]) // 2
  export = None
  for words in found:
    assert words[0] == "cc-jax"
    stage, config, _, _ = cli.arguments(words[1:])
    if stage == "train":
      train = config.train
      assert train.batch_size % (chips * train.accumulate) == 0
      # Each goes on from the weights that the one before exported.
      assert train.init == (export or "")
    if stage == "export":
      export = config.export.folder


def test_plans_stand_beside_the_steps_and_are_made_once(tmp_path):
  tools = tmp_path / "tools"
  plan = """#!/usr/bin/env bash
  echo "$@" >>"$PLANS/calls"
  for word in "$@"; do
    case "$word" in --workdir=*) folder="${word#*=}" ;; esac
  done
  mkdir -p "$folder"
  echo '{"fits": true, "days": 5.25, "dollars": 25956.4}' >"$folder/plan.json"
  """
  tools.mkdir()
  (tools / "cc-jax").write_text(plan)
  (tools / "cc-jax").chmod(0o755)
  plans = tmp_path / "plans"
  plans.mkdir()
  words = ["plan", "sd2", "v4-128", "gs://b"]
  for _ in range(2):
    status, out, err = script(
      "common_canvas.sh", *words, tools=tools, PLANS=str(plans)
    )
    assert status == 0, err
  asked = (plans / "calls").read_text().splitlines()
  assert len(asked) == 3
  assert all("--config.slice=v4-128" in line for line in asked)
  assert "--config.plan.of=caption" in asked[0]
  assert "--config=configs/sd2.py:512" in asked[2]
  assert "gs://" not in asked[2]
  beside = {
    line.split("  ")[0][2:]: line
    for line in out.splitlines()
    if line.startswith("#")
  }
  assert "5.2 days" in beside["train 256"]
  assert "$25,956" in beside["train 512"]
  assert "days" not in beside["encode 256"]


def test_the_recipe_runs_step_by_step_and_stops_at_one_that_fails(tmp_path):
  rules = [[["sample"], [["", "no slice\n", 1]]]]
  tools = stub_tools.install(tmp_path, rules, "tpu")
  environment = dict(TPU=str(tools / "tpu"), FLAGS="--spot", NAME="mine")
  words = ["run", "sd2", "v4-128", "gs://b"]
  status, _, err = script(
    "common_canvas.sh", *words, tools=tools, **environment
  )
  assert (status, err) == (1, "no slice\n")
  calls = stub_tools.calls(tools)
  assert all(
    call[1:6] == ["keep", "mine", "v4-128", "--spot", "--"] for call in calls
  )
  stages = ["catalogue", "caption", *["encode", "train", "export"] * 2]
  stages += ["sample"]  # And no slice is deleted.
  assert [call[7] for call in calls] == stages
