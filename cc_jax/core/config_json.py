# SPDX-License-Identifier: Apache-2.0
"""A model's `Config` and the config.json of the hub, by one table, both ways.

The table says which field is which key, which keys have one value that is
supported, and which follow from others; a key that it does not know is an
error, since it may change what the network computes.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
import types
import typing
from typing import Any

# What transformers writes into any config.json beside the architecture: how
# weights are stored, what calls return, and defaults of text generation.
GENERIC = tuple(
  """
  add_cross_attention bad_words_ids begin_suppress_tokens
  chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
  diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
  exponential_decay_length_penalty finetuning_task forced_bos_token_id
  forced_eos_token_id id2label initializer_factor initializer_range
  is_decoder is_encoder_decoder label2id length_penalty max_length min_length
  no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
  output_attentions output_hidden_states output_scores prefix problem_type
  pruned_heads remove_invalid_values repetition_penalty return_dict
  return_dict_in_generate sep_token_id suppress_tokens task_specific_params
  temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
  torch_dtype torchscript transformers_version typical_p use_bfloat16
  """.split()
)


@dataclasses.dataclass(frozen=True)
class ConfigTable:
  """How a `Config` is written as the config.json of the hub.

  Attributes:
    renamed: our field -> their key; a field that is not named keeps its name.
    coded: their key -> our value -> their value; of a tuple, its elements.
    fixed: their key -> the one value that we support, also when it is absent.
    legacy: their key -> further values that files of earlier releases have and
      that mean what we compute; read, never written.
    derived: from a config, their keys and values that follow from others;
      they must agree on import.
    ignored: their keys that do not change the computation.
    written: further keys and values that export adds (class names).
    given: our field -> the one value that it has in such files; they may state
      another, which means nothing in them, and export leaves it out.
    own: keys of ours that the reference library does not know, and ignores
      with a warning; export leaves them out where they have our default.
    parts: our field -> their key, the `Config` and the table of a group of
      keys, such as the towers of a model of several.
  """

  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  coded: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  legacy: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
  derived: Callable[[Any], Mapping[str, Any]] = lambda config: {}
  ignored: Sequence[str] = ()
  written: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  own: Sequence[str] = ()
  parts: Mapping[str, tuple[str, type, "ConfigTable"]] = dataclasses.field(
    default_factory=dict
  )


def _tuples(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return tuple(map(_tuples, value))
  return value


def _coded(value: Any, codes: Mapping) -> Any:
  """A value by a table of `coded`, a tuple element by element."""
  if isinstance(value, tuple):
    return tuple(codes[element] for element in value)
  return codes[value]


def _fits(value: Any, hint: Any) -> bool:
  """Whether a value from JSON is of a field's type."""
  if isinstance(hint, types.UnionType):
    return any(_fits(value, choice) for choice in typing.get_args(hint))
  kind = typing.get_origin(hint) or hint
  if kind is float:
    return type(value) in (int, float)
  if kind is tuple and isinstance(value, tuple):
    element, *rest = typing.get_args(hint)
    same = rest == [...] or len(rest) + 1 == len(value)
    return same and all(_fits(one, element) for one in value)
  return type(value) is kind


def import_config(
  theirs: Mapping[str, Any], config: type, table: ConfigTable
) -> Any:
  """A `config` instance from a config.json.

  A key that is absent has the default of our field, which is to be theirs.

  Raises:
    ValueError: a key that we do not know, or a value that we do not support;
      all in one message.
  """
  theirs = {key: _tuples(value) for key, value in theirs.items()}
  fields = {
    table.renamed.get(field.name, field.name): field.name
    for field in dataclasses.fields(config)
    if field.name not in table.parts
  }
  for name in table.given:
    theirs.pop(table.renamed.get(name, name), None)
  hints = typing.get_type_hints(config)
  wrong, values, rest = [], dict(table.given), {}
  for field, (key, part, inner) in table.parts.items():
    group = theirs.pop(key, None) or {}
    try:
      values[field] = import_config(group, part, inner)
    except ValueError as error:
      wrong.append(f"{key}: {str(error).removeprefix('config.json has ')}")
  for key, value in theirs.items():
    if key in table.coded:
      codes = {new: old for old, new in table.coded[key].items()}
      known = set(value if isinstance(value, tuple) else [value]) <= set(codes)
      ours = _coded(value, codes) if known else None
      values[fields[key]] = ours
      if not known or not _fits(ours, hints[fields[key]]):
        wrong.append(f"{key}={value!r} (supported: {', '.join(codes)})")
    elif key in fields:
      values[fields[key]] = value
      if not _fits(value, hints[fields[key]]):
        kind = inspect.formatannotation(hints[fields[key]])
        wrong.append(f"{key}={value!r} (supported: {kind})")
    elif key in table.fixed or key in table.legacy:
      known = [table.fixed[key]] if key in table.fixed else []
      known += table.legacy.get(key, ())
      if value not in map(_tuples, known):
        choices = ", ".join(map(repr, known))
        wrong.append(f"{key}={value!r} (supported: {choices})")
    elif key not in table.ignored and key not in table.written:
      rest[key] = value
  if wrong:
    raise ValueError("config.json has " + ", ".join(wrong))
  result = config(**values)
  derived = table.derived(result)
  for key, value in rest.items():
    if key in derived:
      if value != _tuples(derived[key]):
        wrong.append(f"{key}={value!r} (expected: {derived[key]!r})")
    elif not key.startswith("_"):
      wrong.append(f"{key}={value!r} (unknown)")
  if wrong:
    raise ValueError("config.json has " + ", ".join(wrong))
  return result


def export_config(config: Any, table: ConfigTable) -> dict[str, Any]:
  """The config.json of a `Config`: the inverse of `import_config`."""
  ours = {}
  for field in dataclasses.fields(config):
    name, value = field.name, getattr(config, field.name)
    if name in table.given:
      continue
    if name in table.parts:
      key, _, inner = table.parts[name]
      ours[key] = export_config(value, inner)
      continue
    key = table.renamed.get(name, name)
    if key in table.own and value == field.default:
      continue
    codes = table.coded.get(key)
    ours[key] = value if codes is None else _coded(value, codes)
  return {**table.written, **table.fixed, **table.derived(config), **ours}
