# SPDX-License-Identifier: Apache-2.0
import pytest

from cc_jax.pipelines import caption_recipe

Recipe = caption_recipe.Recipe


def test_a_recipe_says_what_its_kind_does_unless_told():
  assert Recipe("blip2").text == ""
  assert Recipe("blip2", prompt="a photo of").text == "a photo of"
  assert Recipe("blip2").way == "squash"
  assert Recipe("llava").way == "crop"
  assert Recipe("llava", resize="pad").way == "pad"
  asked = Recipe("llava", prompt="What?").text
  assert asked == "USER: <image>\nWhat? ASSISTANT:"
  whole = "Look: <image> What? Answer:"
  assert Recipe("llava", prompt=whole).text == whole


def test_only_what_decides_captions_is_written_down():
  greedy = Recipe("blip2").decides()
  assert greedy["prompt"] == ""
  assert greedy["resize"] == "squash"
  assert not {"beams", "top_p", "seed"} & greedy.keys()
  assert Recipe("blip2", beams=3, seed=5).decides() == greedy
  beam = Recipe("blip2", decoding="beam", beams=3).decides()
  assert beam["beams"] == 3
  assert "temperature" not in beam
  assert Recipe("llava", decoding="nucleus", seed=5).decides()["seed"] == 5


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"kind": "blip3"}, r"caption\.captioner='blip3'; expected 'blip2', 'llav"),
    ({"decoding": "best"}, r"caption\.decoding='best'; expected 'greedy', 'b"),
    ({"resize": "zoom"}, r"caption\.resize='zoom'; expected '', 'squash'"),
    ({"length": 0}, r"caption\.length=0 and min_length=0"),
    ({"length": 4, "min_length": 5}, r"length=4 and min_length=5"),
    ({"beams": 0}, r"caption\.beams=0"),
    ({"middle": -1}, r"middle=-1"),
  ],
)
def test_a_recipe_that_cannot_be_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    Recipe(**{"kind": "blip2"} | fields)
