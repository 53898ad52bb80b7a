# SPDX-License-Identifier: Apache-2.0
"""Probabilities of captions, beside transformers' logits."""

import numpy as np
import parity
from PIL import Image
import pytest
import tiny_captioners
import torch
from transformers.models.blip import image_processing_pil_blip as blip

from cc_jax.core import sharding
from cc_jax.data import tokenize
from cc_jax.metrics import caption_score
from cc_jax.pipelines import (
  caption_likelihood,
  caption_recipe,
  image_captioner,
)

SQUARE = {"height": 28, "width": 28}
CAPTIONS = ["a red hat", "two", "a hat"]
RECIPE = caption_recipe.Recipe("blip2", dtype="float32", length=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("blip2"))
  tiny_captioners.save("blip2", folder)
  return folder


def pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (3, 40, 33, 3), np.uint8)


def test_probabilities_are_those_of_transformers(folder):
  mesh = sharding.make_mesh()
  loaded, tokenizer = image_captioner.load(folder, "", RECIPE, mesh)
  log_p, mask = caption_likelihood.log_probabilities(
    loaded, tokenizer, RECIPE, pixels(), CAPTIONS, batch_size=2
  )
  model = tiny_captioners.reference("blip2", folder)
  config = loaded.config
  seen = blip.BlipImageProcessorPil(size=SQUARE)(
    [Image.fromarray(one) for one in pixels()], return_tensors="pt"
  )["pixel_values"]
  for row, caption in enumerate(CAPTIONS):
    ids = tokenize.load(folder)(f" {caption}", add_special_tokens=False)
    ids = ids["input_ids"][: RECIPE.length]
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


def test_there_is_one_caption_for_each_image(folder):
  mesh = sharding.make_mesh()
  loaded, tokenizer = image_captioner.load(folder, "", RECIPE, mesh)
  with pytest.raises(ValueError, match="3 images with 1 captions"):
    caption_likelihood.log_probabilities(
      loaded, tokenizer, RECIPE, pixels(), ["one"]
    )
