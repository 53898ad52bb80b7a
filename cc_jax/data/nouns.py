# SPDX-License-Identifier: Apache-2.0
"""The nouns of English captions, by rules: how rich a vocabulary is.

"PixArt-alpha", arXiv 2310.00426, table 1, compares datasets by the nouns of
their captions: how many different ones there are, how many of these are valid,
seen more than ten times, and how many an image has. It does not say with which
tagger. Here a word is a noun unless it is a word of grammar, a common adjective
or verb, or ends as adverbs, adjectives and participles do, with the word before
deciding where it may be either ("a walk", "they walk"). On 40 captions tagged
by hand, in tests/data/test_nouns.py, these rules find over nine in ten nouns,
and over nine in ten words that they find are nouns. Other languages are not
read.
"""

import collections
from collections.abc import Iterable
import re
from typing import NamedTuple

# More often than this a noun is valid.
OFTEN = 10

_WORD = re.compile(r"[a-z]+(?:['\u2019-][a-z]+)*|[.,;:!?()]")
_split = lambda text: frozenset(text.split())

# After these comes a noun, or an adjective and a noun.
_DETERMINERS = _split(
  """a an the this that these those my your his her its our their some any no
  each every another several many few both all either neither what which whose
  one two three four five six seven eight nine ten eleven twelve dozen hundred
  thousand first second third"""
)
_GRAMMAR = _DETERMINERS | _split(
  """i you he she it we they me him us them who whom there here myself himself
  herself itself themselves someone something anyone anything everyone
  everything nothing
  of in on at to from by with without into onto over under above below behind
  beside besides between among along across against around about after before
  during through throughout toward towards near inside outside within upon off
  out up down for as like than per via amid beneath underneath past since until
  next opposite including despite alongside
  and or but nor so yet if because while although though when where whether how
  why then thus
  is are was were be been being am has have had having do does did doing done
  can could will would shall should may might must isn't aren't doesn't don't
  not very too also just only even still quite rather almost already again
  always never often sometimes usually perhaps maybe more most less least much
  such same other own else ever together away apart well back ahead overhead
  s t ll re ve d"""
)
_ADJECTIVES = _split(
  """red green blue yellow black white brown grey gray purple pink dark bright
  pale light colorful colourful big small large little tiny huge tall short long
  wide narrow thin thick high low deep old new young modern ancient vintage good
  bad great fine nice beautiful pretty lovely cute elegant simple complex plain
  clean dirty empty full open close closed hot cold warm cool wet dry soft hard
  smooth rough sharp clear blurry blurred fresh raw ripe sweet sour rich poor
  loud quiet calm busy crowded happy sad angry serious casual formal round
  square rectangular oval flat straight curved wooden golden silver metallic
  plastic-like snowy sunny cloudy rainy foggy grassy sandy rocky dusty leafy
  various different similar single double multiple whole entire main central
  left right top bottom front rear upper lower middle inner outer northern
  southern eastern western real true false free main several natural wild urban
  rural local famous popular traditional indoor outdoor overall vivid vibrant
  lush serene delicate intricate detailed minimalist majestic strong weak heavy
  slim slender fluffy furry shiny glossy dense sparse abstract realistic black-
  and-white close-up sleeping standing sitting handwritten visible available
  possible certain common rare special particular unique"""
)
_VERBS = _split(
  """sit sits sat stand stands stood lie lies lay lays run runs ran walk walks
  walked look looks looked hold holds held wear wears wore show shows shown
  play plays eat eats ate drink drinks ride rides rode fly flies flew swim swims
  swam jump jumps jumped take takes took taken make makes made give gives gave
  given see sees saw seen get gets got go goes went gone come comes came put
  puts seem seems appear appears smile smiles pose poses lean leans rest rests
  hang hangs hung feature features depict depicts display displays contain
  contains include includes surround surrounds cover covers fill fills add adds
  create creates suggest suggests indicate indicates capture captures reflect
  reflects stretch stretches rise rises say says read reads write writes wrote
  written use uses want wants need needs wait waits watch watches face faces
  touch touches grow grows grew grown set sets help helps let lets keep keeps
  kept turn turns travel travels float floats carry carries cross crosses enjoy
  enjoys talk talks perch perches describe describes bring brings seems tell"""
)
# What ends like another kind of word, and is a noun.
_NOUNS = _split(
  """building painting ceiling clothing evening morning wing king ring string
  thing spring drawing lightning wedding railing awning landing dressing
  clothing lighting meeting setting pudding stuffing swing sibling wiring
  flooring roofing siding engraving carving gathering covering parking bed shed
  seed reed weed breed feed speed thread bread head bird word family butterfly
  fly belly jelly lily ally bully assembly valley animal metal hospital festival
  capital crystal coral meal deal seal medal pedal signal material cereal
  journal carnival arrival table cable vegetable stable fable bible syllable
  native olive hive dive drive detective motive archive dish fish brush bush
  wish radish parish rubbish polish picnic fabric music magic traffic clinic
  logic topic mechanic comic attic cosmic-dust plastic ceramic bus glass grass
  dress cross census cactus octopus virus campus circus walrus hippopotamus
  crocus citrus moss boss class mattress fortress princess actress waitress
  kindness business darkness wilderness witness harness access success process
  address mess press chess less-ness person lens
  plus canvas gas atlas christmas texas tennis iris oasis basis analysis
  glasses"""
)
_IRREGULAR = {
  "men": "man",
  "women": "woman",
  "children": "child",
  "people": "person",
  "feet": "foot",
  "teeth": "tooth",
  "geese": "goose",
  "mice": "mouse",
  "leaves": "leaf",
  "knives": "knife",
  "wolves": "wolf",
  "shelves": "shelf",
  "loaves": "loaf",
  "scarves": "scarf",
}
_ADJECTIVE_ENDS = (
  "ful",
  "ous",
  "less",
  "able",
  "ible",
  "ical",
  "ish",
  "ive",
  "ic",
  "al",
  "est",
)


class Vocabulary(NamedTuple):
  """The nouns of some captions, as in the paper's table.

  Attributes:
    captions: how many.
    total: nouns in all of them.
    distinct: different ones.
    valid: of these, those that are there more than `OFTEN` times.
    most: the most frequent, and how often they are there.
  """

  captions: int
  total: int
  distinct: int
  valid: int
  most: dict[str, int]


def vocabulary(captions: Iterable[str], most: int = 40) -> Vocabulary:
  """Counts the nouns of captions.

  Args:
    captions: any text; what is not in Latin letters has no nouns.
    most: how many of the most frequent to name.
  """
  counts: collections.Counter[str] = collections.Counter()
  read = 0
  for caption in captions:
    counts.update(nouns(caption))
    read += 1
  ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  return Vocabulary(
    captions=read,
    total=counts.total(),
    distinct=len(counts),
    valid=sum(count > OFTEN for count in counts.values()),
    most=dict(ranked[:most]),
  )


def nouns(caption: str) -> list[str]:
  """The nouns of a caption in the singular, in order.

  >>> nouns("Two happy dogs quickly run on the beach, wearing red hats.")
  ['dog', 'beach', 'hat']
  """
  words = _WORD.findall(caption.lower().replace("\u2019", "'"))
  words = [word.removesuffix("'s") for word in words]
  found = []
  for place, word in enumerate(words):
    before = words[place - 1] if place else "."
    after = words[place + 1] if place + 1 < len(words) else "."
    if _is_noun(word, before, after):
      found.append(singular(word))
  return found


def _is_noun(word: str, before: str, after: str) -> bool:
  if len(word) < 2 or word in _GRAMMAR:
    return False
  if word in _NOUNS or singular(word) in _NOUNS:
    return True
  # Where a noun has to come, at the end of "a big …" or "the …".
  ends = after in _GRAMMAR - _DETERMINERS or not after[0].isalpha()
  wanted = before in _DETERMINERS | _ADJECTIVES
  if word in _ADJECTIVES:
    # "the top of", "in the middle."
    return before in _DETERMINERS and ends and after not in ("and", "or")
  if word in _VERBS:
    return wanted and ends
  if word.endswith("ly"):
    return False
  if word.endswith("ing"):
    return before in _DETERMINERS and ends
  if word.endswith("ed") and len(word) > 4:
    return False
  return not (word.endswith(_ADJECTIVE_ENDS) and not (wanted and ends))


def singular(word: str) -> str:
  """A noun without the ending of many.

  >>> [singular(x) for x in "boxes cities dogs glass bus horses women".split()]
  ['box', 'city', 'dog', 'glass', 'bus', 'horse', 'woman']
  """
  if word in _IRREGULAR:
    return _IRREGULAR[word]
  if word in _NOUNS or word.endswith(("ss", "us", "is")) or len(word) < 4:
    return word
  if word.endswith("ies"):
    return word[:-3] + "y" if len(word) > 4 else word[:-1]
  if word.endswith(("xes", "ches", "shes", "sses", "zzes")):
    return word[:-2]
  return word.removesuffix("s")
