# SPDX-License-Identifier: Apache-2.0
import pytest

from cc_jax.data import caption_quality as quality

GOOD = [
  "a man in a blue shirt on a bicycle",
  "New York, New York",
  "no no no, said the child",
  "the dog and the cat and the bird and the horse",
  "a photo of a T-shirt",
  "一只猫坐在椅子上",
  "a very very big dog",
]


@pytest.mark.parametrize("caption", GOOD)
def test_captions_that_people_write_have_no_flag(caption):
  assert quality.flags(caption, min_words=3) == []


@pytest.mark.parametrize("caption", ["", "  \n\t", "\u2003"])
def test_no_text_is_one_flag(caption):
  assert quality.flags(caption, min_words=3) == ["empty"]


@pytest.mark.parametrize(
  "caption", ["123 456 789", "!?! ... ---", "dog", "a b"]
)
def test_what_is_no_sentence_is_flagged(caption):
  assert quality.flags(caption, min_words=3) == ["no_sentence"]


@pytest.mark.parametrize(
  "caption",
  [
    "dog dog dog dog",
    "a photo of the the the the house",
    "a cat a cat a cat",
    "a red car, a red car. A red car",
    "a man in a suit and a man in a suit and",
    "once there was a dog in the once there was a dog in the",
  ],
)
def test_words_over_and_over_are_flagged(caption):
  assert quality.flags(caption) == ["repeats"]
  # Also amid a sentence.
  assert quality.flags(f"this is {caption} here") == ["repeats"]


def test_more_tokens_than_the_text_encoder_reads_are_flagged():
  assert quality.flags("a dog", tokens=8, longest=8) == []
  assert quality.flags("a dog", tokens=9, longest=8) == ["too_long"]


def test_a_caption_may_have_several_flags():
  found = quality.flags("go go go go", min_words=9, tokens=5, longest=4)
  assert found == ["no_sentence", "repeats", "too_long"]
  assert set(found) < set(quality.FLAGS)


def test_captions_are_judged_by_a_tokenizer_that_counts_them_all():
  captions = ["a dog", "a dog on a beach", ""]
  lengths = lambda texts: [len(text.split()) + 2 for text in texts]
  made = quality.gate(captions, count=lengths, longest=5)
  assert made == [[], ["too_long"], ["empty"]]
  assert quality.gate(captions, min_words=3) == [["no_sentence"], [], ["empty"]]
