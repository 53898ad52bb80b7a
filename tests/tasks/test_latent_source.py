# SPDX-License-Identifier: Apache-2.0
"""Images encoded in the step train what latents encoded before do."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny
import toys

from cc_jax.core import tree
from cc_jax.data import grids
from cc_jax.models import hub
from cc_jax.stages import train
from cc_jax.tasks import latent_source
from cc_jax.tasks import task as tasks

FROM_IMAGES = {"latent_diffusion__from_images": True}


def images(data, workdir, **fields):
  """The tiny config on pictures and captions as they are."""
  folders = (f"{data}/catalogue", f"{data}/captions")
  return tiny.config(
    data, workdir, train__folders=folders, **FROM_IMAGES, **fields
  )


def rows(task, config, count=8):
  """A batch of the first records."""
  source = tasks.source(task, config.train.folders, "train")
  records = [source[i] for i in range(count)]
  if task.transform:
    records = [task.transform(record) for record in records]
  return {
    name: jnp.stack([jnp.asarray(record[name]) for record in records])
    for name in records[0]
  }


@pytest.fixture(scope="module")
def both(data):
  """Loss and gradients of latents encoded before, and of images."""

  def run(config):
    task = tasks.make(config)
    batch = rows(task, config)
    params = parity.scramble(jax.eval_shape(task.init, jax.random.key(0)))
    found = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (loss, _), grads = found(params, batch, jax.random.key(1))
    return batch, loss, tree.flatten(grads)

  return run(tiny.config(data, data)), run(images(data, data))


def test_the_loss_is_that_of_latents_encoded_before(both):
  (before, wanted, _), (given, found, _) = both
  assert set(given) == {"image", "tokens"}
  assert given["image"].dtype == jnp.uint8
  np.testing.assert_array_equal(given["tokens"], before["tokens"])
  parity.check(found, wanted, parity.MODEL)


def test_the_gradients_are_those_of_latents_encoded_before(both):
  wanted, found = both[0][2], both[1][2]
  assert found.keys() == wanted.keys()
  largest = max(float(jnp.abs(grad).max()) for grad in wanted.values())
  assert largest > 1e-3
  for path, grad in wanted.items():
    error = float(jnp.abs(found[path] - grad).max())
    assert error < parity.MODEL * largest, path


@pytest.mark.slow
def test_a_run_from_a_folder_of_images_trains(data, tmp_path):
  made = images(
    data,
    tmp_path,
    model__unet__channels=(8,),
    model__unet__attention=(False,),
    train__steps=2,
  )
  state = train.main(made, str(tmp_path))
  assert int(state.step) == 2
  initial = tasks.make(made).init(jax.random.key(made.seed))
  assert tiny.largest_difference(state.params, initial) > 0


def test_networks_that_read_sizes_have_those_of_the_crop(data, tmp_path):
  made = toys.sdxl(data, tmp_path, **FROM_IMAGES)
  task = tasks.make(made)
  assert task.features == ("caption_title", "image")
  picture = np.zeros((20, 30, 3), np.uint8)
  record = task.transform(
    {"image": grids.encode_png(picture), "caption_title": "red"}
  )
  assert record["size"].tolist() == [20, 30]
  # 30 columns become 24, of which 16 are in the middle.
  assert record["crop"].tolist() == [0, 4]
  assert record["image"].shape == (16, 16, 3)
  batch = {name: jnp.asarray(x)[None] for name, x in record.items()}
  params = jax.eval_shape(task.init, jax.random.key(0))
  loss, _ = jax.eval_shape(task.loss, params, batch, jax.random.key(0))
  assert loss.shape == ()


def test_the_mean_alone_is_read_where_the_deviation_is_not(data):
  class Vae:
    def latents(self, pixels):
      return pixels / 2, pixels / 3

  made = images(data, data, encode__std=False)
  source = latent_source.of_images(made.encode, hub.Loaded(None), ())
  batch = {"image": jnp.full((1, 2), 6.0), "tokens": jnp.zeros(3)}
  found = source.read({"vae": Vae()}, batch)
  assert set(found) == {"tokens", "latent_mean"}
  assert found["latent_mean"].tolist() == [[3, 3]]


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("encode__buckets", True, "encode.buckets needs latents"),
    ("latent_diffusion__padded", True, "latent_diffusion.padded needs"),
    ("encode__crop", "random", "encode.crop='random' needs"),
    ("encode__refuse", ("empty",), "encode.refuse needs"),
    ("encode__size", 15, "encode.size=15 does not divide by 2"),
  ],
)
def test_what_must_be_encoded_before_is_refused(data, field, value, words):
  with pytest.raises(ValueError, match=words):
    tasks.make(images(data, data, **{field: value}))
