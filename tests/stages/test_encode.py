# SPDX-License-Identifier: Apache-2.0
"""cc-jax encode: folders of each kind, killed passes, bytes a record."""

import dataclasses
import itertools
import os

import numpy as np
import pictures
import pytest
import tiny
import tiny_models
import toy_pass

from cc_jax.core import config as configs
from cc_jax.core import tree
from cc_jax.data import (
  aligned,
  bucket_index,
  latents,
  loader,
  shards,
  tokenize,
)
from cc_jax.models import autoencoder, hub, kinds, layers, vqgan
from cc_jax.pipelines import encoder
from cc_jax.stages import caption, catalogue, encode, train

BUCKETS = {
  "encode__buckets": True,
  "encode__bucket_step": 4,
  "encode__enlarge": True,
}
CLIP_GEN = {"encode__latents": False, "encode__captions": ""}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def shapes(data, tmp_path_factory):
  """A catalogue and captions of pictures of several shapes."""
  folder = tmp_path_factory.mktemp("shapes")
  tiny.write_source(folder / "source")
  sides = ((16, 16), (12, 24), (24, 12), (10, 30))
  for i, path in enumerate(sorted((folder / "source").glob("*.png"))):
    picture = np.roll(pictures.scene(*sides[i * 7 % 11 % 4]), i, 1)
    path.write_bytes(pictures.saved(picture, "PNG"))
  made = config(data, folder)
  with made.unlocked():
    made.catalogue.source = str(folder / "source")
    made.catalogue.records_per_shard = 12
  catalogue.main(made, str(folder))
  caption.main(made, str(folder))
  return folder


def config(data, folder, output="latents", **fields):
  """The tiny config, with catalogue, captions and output in `folder`."""
  paths = {
    "catalogue__folder": f"{folder}/catalogue",
    "caption__images": f"{folder}/catalogue",
    "caption__folder": f"{folder}/captions",
    "caption__vocabulary": 0,
    "encode__images": f"{folder}/catalogue",
    "encode__captions": f"{folder}/captions",
    "encode__folder": f"{folder}/{output}",
  }
  return tiny.config(data, str(folder), **(paths | fields))


def save(folder, kind, fields=None):
  made = fields or tiny_models.TINY[kind]
  module = kinds.make(kind, made, rngs=layers.keys(0))
  hub.save(str(folder), kind, made, tree.split(module)[1])
  return str(folder)


def test_a_folder_in_buckets_is_trained_on_in_buckets(data, shapes):
  made = config(data, shapes, **BUCKETS)
  counts = encode.main(made, str(shapes))
  assert counts.kept == counts.read == tiny.RECORDS + tiny.VALIDATION
  dataset = shards.open(made.encode.folder)
  assert (shapes / "latents" / bucket_index.FILE).exists()
  source = aligned.source([dataset], "train")
  buckets = bucket_index.load(source)
  assert len(set(buckets.tolist())) == 4
  batches = loader.batches(
    source, batch_size=4, seed=0, buckets=buckets, transform=latents.shaped
  )
  seen = set()
  for _ in range(20):
    batch = next(batches)
    (height, width) = batch["bucket"][0].tolist()
    assert batch["latent_mean"].shape == (4, height // 2, width // 2, 4)
    seen.add((height, width))
  assert len(seen) == 4
  batches.close()


@pytest.mark.slow  # A train step is compiled for each bucket.
def test_a_run_in_buckets_resumes_exactly(data, shapes):
  made = config(data, shapes, "trained", **BUCKETS)
  encode.main(made, str(shapes))
  settings = dict(
    train__folders=(made.encode.folder,),
    train__batch_size=8,
    train__log_every=2,
    **BUCKETS,
  )

  def run(name, steps):
    workdir = str(shapes / name)
    path = f"{workdir}/checkpoints"
    return train.main(
      tiny.config(
        data,
        workdir,
        train__steps=steps,
        train__checkpoint_every=3,
        train__checkpoints=path,
        **settings,
      ),
      workdir,
    )

  with tiny.compiled_once(data):
    straight = run("straight", 5)
    run("stopped", 3)
    assert tiny.largest_difference(run("stopped", 5), straight) == 0


def test_records_stay_in_order_and_beside_their_captions(data, shapes):
  made = config(data, shapes, "ordered", **BUCKETS)
  encode.main(made, str(shapes))
  sides = [shards.open(made.encode.folder), shards.open(made.encode.captions)]
  assert len(aligned.source(sides, "train").read(range(tiny.RECORDS)))


def test_a_killed_pass_is_finished_with_the_same_bytes(
  data, shapes, monkeypatch
):
  whole = config(data, shapes, "whole", **BUCKETS)
  encode.main(whole, str(shapes))
  made = config(data, shapes, "killed", **BUCKETS)
  with (
    toy_pass.stopped(monkeypatch, shards=2),
    pytest.raises(KeyboardInterrupt),
  ):
    encode.main(made, str(shapes))
  assert not (shapes / "killed" / bucket_index.FILE).exists()
  counts = encode.main(made, str(shapes))
  assert (counts.skipped, counts.complete) == (2, True)
  assert toy_pass.contents(shapes / "killed") == toy_pass.contents(
    shapes / "whole"
  )


def alone(data, shapes, place, size, **fields):
  """The contents of the folder of one size, by a pass of its own."""
  made = config(data, shapes, encode__size=size, **fields)
  with made.unlocked():
    made.encode.folder = f"{place}/alone_{size}"
  encode.main(made, str(place))
  return toy_pass.contents(made.encode.folder)


def test_sizes_of_one_pass_are_each_what_its_own_pass_makes(
  data, shapes, tmp_path
):
  made = config(data, shapes, encode__sizes=(14, 10))
  with made.unlocked():
    made.encode.folder = str(tmp_path / "latents")
  counts = encode.main(made, str(tmp_path))
  total = tiny.RECORDS + tiny.VALIDATION
  assert counts.kept + sum(counts.rejected.values()) == counts.read == 2 * total
  for size in (14, 10):
    folder = tmp_path / f"latents_{size}"
    assert toy_pass.contents(folder) == alone(data, shapes, tmp_path, size)
  # What is too small for one is not for the other.
  kept = [len(shards.open(tmp_path / f"latents_{size}")) for size in (14, 10)]
  assert kept[0] < kept[1] == total
  assert counts.rejected == {"too_small": total - kept[0]}


def test_buckets_of_several_sizes_are_each_what_its_own_pass_makes(
  data, shapes, tmp_path
):
  made = config(data, shapes, encode__sizes=(16, 8), **BUCKETS)
  with made.unlocked():
    made.encode.folder = str(tmp_path / "latents")
  encode.main(made, str(tmp_path))
  for size in (16, 8):
    expected = alone(data, shapes, tmp_path, size, **BUCKETS)
    assert toy_pass.contents(tmp_path / f"latents_{size}") == expected
    assert bucket_index.FILE in expected


def test_sizes_go_on_from_whatever_was_done(
  data, shapes, tmp_path, monkeypatch
):
  def made(**fields):
    return config(data, shapes, f"{tmp_path.name}/latents", **fields)

  # Alone, and stopped in its third shard; then together, and stopped again.
  with (
    toy_pass.stopped(monkeypatch, shards=2),
    pytest.raises(KeyboardInterrupt),
  ):
    encode.main(
      config(data, shapes, f"{tmp_path.name}/latents_14", encode__size=14),
      str(tmp_path),
    )
  with (
    toy_pass.stopped(monkeypatch, shards=3),
    pytest.raises(KeyboardInterrupt),
  ):
    encode.main(made(encode__sizes=(14, 10)), str(tmp_path))
  counts = encode.main(made(encode__sizes=(14, 10)), str(tmp_path))
  assert counts.complete
  assert counts.skipped == 4
  for size in (14, 10):
    folder = shapes / f"{tmp_path.name}/latents_{size}"
    assert toy_pass.contents(folder) == alone(data, shapes, tmp_path, size)
  # A further size is made without those that are done.
  made_of = []
  make = encoder.make

  def noted(networks, sizes, seconds):
    made_of.append([one.frames.table[0] for one in sizes])
    return make(networks, sizes, seconds)

  monkeypatch.setattr(encoder, "make", noted)
  counts = encode.main(made(encode__sizes=(10, 12, 14)), str(tmp_path))
  assert made_of == [[(10, 10), (14, 14)], [(12, 12)]]
  assert (counts.shards, counts.skipped) == (5, 10)


def test_sizes_that_are_none_are_said(data, shapes):
  for sizes, message in (
    ((14, 14), "expected numbers, each once"),
    (("14",), "expected numbers, each once"),
    ((14, 15), r"encode\.size=15 does not divide by 2"),
  ):
    made = config(data, shapes, "none", encode__sizes=sizes)
    with pytest.raises(ValueError, match=message):
      encode.main(made, str(shapes))
  assert not list(shapes.glob("none*"))


def test_images_under_the_size_are_counted_and_left_out(data, shapes, capsys):
  made = config(data, shapes, "large", encode__size=14)
  counts = encode.main(made, str(shapes))
  assert counts.rejected == {"too_small": counts.read - counts.kept}
  assert 0 < counts.kept < counts.read
  said = capsys.readouterr().out
  assert " limits; of 1,000 images: read " in said


def test_codes_and_embeddings_need_neither_latents_nor_captions(
  data, shapes, tmp_path
):
  networks = {
    "encode__vqgan": save(tmp_path / "vqgan", "vqgan"),
    "encode__clip": save(tmp_path / "clip", "clip"),
  }
  made = config(data, shapes, "codes", **CLIP_GEN, **networks)
  with made.unlocked():
    made.encode.size, made.encode.enlarge = 16, True
  encode.main(made, str(shapes))
  dataset = shards.open(made.encode.folder)
  assert {f.name for f in dataset.fields} == {"key", "codes", "clip_image"}
  vqgan_hash = hub.load(made.encode.vqgan, "vqgan").hash
  shards.expect(dataset, {"codes": vqgan_hash})
  with pytest.raises(ValueError, match="'clip_image' of "):
    shards.expect(dataset, {"clip_image": vqgan_hash})


def bytes_a_record(folder):
  """Of a shard of usual length that has a folder's records over and over."""
  dataset = shards.open(folder)
  reader = shards.reader(dataset, "train", 0, readahead=True)
  found = itertools.cycle([reader.read() for _ in range(tiny.RECORDS)])
  reader.close()
  count = configs.load("configs/base.py").catalogue.records_per_shard
  path = f"{folder}/repeated"
  shards.write_records(path, itertools.islice(found, count))
  return os.path.getsize(path) / count


@pytest.fixture(scope="module")
def photographs(data, tmp_path_factory):
  """Captions and a catalogue of images at 256 pixels."""
  folder = tmp_path_factory.mktemp("photographs")
  tiny.write_source(folder / "source")
  picture = pictures.saved(pictures.scene(256, 256), "PNG")
  for i, path in enumerate(sorted((folder / "source").glob("*.png"))):
    # Bytes that differ, and an image that does not.
    path.write_bytes(picture + bytes([i]))
  made = config(data, folder)
  with made.unlocked():
    made.catalogue.source = str(folder / "source")
  catalogue.main(made, str(folder))
  caption.main(made, str(folder))
  return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  """Of SD's and CLIP-GEN's reductions and widths, and hardly any weights."""
  folder = tmp_path_factory.mktemp("networks")
  thin = dict(groups=1, mid_attention=False, layers_per_block=1)
  tokenize.train(tiny.TITLES, str(folder / "tokenizer"), vocabulary=514)
  clip = dataclasses.replace(tiny_models.TINY["clip"], projection=512)
  return {
    "vae": save(
      folder / "vae",
      "autoencoder",
      autoencoder.Config(channels=(1, 1, 1, 1), **thin),
    ),
    "vqgan": save(
      folder / "vqgan",
      "vqgan",
      vqgan.Config(
        channels=(1,) * 5, attention=(False,) * 5, codebook_size=16384, **thin
      ),
    ),
    "clip": save(folder / "clip", "clip", clip),
    "tokenizer": str(folder / "tokenizer"),
  }


@pytest.mark.parametrize(("std", "most"), [(True, 17_000), (False, 9_000)])
def test_latents_of_256_pixels_take_few_bytes(
  data, photographs, networks, std, most
):
  made = config(
    data,
    photographs,
    f"std_{std}",
    model__vae=networks["vae"],
    encode__size=256,
    encode__std=std,
    encode__tokens=77,
    model__tokenizer=networks["tokenizer"],
  )
  encode.main(made, str(photographs))
  size = bytes_a_record(made.encode.folder)
  assert 8192 * (1 + std) < size <= most


def test_codes_and_an_embedding_take_few_bytes(data, photographs, networks):
  made = config(
    data,
    photographs,
    "codes",
    encode__size=256,
    encode__vqgan=networks["vqgan"],
    encode__clip=networks["clip"],
    **CLIP_GEN,
  )
  encode.main(made, str(photographs))
  # 1,536 of the two, 64 of the key; the rest is of tf.Example and ArrayRecord.
  size = bytes_a_record(made.encode.folder)
  assert 512 + 1024 < size <= 1_750


def test_networks_that_are_not_asked_for_are_not_loaded(data):
  made = tiny.config(data, "unused", model__vae="nowhere", **CLIP_GEN)
  assert encode.load(made) == encoder.Networks()
