# SPDX-License-Identifier: Apache-2.0
import dataclasses
import re

import pytest

from cc_jax.core import config_json


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 8
  scale: float = 1.0
  heads: int | tuple[int, ...] = 2
  wide: tuple[bool, ...] = (True, False)


TABLE = config_json.ConfigTable(
  renamed={"width": "hidden_size", "wide": "types"},
  coded={"types": {True: "Wide", False: "Narrow"}},
  fixed={"_class_name": "Model", "act": "silu"},
  derived=lambda config: {"up": tuple(not wide for wide in config.wide)},
  ignored=("dropout",),
)


def test_a_config_goes_there_and_back():
  config = Config(width=4, heads=(1, 2), wide=(False, True))
  theirs = config_json.export_config(config, TABLE)
  assert theirs == {
    "_class_name": "Model",
    "act": "silu",
    "heads": (1, 2),
    "hidden_size": 4,
    "scale": 1.0,
    "types": ("Narrow", "Wide"),
    "up": (True, False),
  }
  assert config_json.import_config(theirs, Config, TABLE) == config


def test_absent_keys_have_defaults_and_versions_are_no_matter():
  theirs = {"_diffusers_version": "0.1", "dropout": 0.5, "scale": 2}
  assert config_json.import_config(theirs, Config, TABLE) == Config(scale=2)


def test_a_key_of_ours_alone_is_written_where_it_says_something():
  table = dataclasses.replace(TABLE, own=("scale",))
  assert "scale" not in config_json.export_config(Config(), table)
  theirs = config_json.export_config(Config(scale=2.0), table)
  assert theirs["scale"] == 2.0
  assert config_json.import_config(theirs, Config, table) == Config(scale=2.0)


@pytest.mark.parametrize(
  ("theirs", "message"),
  [
    ({"_class_name": "Other"}, "_class_name='Other' (supported: 'Model')"),
    ({"act": "gelu"}, "act='gelu' (supported: 'silu')"),
    ({"flash": True}, "flash=True (unknown)"),
    ({"types": ["Wide", "Odd"]}, "types=('Wide', 'Odd') (supported: Wide, N"),
    ({"types": "Wide"}, "types='Wide' (supported: Wide, Narrow)"),
    ({"up": [True, True]}, "up=(True, True) (expected: (False, True))"),
    ({"hidden_size": [1, 2]}, "hidden_size=(1, 2) (supported: int)"),
    ({"heads": ["a"]}, "heads=('a',) (supported: int | tuple[int, ...])"),
    ({"act": 1, "hidden_size": None}, "act=1 (supported: 'silu'), hidden_size"),
  ],
)
def test_a_config_that_is_not_supported_is_refused(theirs, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    config_json.import_config(theirs, Config, TABLE)


LATER = dataclasses.replace(
  TABLE,
  legacy={"_class_name": ("Early",), "sparse": (False, None)},
  own=("scale",),
)


def test_what_earlier_releases_wrote_is_read_and_not_written():
  theirs = {"_class_name": "Early", "sparse": False}
  config = config_json.import_config(theirs, Config, LATER)
  again = config_json.export_config(config, LATER)
  assert again["_class_name"] == "Model"
  assert "sparse" not in again
  message = "_class_name='Other' (supported: 'Model', 'Early'), sparse=True"
  with pytest.raises(ValueError, match=re.escape(message)):
    config_json.import_config(
      {"_class_name": "Other", "sparse": True}, Config, LATER
    )


def test_a_field_of_our_own_is_written_where_it_is_not_the_default():
  assert "scale" not in config_json.export_config(Config(), LATER)
  theirs = config_json.export_config(Config(scale=2.0), LATER)
  assert theirs["scale"] == 2
  assert config_json.import_config(theirs, Config, LATER) == Config(scale=2.0)


@dataclasses.dataclass(frozen=True)
class Pair:
  left: Config
  right: Config
  share: bool = False


PAIR = config_json.ConfigTable(
  parts={
    "left": ("left_config", Config, TABLE),
    "right": ("right_config", Config, TABLE),
  },
  fixed={"model_type": "pair"},
)


def test_a_model_of_several_has_a_group_of_keys_for_each():
  pair = Pair(Config(width=4), Config(heads=3), share=True)
  theirs = config_json.export_config(pair, PAIR)
  assert theirs.keys() == {"left_config", "right_config", "model_type", "share"}
  assert theirs["left_config"]["hidden_size"] == 4
  assert config_json.import_config(theirs, Pair, PAIR) == pair
  for empty in ({}, {"left_config": None, "right_config": {}}):
    found = config_json.import_config(empty, Pair, PAIR)
    assert found == Pair(Config(), Config())


def test_a_field_that_such_files_do_not_state_has_one_value():
  table = dataclasses.replace(TABLE, given={"width": 8})
  theirs = config_json.export_config(Config(heads=3), table)
  assert "hidden_size" not in theirs
  for stated in ({}, {"hidden_size": 99}, {"hidden_size": None}):
    found = config_json.import_config({**theirs, **stated}, Config, table)
    assert found == Config(heads=3)


def test_what_a_group_of_keys_does_not_support_is_named_with_its_group():
  theirs = {"left_config": {"act": "gelu"}, "right_config": {"flash": True}}
  words = re.escape("left_config: act='gelu'") + ".*right_config: flash=True"
  with pytest.raises(ValueError, match=words):
    config_json.import_config(theirs, Pair, PAIR)
