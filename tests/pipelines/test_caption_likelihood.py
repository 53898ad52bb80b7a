# SPDX-License-Identifier: Apache-2.0
"""Probabilities of captions, beside transformers' logits."""

import dataclasses

import numpy as np
import parity
from PIL import Image
import pytest
import tiny_captioners
import torch
from transformers.models.blip import image_processing_pil_blip as blip

from cc_jax.data import tokenize
from cc_jax.metrics import caption_score
from cc_jax.pipelines import caption_likelihood, image_features

SQUARE = {"height": 28, "width": 28}
CAPTIONS = ["a red hat", "two", "a hat"]
LENGTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("blip2"))
  tiny_captioners.save("blip2", folder)
  return folder


def pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (3, 40, 33, 3), np.uint8)


@pytest.fixture
def captioner(folder):
  found = caption_likelihood.load(folder, "blip2", "float32")
  recipe = dataclasses.replace(found.recipe, length=LENGTH)
  return found._replace(recipe=recipe)


def test_probabilities_are_those_of_transformers(folder, captioner):
  network, mask = caption_likelihood.network(captioner, CAPTIONS)
  log_p = image_features.extract(
    [network], lambda row: pixels()[row], 3, batch_size=2
  )[folder, "log_p"]
  model = tiny_captioners.reference("blip2", folder)
  config = captioner.loaded.config
  seen = blip.BlipImageProcessorPil(size=SQUARE)(
    [Image.fromarray(one) for one in pixels()], return_tensors="pt"
  )["pixel_values"]
  for row, caption in enumerate(CAPTIONS):
    ids = tokenize.load(folder)(f" {caption}", add_special_tokens=False)
    ids = ids["input_ids"][:LENGTH]
    assert mask[row].sum() == len(ids) > 0
    prompt = [config.image_token] * config.queries + [config.text.bos]
    with torch.no_grad():
      logits = model(
        pixel_values=seen[row : row + 1],
        input_ids=torch.tensor([[*prompt, *ids]]),
        attention_mask=torch.ones(1, len(prompt) + len(ids)),
      ).logits[0, len(prompt) - 1 : -1]
    p = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
    parity.check(log_p[row][mask[row]], p, parity.MODEL)
  found = caption_score.scores(log_p, mask)
  assert ((found > 0) & (found < 1)).all()


def test_there_is_one_caption_for_each_image(captioner):
  network, _ = caption_likelihood.network(captioner, ["one"])
  with pytest.raises(ValueError, match="3 images with 1 rows beside"):
    image_features.extract(
      [network], lambda row: pixels()[row], 3, batch_size=2
    )
