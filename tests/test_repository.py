# SPDX-License-Identifier: Apache-2.0
"""The repository keeps its own rules: files read as text, nothing is run."""

import ast
import doctest
import importlib
import json
import os
import pathlib
import re
import subprocess

import ml_collections
import pytest

from cc_jax.core import config as configs

ROOT = pathlib.Path(__file__).parents[1]
LIMIT = 400
NAMES = re.compile(r"(utils|helpers|common|misc|base_.*|manager)\.")
# In two parts, so that this file does not have what it forbids.
SUPPRESSION = re.compile(
  "no" + "qa|type" + r": ignore|pragma" + ":|TO" + "DO|FIX" + "ME"
)
# Where only this machine's or one person's files are.
MACHINE = re.compile("[\"' =]/(wo" + "rk|ho" + "me|Us" + "ers|ro" + "ot)/")
# Modules without a test file of their own, and what tests them.
ELSEWHERE = {
  "__main__": "tests/test_cli.py",
  "core/errors": "tests/test_cli.py, and data/test_beam_runner.py",
  "core/legacy": "tests/core/test_convert.py, and models/test_published.py",
  "core/planned": "tests/stages/test_plan.py",
  "core/spelling": "tests/core/test_convert.py",
  "data/aligned": "tests/data/test_shards.py, test_loader.py",
  "data/tally": "tests/data/test_passes.py",
  "data/generated": "tests/pipelines/test_comparison.py",
  "data/latents": "tests/tasks/test_padded.py",
  "data/ledger": "tests/data/test_passes.py",
  "data/page": "tests/stages/test_report.py",
  "data/records": "tests/data/test_shards.py",
  "data/rows": "tests/data/test_sources_folder.py, and the other readers'",
  "data/sources_files": "tests/data/test_sources.py",
  "models/attention_blocks": "tests/models/test_attention.py",
  "models/attention_kernel": "tests/models/test_attention.py",
  "models/norms": "tests/models/test_layers.py",
  "models/autoencoder_blocks": "tests/models/test_vqgan.py",
  "pipelines/clip_gap": "tests/pipelines/test_clip_to_image.py",
  "pipelines/clip_gen": "tests/pipelines/test_clip_to_image.py",
  "pipelines/clip_gen_folder": "tests/pipelines/test_clip_to_image.py",
  "pipelines/embeddings": "tests/pipelines/test_clip_to_image.py",
  "pipelines/dataset_report": "tests/stages/test_report.py",
  "pipelines/scaling": "tests/pipelines/test_encoder.py",
  "pipelines/batch_shapes": "tests/stages/test_plan.py",
  "pipelines/plan_lines": "tests/stages/test_plan.py",
  "pipelines/caption_speed": "tests/stages/test_bench_captions.py",
  "pipelines/network_speed": "tests/stages/test_bench.py",
  "pipelines/evaluation_tables": "tests/pipelines/test_comparison.py",
  "pipelines/image_features": "tests/pipelines/test_comparison.py",
  "pipelines/reference": "tests/stages/test_bench.py",
  "pipelines/reference_training": "tests/stages/test_bench_step.py",
  "models/residual": "tests/models/test_layers.py",
  "models/llama": "tests/models/test_lm.py",
  "models/opt": "tests/models/test_lm.py",
  "models/unet_blocks": "tests/models/test_unet.py",
  "tasks/denoiser": "tests/stages/test_bench_step.py",
  "stages/catalogue": "tests/tiny.py, and data/test_catalogue.py",
  "stages/remove": "tests/data/test_removal.py",
  "stages/subset": "tests/data/test_subset.py",
  "stages/votes": "tests/pipelines/test_pairwise.py",
}
# Groups of a config that base.py does not have, and the stage that reads them.
GROUPS = {
  "quickstart": "cc_jax/quickstart.py",
  # The same as two of its fields.
  "checkpoint": "cc_jax/stages/evaluate.py",
  "prompts": "cc_jax/stages/evaluate.py",
}
LETTERS = set("btsdfnkvlhwcpe")


def tracked():
  """Paths of the files that git has or would take."""
  command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if found.returncode:
    pytest.skip("not a git checkout")
  paths = [ROOT / name for name in found.stdout.split("\n") if name]
  return [path for path in paths if path.is_file()]


FILES = sorted(tracked())
CODE = [path for path in FILES if path.suffix == ".py"]
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
MODULES = sorted((ROOT / "cc_jax").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}


def name(path):
  return str(path.relative_to(ROOT))


def none(found):
  """Fails with everything that is wrong, a line each."""
  found = list(found)
  assert not found, "\n" + "\n".join(found)


def lines(paths, pattern):
  for path in paths:
    for number, line in enumerate(path.read_text().splitlines(), 1):
      if match := pattern.search(line):
        yield f"{name(path)}:{number}: {match.group(0)!r}"


def test_no_file_is_longer_than_a_person_reads():
  sizes = {path: path.read_text().count("\n") for path in CODE}
  none(f"{name(p)}: {n} lines" for p, n in sizes.items() if n > LIMIT)


def test_no_file_is_named_after_nothing():
  named = [path for path in CODE if path.parent.name != "configs"]
  none(name(path) for path in named if NAMES.match(path.name))


def test_every_file_begins_with_its_licence():
  for path in [*CODE, *SCRIPTS]:
    head = path.read_text().splitlines()[:2]
    if head and head[0].startswith("#!"):
      del head[0]
    expected = "# SPDX-License-Identifier: Apache-2.0"
    assert head[:1] == [expected], name(path)


def test_nothing_is_suppressed_or_put_off():
  none(lines([*CODE, *SCRIPTS, ROOT / "pyproject.toml"], SUPPRESSION))


def test_no_path_of_one_machine_is_written_down():
  text = {".py", ".sh", ".md", ".toml", ".ipynb", ".txt"}
  none(lines([path for path in FILES if path.suffix in text], MACHINE))


def public(node, prefix=""):
  """Functions and methods that others may call, with their names."""
  for child in node.body:
    if child.__class__.__name__ in ("FunctionDef", "ClassDef"):
      if child.name.startswith("_"):
        continue
      if isinstance(child, ast.ClassDef):
        yield from public(child, f"{child.name}.")
      else:
        yield prefix + child.name, child


def test_public_functions_are_documented_and_annotated():
  missing = []
  for path, module in TREES.items():
    for called, node in public(module):
      where = f"{name(path)}:{node.lineno}: {called}"
      # A method may be told of by its class.
      if "." not in called and not ast.get_docstring(node):
        missing.append(f"{where} has no docstring")
      every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      for argument in every:
        if argument.annotation is None and argument.arg not in ("self", "cls"):
          missing.append(f"{where} does not annotate {argument.arg}")
      if node.returns is None:
        missing.append(f"{where} does not annotate what it returns")
  none(missing)


def test_every_module_has_a_test_file_or_a_reason():
  for path in MODULES:
    module = path.relative_to(ROOT / "cc_jax").with_suffix("")
    mirrored = ROOT / "tests" / module.parent / f"test_{module.name}.py"
    if path.name == "__init__.py":
      continue
    assert mirrored.exists() or str(module) in ELSEWHERE, (
      f"{name(path)} has no {name(mirrored)}"
    )


def test_every_reason_is_still_needed():
  for module, reason in ELSEWHERE.items():
    assert (ROOT / "cc_jax" / f"{module}.py").exists(), module
    folder, _, stem = f"/{module}".rpartition("/")
    mirrored = ROOT / f"tests{folder}/test_{stem}.py"
    assert not mirrored.exists(), f"{name(mirrored)} is there; strike it out"
    path = re.match(r"tests[\w/]*(\.py)?", reason).group(0)
    assert (ROOT / path).exists(), f"{module}: there is no {path}"


def test_notebooks_are_stored_without_outputs():
  for path in FILES:
    if path.suffix == ".ipynb":
      for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs"), name(path)
        assert cell.get("execution_count") is None, name(path)


def arguments(path):
  """A config's arguments, from the error that it gives to a wrong one."""
  with pytest.raises(ValueError, match=re.escape(f"configs/{path.name}")) as e:
    configs.load(f"{path}:no such argument")
  if "takes no argument" in str(e.value):
    return [""]
  listed = re.search(r" has (.*), got 'no such argument'", str(e.value))
  return re.split(r", | and ", listed.group(1))


def fields(config, prefix=""):
  for field, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield prefix + field, None
      yield from fields(value, f"{prefix}{field}.")
    else:
      yield prefix + field, value


CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_the_fields_that_stages_read(path):
  """Those of base.py, by name and type; a network may be fields or a name."""
  base = configs.load(str(ROOT / "configs/base.py"))
  expected = dict(fields(base))
  names = "unet|transformer|text|text_2|vae|clip|vqgan|prior|discriminator"
  networks = re.compile(rf"model\.({names})(\.|$)")
  for argument in arguments(path):
    where = f"{path.name}:{argument}"
    made = configs.load(f"{path}:{argument}")
    configs.resolve(made, "runs/x")
    found = dict(fields(made))
    assert expected.keys() <= found.keys(), where
    for field, value in found.items():
      if field in expected and not networks.match(field):
        assert type(value) is type(expected[field]), f"{where} {field}"
      elif field.partition(".")[0] not in GROUPS:
        assert networks.match(field), f"{where}: unknown field {field}"


def test_a_config_built_without_an_argument_says_what_it_takes():
  for path in CONFIGS:
    assert arguments(path), path.name


def test_scripts_can_be_run():
  for path in SCRIPTS:
    assert os.access(path, os.X_OK), name(path)
    first = path.read_text().splitlines()[0]
    assert first == "#!/usr/bin/env bash", name(path)


def test_the_readme_lists_every_module():
  text = (ROOT / "README.md").read_text()
  blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
  trees = [block for block in blocks if "cc_jax/\n" in block]
  if not trees:
    pytest.skip("README.md has no file tree yet")
  listed = {(0, "")}
  folders = []
  for line in trees[0].splitlines():
    # "  core/    arrays, files" or "  core/\n    tree.py    paths".
    indent = len(line) - len(line.lstrip())
    word = line.split()[0] if line.split() else ""
    if re.fullmatch(r"[\w./]+", word):
      folders = [f for f in folders if f[0] < indent]
      if word.endswith("/"):
        folders.append((indent, word))
      else:
        # A line may name several files: "caption.py encode.py …".
        for file in re.findall(r"\b\w+\.py\b", line):
          listed.add("".join(f[1] for f in folders) + file)
  none(
    f"README.md does not list {name(path)}"
    for path in MODULES
    if path.name != "__init__.py" and name(path) not in listed
  )


def imports(tree, inside=""):
  """(line, package, whether in a function) of each import of a file."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name.partition(".")[0], inside
    elif isinstance(node, ast.ImportFrom):
      yield node.lineno, (node.module or "").partition(".")[0], inside
    else:
      function = isinstance(node, ast.FunctionDef)
      yield from imports(node, node.name if function else inside)


def test_no_other_framework_is_imported():
  """But where export opens what it wrote, if they are installed."""
  allowed = ("cc_jax/stages/export.py", {"torch", "diffusers"})
  for path, module in TREES.items():
    for line, package, inside in imports(module):
      if inside and name(path) == allowed[0] and package in allowed[1]:
        continue
      where = f"{name(path)}:{line}"
      assert package not in {"torch", "tensorflow", "diffusers"}, where


def test_einsums_are_in_the_letters():
  for path, module in TREES.items():
    for node in ast.walk(module):
      if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        "einsum"
      ):
        letters = set(re.sub(r"[,\->. ]", "", node.args[0].value))
        assert letters <= LETTERS, f"{name(path)}:{node.lineno}: {letters}"


@pytest.mark.parametrize(
  "path",
  [path for path in MODULES if ">>> " in path.read_text()],
  ids=lambda path: name(path),
)
def test_examples_in_docstrings_are_true(path):
  module = importlib.import_module(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
  )
  result = doctest.testmod(module)
  assert result.attempted
  assert not result.failed
