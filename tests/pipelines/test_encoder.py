# SPDX-License-Identifier: Apache-2.0
"""Images to latents, codes and embeddings, with tiny networks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pictures
import pytest
import tiny
import tiny_models
import toys

from cc_jax.core import tree
from cc_jax.data import frames, images, passes, records, squares, tokenize
from cc_jax.models import clip_vision, hub, kinds, layers
from cc_jax.pipelines import encoder, scaling

BATCH = 8
BUCKETS = dict(bucketed=True, step=4, enlarge=True)


def loaded(kind, **changes):
  """A network of random weights."""
  config = dataclasses.replace(tiny_models.TINY[kind], **changes)
  module = kinds.make(kind, config, rngs=layers.keys(3))
  return hub.Loaded(config, tree.split(module)[1])


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  made = tiny.config(tiny.shared(tmp_path_factory), "unused")
  return encoder.Networks(
    vae=hub.load(made.model.vae, "autoencoder"),
    tokenizer=tokenize.load(made.model.tokenizer),
  )


@pytest.fixture(scope="module")
def encode(parts):
  return made(parts)[0]


@pytest.fixture(scope="module")
def clip_gen():
  return encoder.Networks(vqgan=loaded("vqgan"), clip=loaded("clip"))


def made(networks, size=tiny.SIZE, batch_size=BATCH, std=True, **cropping):
  """A function of lists, and the fields of what it returns."""
  options = encoder.Options(
    frames=frames.make(size, **cropping),
    batch_size=batch_size,
    std=std,
    caption="caption",
    tokens=8,
    dtype="float32",
  )
  stream = encoder.make(networks, [options])
  fields = records.fields(encoder.features(networks, options))
  return lambda batch: [found for (found,) in stream(iter(batch))], fields


def examples(count, shapes=((48, 64),)):
  return [
    {
      "key": str(i),
      "image": pictures.saved(
        np.roll(pictures.scene(*shapes[i % len(shapes)]), i, 1), "PNG"
      ),
      "caption": f"a photo of red {i}",
    }
    for i in range(count)
  ]


def latents(vae, image):
  """(mean, std) of one image, by the autoencoder itself."""
  structure, _ = kinds.structure("autoencoder", vae.config)
  x = jnp.asarray(image, jnp.float32)[None] / 127.5 - 1
  return tree.merge(structure, vae.params).encode(x)


def close(found, expected):
  # bfloat16 has eight bits.
  np.testing.assert_allclose(
    found.astype(np.float32), expected, rtol=2**-7, atol=1e-4
  )


def test_records_are_what_the_autoencoder_and_tokenizer_give(parts):
  encode, fields = made(parts)
  batch = examples(3)
  for example, record in zip(batch, encode(batch), strict=True):
    cover = images.decode_cover(example["image"], tiny.SIZE, tiny.SIZE)
    mean, std = latents(parts.vae, cover.image)
    for name, value in (("latent_mean", mean), ("latent_std", std)):
      assert record[name].shape == (8, 8, 4)
      close(record[name], value[0])
    ids, _ = tokenize.encode(parts.tokenizer, [example["caption"]], 8)
    np.testing.assert_array_equal(record["tokens"], ids[0])
    np.testing.assert_array_equal(record["size"], (48, 64))
    np.testing.assert_array_equal(record["crop"], cover.crop)
    np.testing.assert_array_equal(record["bucket"], (tiny.SIZE, tiny.SIZE))
    assert records.encode(fields, record)


def test_the_mean_alone_leaves_the_deviation_out(parts):
  encode, fields = made(parts, std=False)
  (record,) = encode(examples(1))
  assert "latent_std" not in record
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


def test_in_buckets_a_latent_is_flat_and_its_frame_says_its_shape(parts):
  encode, fields = made(parts, **BUCKETS)
  batch = examples(20, ((48, 64), (64, 48), (48, 48), (32, 96)))
  seen = set()
  for example, record in zip(batch, encode(batch), strict=True):
    assert record["key"] == example["key"]
    h, w = record["bucket"].tolist()
    seen.add((h, w))
    cover = images.decode_cover(example["image"], h, w)
    np.testing.assert_array_equal(record["crop"], cover.crop)
    for name, value in zip(
      ("latent_mean", "latent_std"),
      latents(parts.vae, cover.image),
      strict=True,
    ):
      close(record[name].reshape(h // 2, w // 2, 4), value[0])
    assert records.encode(fields, record)
  assert len(seen) == 4


def test_codes_are_those_of_the_frame_row_by_row(clip_gen):
  encode, fields = made(clip_gen)
  batch = examples(3)
  structure, _ = kinds.structure("vqgan", clip_gen.vqgan.config)
  network = tree.merge(structure, clip_gen.vqgan.params)
  for example, record in zip(batch, encode(batch), strict=True):
    cover = images.decode_cover(example["image"], tiny.SIZE, tiny.SIZE)
    x = jnp.asarray(cover.image, jnp.float32)[None] / 127.5 - 1
    _, codes = network.quantise(network.encode(x))
    np.testing.assert_array_equal(record["codes"], codes[0].ravel())
    assert record["codes"].dtype == np.uint16
    assert not {"latent_mean", "tokens"} & set(record)
    assert records.encode(fields, record)


def test_the_embedding_is_clips_of_the_crop(clip_gen):
  encode, _ = made(clip_gen)
  structure, _ = kinds.structure("clip", clip_gen.clip.config)
  network = tree.merge(structure, clip_gen.clip.params)
  (example,) = examples(1)
  (record,) = encode([example])
  cover = images.decode_cover(example["image"], tiny.SIZE, tiny.SIZE)
  small = squares.square(cover.image, 8, squares.CROP)
  x = clip_vision.normalise(jnp.asarray(small, jnp.float32)[None] / 127.5 - 1)
  expected = network.image_embedding(x)[0]
  np.testing.assert_allclose(
    record["clip_image"], expected, rtol=2**-10, atol=1e-4
  )
  assert abs(np.linalg.norm(expected) - 1) > 0.05  # As the tower gives it.


def test_text_states_are_kept_for_valid_tokens_only(parts):
  t5 = loaded("t5", vocabulary=len(parts.tokenizer))
  encode, fields = made(parts._replace(t5=t5))
  batch = examples(3)
  batch[1]["caption"] = "red"
  structure, _ = kinds.structure("t5", t5.config)
  ids, mask = tokenize.encode(
    parts.tokenizer, [example["caption"] for example in batch], 8
  )
  states = tree.merge(structure, t5.params)(jnp.asarray(ids), jnp.asarray(mask))
  lengths = set()
  for row, record in enumerate(encode(batch)):
    close(record["text_states"], states[row][mask[row]])
    lengths.add(len(record["text_states"]))
    assert records.encode(fields, record)
  assert len(lengths) > 1


def test_features_and_hashes_agree(parts, clip_gen):
  every = parts._replace(vqgan=clip_gen.vqgan, clip=clip_gen.clip)
  every = every._replace(t5=loaded("t5"))
  options = encoder.Options(frames.make(16), BATCH, std=False)
  plain = {"key", "size", "crop", "bucket"}
  assert (
    encoder.hashes(every, options).keys()
    == encoder.features(every, options).keys() - plain
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"size": 15}, r"encode\.size=15 does not divide by 2"),
    ({"batch_size": 12}, "does not divide over 8 devices"),
    (
      {"size": 15, "bucketed": True, "step": 5},
      "a bucket of encode.size=15 does",
    ),
  ],
)
def test_sizes_and_batches_must_divide(parts, changes, message):
  with pytest.raises(ValueError, match=message):
    made(parts, **changes)


def test_what_cannot_be_encoded_is_said(parts):
  with pytest.raises(ValueError, match="nothing to encode"):
    made(encoder.Networks(tokenizer=parts.tokenizer))
  with pytest.raises(ValueError, match=r"text_states needs encode\.captions"):
    made(parts._replace(tokenizer=None, t5=loaded("t5")))
  with pytest.raises(ValueError, match="16 bits"):
    made(encoder.Networks(vqgan=loaded("vqgan", codebook_size=2**16 + 1)))


def test_the_scaling_factor_is_one_over_the_deviation(parts):
  vae = parts.vae
  batch = [toys.picture(seed) for seed in range(6)]
  factor = scaling.scaling_factor(vae, batch, tiny.SIZE)
  structure, _ = kinds.structure("autoencoder", vae.config)
  pixels = [images.decode_cover(b, tiny.SIZE, tiny.SIZE).image for b in batch]
  x = jnp.asarray(np.stack(pixels), jnp.float32) / 127.5 - 1
  mean, std = tree.merge(structure, vae.params).encode(x)
  variance = jnp.var(mean) + jnp.mean(jnp.square(std))
  assert factor == pytest.approx(float(variance) ** -0.5, rel=1e-5)
