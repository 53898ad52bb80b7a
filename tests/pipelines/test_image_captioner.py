# SPDX-License-Identifier: Apache-2.0
"""Captions from bytes of images, beside transformers from end to end."""

import collections
import hashlib
import re

import jax
import numpy as np
import pictures
from PIL import Image
import pytest
import tiny_captioners
import torch
from transformers.models.blip import image_processing_pil_blip as blip
from transformers.models.clip import image_processing_pil_clip as clip

from cc_jax.core import sharding
from cc_jax.data import tokenize
from cc_jax.models import kinds
from cc_jax.pipelines import caption_recipe, image_captioner, overlap

SQUARE = {"height": 28, "width": 28}
PROCESSORS = {
  "blip2": blip.BlipImageProcessorPil(size=SQUARE),
  "llava": clip.CLIPImageProcessorPil(
    size={"shortest_edge": 28}, crop_size=SQUARE
  ),
}
LENGTH = 12
BATCH = 8


def examples(count=5):
  rng = np.random.default_rng(0)
  made = []
  for _ in range(count):
    height, width = rng.integers(30, 90, 2)
    picture = rng.integers(0, 256, (4, 4, 3), np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((width, height)))
    data = pictures.saved(Image.fromarray(picture), "PNG")
    key = hashlib.sha256(data).hexdigest()
    made.append({"key": key, "image": data, "picture": picture})
  return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  made = {}
  for kind in tiny_captioners.CONFIGS:
    made[kind] = str(tmp_path_factory.mktemp(kind))
    tiny_captioners.save(kind, made[kind])
  return made


def recipe(kind, **fields):
  return caption_recipe.Recipe(
    kind, **{"dtype": "float32", "length": LENGTH} | fields
  )


def make(folder, wanted, batch_size=BATCH, **mesh):
  mesh = sharding.make_mesh(**mesh)
  loaded, tokenizer = image_captioner.load(folder, "", wanted, mesh)
  return image_captioner.make(
    loaded, tokenizer, wanted, mesh=mesh, batch_size=batch_size
  )


def rows(made, batch):
  pixels = np.zeros((made.batch_size, made.size, made.size, 3), np.uint8)
  for row, example in enumerate(batch):
    pixels[row] = made.prepare(example)
  return made.write(pixels, 0)[: len(batch)]


def captions(made, batch):
  stream = image_captioner.stream(made, collections.Counter())
  return [found for (found,) in stream(iter(batch))]


def theirs(kind, folder, wanted, batch, **options):
  """Token ids, after the prompt, and texts of transformers."""
  model = tiny_captioners.reference(kind, folder)
  tokenizer = tokenize.load(folder)
  pixels = PROCESSORS[kind](
    [Image.fromarray(example["picture"]) for example in batch],
    return_tensors="pt",
  )["pixel_values"]
  ids = tokenizer(wanted.text, add_special_tokens=False)["input_ids"]
  if kind == "blip2":
    places = [model.config.image_token_index] * model.config.num_query_tokens
    ids = [*places, 2, *ids]
  else:
    at = ids.index(model.config.image_token_index)
    ids = [1, *ids[:at], *[ids[at]] * 16, *ids[at + 1 :]]
  tokens = torch.tensor([ids] * len(batch))
  found = model.generate(
    pixel_values=pixels,
    input_ids=tokens,
    attention_mask=torch.ones_like(tokens),
    max_new_tokens=wanted.length,
    do_sample=False,
    eos_token_id=model.config.text_config.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
    **options,
  )[:, len(ids) :]
  cut = [row.tolist() for row in found]
  eos = model.config.text_config.eos_token_id
  cut = [row[: row.index(eos)] if eos in row else row for row in cut]
  texts = tokenizer.batch_decode(cut, skip_special_tokens=True)
  return found.numpy(), [text.strip() for text in texts]


@pytest.mark.parametrize(
  ("kind", "prompt"),
  [("blip2", ""), ("blip2", "a photo of"), ("llava", ""), ("llava", "Who?")],
)
def test_greedy_captions_are_those_of_transformers(folders, kind, prompt):
  wanted, batch = recipe(kind, prompt=prompt), examples()
  made = make(folders[kind], wanted)
  expected, texts = theirs(kind, folders[kind], wanted, batch)
  ours = rows(made, batch)
  np.testing.assert_array_equal(ours[:, : expected.shape[1]], expected)
  assert len(np.unique(ours, axis=0)) > 2
  assert captions(made, batch) == [(text, []) for text in texts]


def test_captions_of_beams_are_those_of_transformers(folders):
  wanted, batch = recipe("blip2", decoding="beam", beams=3), examples()
  made = make(folders["blip2"], wanted)
  expected, texts = theirs(
    "blip2", folders["blip2"], wanted, batch, num_beams=3
  )
  ours = rows(made, batch)
  np.testing.assert_array_equal(ours[:, : expected.shape[1]], expected)
  assert captions(made, batch) == [(text, []) for text in texts]


@pytest.mark.parametrize(
  ("kind", "mesh", "decoding"),
  [
    ("blip2", dict(data=2, fsdp=4), "beam"),
    ("llava", dict(data=4, tensor=2), "greedy"),
  ],
)
def test_captions_do_not_depend_on_the_mesh(
  folders, kind, mesh, decoding, monkeypatch
):
  # Or weights as small as these would be on all devices.
  monkeypatch.setattr(sharding, "SMALL", 0)
  batch = examples()
  wanted = recipe(kind, decoding=decoding, beams=2)
  alone = rows(make(folders[kind], wanted), batch)
  np.testing.assert_array_equal(
    rows(make(folders[kind], wanted, **mesh), batch), alone
  )


def test_drawn_captions_depend_on_seed_and_batch_only(folders):
  batch = examples()
  wanted = recipe("blip2", decoding="nucleus", top_p=1.0, temperature=3.0)
  made = make(folders["blip2"], wanted)
  first = captions(made, batch)
  assert captions(made, batch) == first
  assert captions(made, batch[::-1]) != first[::-1]
  other = recipe("blip2", decoding="nucleus", temperature=3.0, seed=1)
  assert captions(make(folders["blip2"], other), batch) != first


@pytest.mark.parametrize("kind", ["blip2", "llava"])
def test_captions_are_written_in_bfloat16(folders, kind):
  batch = examples()
  wanted = recipe(kind, dtype="bfloat16", decoding="beam", beams=2)
  found = captions(make(folders[kind], wanted), batch)
  assert len({text for text, _ in found}) > 1


def test_an_image_that_cannot_be_read_has_no_caption_and_a_flag(folders):
  batch = examples()
  made = make(folders["blip2"], recipe("blip2"))
  expected = captions(made, batch)
  batch[2]["image"] = batch[2]["image"][:100]
  expected[2] = ("", ["image_truncated"])
  assert captions(made, batch) == expected


def test_a_batch_is_begun_before_the_last_one_is_waited_for(folders):
  made = make(folders["blip2"], recipe("blip2"))
  said = []

  class Late:
    def __init__(self, rows):
      self.rows = rows

    def __array__(self, *args, **options):
      said.append("wait")
      return np.asarray(self.rows)

  def write(*batch):
    said.append("begin")
    return Late(made.write(*batch))

  seconds = collections.Counter()
  late = made._replace(write=write)
  batch = [one for _ in range(3) for one in examples(BATCH)]
  found = list(image_captioner.stream(late, seconds)(iter(batch)))
  assert said[:3] == ["begin", "begin", "wait"]
  assert seconds["images"] == len(found) == 3 * BATCH
  assert overlap.limits(seconds)


@pytest.mark.parametrize(
  ("kind", "fields", "words"),
  [
    ("blip2", dict(length=70), "75 tokens are too many for a model with 64"),
    ("llava", dict(prompt="<image><image>"), "2 places for an image"),
  ],
)
def test_what_does_not_fit_the_network_is_refused(folders, kind, fields, words):
  with pytest.raises(ValueError, match=words):
    make(folders[kind], recipe(kind, **fields))


def test_a_batch_must_divide_over_the_devices(folders):
  with pytest.raises(ValueError, match="batch_size=6 does not divide over 8"):
    make(folders["blip2"], recipe("blip2"), batch_size=6)


def test_no_device_asks_another_one_for_its_cache(folders):
  wanted, mesh = recipe("blip2", decoding="beam", beams=2), sharding.make_mesh()
  loaded, tokenizer = image_captioner.load(folders["blip2"], "", wanted, mesh)
  prompt = image_captioner.prompt_ids(loaded.config, tokenizer, wanted)
  structure, _ = kinds.structure("blip2", loaded.config)
  write = image_captioner.writer(structure, loaded.config, prompt, wanted)
  pixels = jax.ShapeDtypeStruct(
    (BATCH, 28, 28, 3), np.uint8, sharding=sharding.batch_layout(mesh)
  )
  with jax.set_mesh(mesh):
    lowered = jax.jit(write).lower(loaded.params, pixels, jax.random.key(0))
    text = lowered.compile().as_text()
  gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
  assert gathered
  # Keys and values have five axes.
  assert max(shape.count(",") + 1 for shape in gathered) < 5
