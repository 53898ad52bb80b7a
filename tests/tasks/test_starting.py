# SPDX-License-Identifier: Apache-2.0
"""Weights to start from: of the stage before, and of which licence."""

import jax
import numpy as np
import parity
import pytest
import tiny
import toys

from cc_jax.models import dit, hub, kinds, reparameterise
from cc_jax.tasks import starting
from cc_jax.tasks import task as tasks

SHAPE = dict(sample_size=8, heads=2, head_width=12, depth=2, out_channels=8)
CARD = "---\nlicense: {}\ntags:\n- other\n---\n\n# Weights\n"


def save(folder, kind, fields, seed=5):
  config = hub.config(fields, kind)
  params = parity.scramble(kinds.structure(kind, config)[1], seed)
  hub.save(str(folder), kind, config, params)
  return config, params


@pytest.fixture
def start(tmp_path_factory, tmp_path):
  """`start(folder, **fields)` -> (params, initial ones)."""
  data = tiny.shared(tmp_path_factory)

  def start(folder, **fields):
    task = tasks.make(toys.pixart(data, tmp_path, **fields))
    initial = jax.jit(task.init)(jax.random.key(0))
    return tasks.load(task, str(folder), initial), initial

  return start


def same(a, b):
  return tiny.largest_difference(a, b) == 0


def test_a_dit_becomes_a_pixart_and_the_text_begins_anew(start, tmp_path):
  """A folder of DiT's pipeline has no text tower."""
  config, params = save(
    tmp_path / "pixel/transformer", "dit", {**SHAPE, "classes": 3}
  )
  (tmp_path / "pixel/model_index.json").write_text("{}")
  found, initial = start(tmp_path / "pixel")
  assert same(found["text"], initial["text"])
  expected = reparameterise.from_dit(params, config, initial["transformer"])
  assert tiny.largest_difference(found["transformer"], expected) < 1e-5
  other, _ = start(tmp_path / "pixel", latent_diffusion__init_class="zero")
  assert tiny.largest_difference(other["transformer"], expected) > 1e-3


def test_a_dit_of_another_shape_is_refused(start, tmp_path):
  save(tmp_path / "pixel", "dit", {**SHAPE, "depth": 3})
  with pytest.raises(ValueError, match="cannot become a PixArt of depth=2"):
    start(tmp_path / "pixel", latent_diffusion__train_text=True)


def test_a_larger_pixart_goes_on_from_a_smaller_one(start, tmp_path):
  """Weights are the same; what only it has has no effect at first."""
  fields = {**SHAPE, "caption_width": 16}
  _, params = save(tmp_path / "one/transformer", "pixart", fields)
  (tmp_path / "one/model_index.json").write_text("{}")
  larger = {
    **fields,
    "sample_size": 16,
    "micro_conditions": True,
    "null_tokens": 8,
  }
  found, initial = start(tmp_path / "one", model__transformer=larger)
  made = dict(found["transformer"])
  for name in ("size", "ratio"):
    new = made.pop(name)
    assert not any(np.any(x) for x in jax.tree.leaves(new["down"]))
    assert same(new["up"], initial["transformer"][name]["up"])
  null = made.pop("null_caption")
  assert same({"x": null}, {"x": initial["transformer"]["null_caption"]})
  assert same(made, params)


def test_the_same_sizes_go_on_with_what_they_had(start, tmp_path):
  fields = {**SHAPE, "caption_width": 16, "micro_conditions": True}
  _, params = save(tmp_path / "one/transformer", "pixart", fields)
  (tmp_path / "one/model_index.json").write_text("{}")
  found, _ = start(tmp_path / "one", model__transformer=fields)
  assert same(found["transformer"], params)
  with pytest.raises(ValueError, match="is another pixart: depth=2"):
    start(tmp_path / "one", model__transformer={**fields, "depth": 3})


def test_published_dit_weights_are_not_for_a_commercial_model():
  words = r"CC-BY-NC-4.0: not for a model .*'non-commercial'"
  with pytest.raises(ValueError, match=words):
    starting.check_licence("dit-xl-2/transformer", "commercial")
  starting.check_licence("dit-xl-2/transformer", "non-commercial")
  starting.check_licence("pixart-256/transformer", "commercial")


@pytest.mark.parametrize("inside", ["", "/transformer"])
def test_a_folder_whose_card_forbids_it_is_refused(inside, start, tmp_path):
  save(tmp_path / "nc/transformer", "dit", SHAPE)
  (tmp_path / "nc/model_index.json").write_text("{}")
  card = tmp_path / "nc/README.md"
  card.write_text(CARD.format("cc-by-nc-4.0"))
  with pytest.raises(ValueError, match="train the first stage on images"):
    start(f"{tmp_path}/nc{inside}")
  start(tmp_path / "nc", catalogue__collection="non-commercial")
  card.write_text(CARD.format("cc-by-4.0"))
  start(tmp_path / "nc")


def test_a_dit_in_the_published_shape_is_taken_for_that(tmp_path, monkeypatch):
  """Unless it says what it is, or is an export of ours."""
  monkeypatch.setattr(dit, "DIT_XL_2", dit.Config(**SHAPE, classes=1000))
  save(tmp_path / "copy", "dit", SHAPE)
  name = str(tmp_path / "copy")
  with pytest.raises(ValueError, match="its shape is that of facebook/DiT"):
    starting.check_licence(name, "commercial")
  card = tmp_path / "copy/README.md"
  card.write_text("---\ntags:\n- cc_jax\n- x\n---\n")
  starting.check_licence(name, "commercial")
  card.write_text(CARD.format("mit"))
  starting.check_licence(name, "commercial")


def test_another_dit_that_states_nothing_may_be_used(tmp_path):
  save(tmp_path / "own", "dit", {**SHAPE, "classes": 7})
  starting.check_licence(str(tmp_path / "own"), "commercial")
  assert starting.licence_of(str(tmp_path / "own")) == ""
