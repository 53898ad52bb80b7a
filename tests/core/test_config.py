# SPDX-License-Identifier: Apache-2.0
import re

import ml_collections
import pytest

from cc_jax.core import config as configs

FIELDS = {
  "whole": 3,
  "share": 0.5,
  "yes": True,
  "name": "a",
  "several": (1, 2),
  "none": None,
  "group": {"inner": 1},
}


@pytest.fixture
def config():
  return ml_collections.ConfigDict(FIELDS)


@pytest.mark.parametrize(
  ("name", "text", "value"),
  [
    ("whole", "7", 7),
    ("whole", "-1", -1),
    ("whole", "1_000", 1000),
    ("share", "1", 1.0),
    ("share", "1e-4", 1e-4),
    ("yes", "false", False),
    ("yes", "True", True),
    ("name", "7", "7"),
    ("name", "", ""),
    ("name", "a=b", "a=b"),
    ("several", "(3, 4, 5)", (3, 4, 5)),
    ("several", "[3]", (3,)),
    ("several", "()", ()),
    ("none", "word", "word"),
    ("none", "None", None),
    ("group.inner", "2", 2),
  ],
)
def test_a_flag_has_the_type_of_its_field(config, name, text, value):
  configs.override(config, f"config.{name}", text)
  found = config
  for part in name.split("."):
    found = found[part]
  assert found == value
  assert type(found) is type(value)


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("whole", "1.0"),
    ("whole", "true"),
    ("whole", "None"),
    ("whole", ""),
    ("whole", "1 +"),
    ("share", "half"),
    ("yes", "1"),
    ("yes", "no"),
    ("several", "3"),
    ("several", "(a,"),
    ("whole", "__import__('os')"),
    ("whole", "(" * 500),
    ("whole", "\0"),
  ],
)
def test_another_type_is_refused(config, name, text):
  with pytest.raises(ValueError, match=rf"config\.{name}=.*expected"):
    configs.override(config, f"config.{name}", text)
  assert config.to_dict() == FIELDS


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("config.whol", "unknown field of config: 'whol'; did you mean 'whole'"),
    ("config.zzz", "unknown field of config: 'zzz'; "),
    ("config.group.iner", "of config.group: 'iner'; did you mean 'inner'"),
    ("config.whole.more", "unknown field of config.whole: 'more'"),
    ("config.group", "config.group is a group; set one of inner"),
  ],
)
def test_unknown_fields_are_refused_with_the_nearest(config, name, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    configs.override(config, name, "1")
  assert config.to_dict() == FIELDS


def test_the_work_folder_is_put_in_at_any_depth():
  config = ml_collections.ConfigDict(
    {
      "folder": "{workdir}/a",
      "above": {"inside": "{workdir}/../a", "number": 3},
      "several": ("{workdir}", "b"),
    }
  )
  configs.resolve(config, "runs/x")
  assert config.to_dict() == {
    "folder": "runs/x/a",
    "above": {"inside": "runs/a", "number": 3},
    "several": ("runs/x", "b"),
  }


def test_a_bucket_keeps_its_slashes():
  config = ml_collections.ConfigDict({"folder": "{workdir}/a"})
  configs.resolve(config, "gs://bucket/run")
  assert config.folder == "gs://bucket/run/a"


def test_a_config_builds_on_those_beside_it_and_takes_an_argument(tmp_path):
  (tmp_path / "ground.py").write_text("WORD = 'ground'\n")
  (tmp_path / "mine.py").write_text(
    "import ground\nfrom ml_collections import ConfigDict\n"
    "def get_config(arg='default'):\n"
    "  return ConfigDict(dict(word=ground.WORD, arg=arg))\n"
  )
  path = f"{tmp_path}/mine.py"
  assert configs.load(path).to_dict() == {"word": "ground", "arg": "default"}
  assert configs.load(f"{path}:a:b").arg == "a:b"


def test_every_config_of_the_repository_loads():
  for name in ("base", "quickstart", "clothing"):
    assert configs.load(f"configs/{name}.py").train.steps > 0
  for name in ("quickstart", "clothing"):
    made = configs.load(f"configs/{name}.py:autoencoder")
    assert made.train.task == "autoencoder"
    with pytest.raises(ValueError, match=f"configs/{name}.py has unet"):
      configs.load(f"configs/{name}.py:net")
