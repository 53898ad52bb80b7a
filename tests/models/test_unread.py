# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import pytest
import tiny

from cc_jax.core import sharding, tree
from cc_jax.models import hub, unread
from cc_jax.tasks import task as tasks


def test_networks_without_their_weights_are_shapes_in_their_layouts():
  mesh = sharding.make_mesh(fsdp=4)
  with unread.weights():
    # A row that would be downloaded, and there is no network here.
    found = hub.load("sd2/text", "clip_text", dtype="bfloat16", mesh=mesh)
    assert found.hash == ""
  assert tree.count(found.params) == 340_387_840
  leaf = found.params["blocks"]["attn"]["q"]["kernel"]
  assert (leaf.shape, leaf.dtype) == ((23, 1024, 1024), jnp.bfloat16)
  assert leaf.sharding.shard_shape(leaf.shape) == (23, 256, 1024)


def test_any_name_gives_shapes_then_and_only_then():
  with unread.weights():
    for name in ("SD2", {"width": 16, "heads": 2, "depth": 1}):
      assert hub.open(name, "clip_text", dtype="float32").params
  assert not unread.are_weights()
  assert hub.open("SD2", "clip_text").params is None
  with pytest.raises(ValueError, match="no weights"):
    hub.load("SD2", "clip_text")


def test_a_task_without_weights_has_the_shapes_of_one_with_them(
  tmp_path_factory, tmp_path
):
  data = tiny.shared(tmp_path_factory)
  made = tiny.config(data, tmp_path)
  task = tasks.make(made)
  with made.unlocked():
    made.model.tokenizer = "sd2/tokenizer"
    made.model.vae = tiny.VAE
    made.model.text.vocabulary = 514
  with unread.weights():
    other = tasks.make(made)
  assert other.features == task.features
  shapes = lambda one: jax.tree.map(lambda x: (x.shape, x.dtype), one)
  # One program serves both: what a tokenizer says is no constant of it.
  ours, theirs = (jax.tree.leaves(shapes(one.loss)) for one in (task, other))
  assert ours == theirs
  key = jax.random.key(0)
  assert jax.eval_shape(task.init, key) == jax.eval_shape(other.init, key)
