# SPDX-License-Identifier: Apache-2.0
"""Configs: python files with `get_config(arg)`, and flags for their fields."""

import ast
from collections.abc import Sequence
import difflib
import importlib.util
import os
import pathlib
import sys
from typing import Any

import ml_collections


def unknown(what: str, name: str, choices: Sequence[str]) -> ValueError:
  """The error for a wrong name, with the nearest right one."""
  near = difflib.get_close_matches(name, choices, 1)
  hint = f"did you mean {near[0]!r}" if near else ", ".join(choices)
  return ValueError(f"unknown {what} {name!r}; {hint}")


def load(where: str) -> ml_collections.ConfigDict:
  """Runs `get_config(arg)` of a python file, named PATH[:ARG].

  Raises:
    ValueError: there is no such file, or it refuses the argument.
  """
  name, _, arg = where.partition(":")
  beside = pathlib.Path(__file__).parents[2] / name
  path = next((p for p in (pathlib.Path(name), beside) if p.is_file()), None)
  if path is None:
    raise ValueError(f"no config file {name}; expected configs/NAME.py[:ARG]")
  spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  # Configs build on one another by `import base`.
  sys.path.insert(0, str(path.parent))
  try:
    spec.loader.exec_module(module)
    return module.get_config(arg) if arg else module.get_config()
  finally:
    sys.path.remove(str(path.parent))


def parse(text: str, old: Any, name: str) -> Any:
  """The value of a flag, in the type that the field has."""
  try:
    if isinstance(old, str):
      return text
    if old is None:
      return None if text == "None" else text
    value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    if isinstance(old, float) and type(value) is int:
      value = float(value)
    if isinstance(old, tuple) and isinstance(value, list):
      value = tuple(value)
    if type(value) is not type(old):
      raise ValueError
  except (ValueError, SyntaxError):
    kind = type(old).__name__
    raise ValueError(f"{name}={text!r}: expected {kind}, as {old!r}") from None
  return value


def override(config: ml_collections.ConfigDict, name: str, text: str) -> None:
  """Sets one field, "config.train.steps" say.

  Raises:
    ValueError: there is no such field, or the value is of another type.
  """
  node, parts = config, name.split(".")[1:]
  for depth, part in enumerate(parts):
    if not isinstance(node, ml_collections.ConfigDict) or part not in node:
      parent = ".".join(["config", *parts[:depth]])
      choices = list(node) if hasattr(node, "keys") else []
      raise unknown(f"field of {parent}:", part, choices)
    if depth < len(parts) - 1:
      node = node[part]
  if isinstance(node[part], ml_collections.ConfigDict):
    raise ValueError(f"{name} is a group; set one of {', '.join(node[part])}")
  value = parse(text, node[part], name)
  with node.ignore_type():
    node[part] = value


def resolve(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Puts the work folder where the config's strings say {workdir}."""

  def one(value):
    if not isinstance(value, str) or "{workdir}" not in value:
      return value
    value = value.replace("{workdir}", workdir)
    return value if "://" in value else os.path.normpath(value)

  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      resolve(value, workdir)
    elif isinstance(value, tuple):
      config[name] = tuple(one(part) for part in value)
    else:
      config[name] = one(value)
