# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a caption, by its text alone.

Nothing is left out for a flag: side folders keep every record. Flags are
counted, and whoever reads the captions may refuse those that have one.
"""

from collections.abc import Callable, Sequence
import re
import unicodedata

EMPTY = "empty"
NO_SENTENCE = "no_sentence"  # No letter, or too few words.
REPEATS = "repeats"  # The same words, over and over.
TOO_LONG = "too_long"  # More tokens than the text encoder reads.
NO_CAPTION = "no_caption"  # None was found for this image.
FLAGS = (EMPTY, NO_SENTENCE, REPEATS, TOO_LONG, NO_CAPTION)
"""All but "image_REASON", of an image that could not be seen."""

# Scripts that put no spaces between words: each letter counts as one.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['\u2019-][^\W_]+)*")
# So many times in a row is too often, for phrases of one word, two, and so on;
# "very very" and "New York, New York" are how people write.
_TIMES = (4, 3, 3, 2, 2, 2, 2, 2)


def words(caption: str) -> list[str]:
  """The words of a caption, in lower case and without punctuation.

  >>> words("A man's T-shirt, twice: T-shirt!")
  ['a', "man's", 't-shirt', 'twice', 't-shirt']
  """
  return _WORDS.findall(unicodedata.normalize("NFC", caption).lower())


def repeats(caption: str) -> bool:
  """Whether a phrase of up to eight words comes again and again in a row.

  >>> repeats("a dog and a dog and a dog and a dog")
  True
  >>> repeats("a very very big dog")
  False
  """
  found = words(caption)
  for width, times in enumerate(_TIMES, 1):
    run = 0  # Words that are the ones `width` before them.
    for here, before in zip(found[width:], found, strict=False):
      run = run + 1 if here == before else 0
      if run == width * (times - 1):
        return True
  return False


def flags(
  caption: str, *, min_words: int = 0, tokens: int = 0, longest: int = 0
) -> list[str]:
  """What is wrong with a caption: some of `FLAGS`, or nothing.

  Args:
    caption: any text.
    min_words: of a sentence.
    tokens: of the caption, with start and end; 0 when they are not known.
    longest: so many tokens the text encoder reads.

  >>> flags("123"), flags("a dog", min_words=3), flags("")
  (['no_sentence'], ['no_sentence'], ['empty'])
  """
  if not caption.strip():
    return [EMPTY]
  found = []
  if not any(map(str.isalpha, caption)) or len(words(caption)) < min_words:
    found.append(NO_SENTENCE)
  if repeats(caption):
    found.append(REPEATS)
  if tokens > longest:
    found.append(TOO_LONG)
  return found


def gate(
  captions: Sequence[str],
  *,
  min_words: int = 0,
  count: Callable[[list[str]], Sequence[int]] | None = None,
  longest: int = 0,
) -> list[list[str]]:
  """`flags` of each of several captions.

  Args:
    captions: any texts.
    min_words: of a sentence.
    count: gives the numbers of tokens of texts, with start and end.
    longest: so many tokens the text encoder reads.
  """
  tokens = count(list(captions)) if count else [0] * len(captions)
  return [
    flags(caption, min_words=min_words, tokens=number, longest=longest)
    for caption, number in zip(captions, tokens, strict=True)
  ]
