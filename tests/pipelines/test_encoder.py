# SPDX-License-Identifier: Apache-2.0
"""Images to latents, with a tiny autoencoder of random weights."""

import jax.numpy as jnp
import numpy as np
import pictures
import pytest
import tiny
import toys

from cc_jax.core import tree
from cc_jax.data import images, passes, records, tokenize
from cc_jax.models import hub, kinds
from cc_jax.pipelines import encoder

BATCH = 8


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  made = tiny.config(tiny.shared(tmp_path_factory), "unused")
  vae = hub.load(made.model.vae, "autoencoder")
  return vae, tokenize.load(made.model.tokenizer)


@pytest.fixture(scope="module")
def encode(parts):
  return make(parts)


def make(parts, **changes):
  options = dict(
    caption="caption",
    size=tiny.SIZE,
    tokens=8,
    batch_size=BATCH,
    dtype="float32",
  )
  return encoder.make(*parts, **(options | changes))


def examples(count):
  return [
    {
      "key": str(i),
      "image": pictures.saved(np.roll(pictures.scene(), i, 1), "PNG"),
      "caption": f"a photo of red {i}",
    }
    for i in range(count)
  ]


def test_records_are_what_the_autoencoder_and_tokenizer_give(parts, encode):
  vae, tokenizer = parts
  batch = examples(3)
  found = encode(batch)
  fields = records.fields(encoder.features(vae, tiny.SIZE, 8))
  structure, _ = kinds.structure("autoencoder", vae.config)
  for example, record in zip(batch, found, strict=True):
    cover = images.decode_cover(example["image"], tiny.SIZE, tiny.SIZE)
    x = jnp.asarray(cover.image, jnp.float32)[None] / 127.5 - 1
    mean, std = tree.merge(structure, vae.params).encode(x)
    for name, value in (("latent_mean", mean), ("latent_std", std)):
      assert record[name].shape == (8, 8, 4)
      # bfloat16 has eight bits.
      np.testing.assert_allclose(
        record[name].astype(np.float32), value[0], rtol=2**-7, atol=1e-4
      )
    ids, _ = tokenize.encode(tokenizer, [example["caption"]], 8)
    np.testing.assert_array_equal(record["tokens"], ids[0])
    np.testing.assert_array_equal(record["size"], (48, 64))
    np.testing.assert_array_equal(record["crop"], cover.crop)
    assert records.encode(fields, record)


def test_a_record_does_not_depend_on_its_batch(encode):
  whole = encode(examples(BATCH))
  for i in (0, 5):
    (alone,) = encode(examples(BATCH)[i : i + 1])
    for name, value in alone.items():
      np.testing.assert_array_equal(value, whole[i][name])


def test_an_image_that_cannot_be_read_is_a_reject(encode):
  batch = examples(3)
  batch[1]["image"] = batch[1]["image"][:200]
  found = encode(batch)
  assert isinstance(found[1], passes.Reject)
  assert found[1].reason == "image_truncated"
  expected = encode(examples(3))
  for i in (0, 2):
    np.testing.assert_array_equal(
      found[i]["latent_mean"], expected[i]["latent_mean"]
    )


def test_sizes_and_batches_must_divide(parts):
  with pytest.raises(ValueError, match=r"encode\.size=15 does not divide by 2"):
    make(parts, size=15)
  with pytest.raises(ValueError, match="does not divide over 8 devices"):
    make(parts, batch_size=12)


def test_the_scaling_factor_is_one_over_the_deviation(parts):
  vae, _ = parts
  batch = [toys.picture(seed) for seed in range(6)]
  factor = encoder.scaling_factor(vae, batch, tiny.SIZE)
  structure, _ = kinds.structure("autoencoder", vae.config)
  pixels = [images.decode_cover(b, tiny.SIZE, tiny.SIZE).image for b in batch]
  x = jnp.asarray(np.stack(pixels), jnp.float32) / 127.5 - 1
  mean, std = tree.merge(structure, vae.params).encode(x)
  variance = jnp.var(mean) + jnp.mean(jnp.square(std))
  assert factor == pytest.approx(float(variance) ** -0.5, rel=1e-5)
