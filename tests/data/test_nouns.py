# SPDX-License-Identifier: Apache-2.0
"""Nouns by rules, against captions that were tagged by hand."""

import re

import pytest

from cc_jax.data import nouns

# Nouns are marked; written for this test before the rules were run on them.
TAGGED = """\
a _dog_ running on the _beach_
two _men_ sitting at a _table_ with _glasses_ of _wine_
the old _church_ stands behind tall _trees_
a close _view_ of a _butterfly_ on a purple _flower_
_people_ walking through a crowded _market_ in the _morning_
a _woman_ in a red _dress_ is holding an _umbrella_
several colorful _boats_ float in the _harbor_
a _cat_ sleeping peacefully on a soft _blanket_
the _sun_ sets over the _mountains_ and the _sky_ turns orange
a black and white _photo_ of an empty _street_
a young _boy_ rides his _bicycle_ along the _river_
a _plate_ of fresh _vegetables_ and grilled _fish_
a modern _building_ with large _windows_ reflecting the _clouds_
_children_ playing _football_ in a grassy _field_
a _train_ travels across a stone _bridge_
a beautiful _painting_ of a small _village_ in the _winter_
an _airplane_ is flying above the _ocean_
a _cup_ of hot _coffee_ next to an open _book_
three _horses_ graze near a wooden _fence_
a _man_ wearing a blue _hat_ and _sunglasses_ looks at the _camera_
a narrow _path_ leads into the dark _forest_
a _group_ of _tourists_ wait at the _bus_ _stop_
the _statue_ of a famous _king_ in the central _square_
a _bird_ perched on the _branch_ of a leafy _tree_
a _musician_ performs on _stage_ with his electric _guitar_
an intricate _carving_ on the _wall_ of the _temple_
a serene _lake_ surrounded by snowy _peaks_
the _kitchen_ has a white _refrigerator_ and wooden _cabinets_
a _family_ enjoys a _picnic_ under the _shade_
a _lighthouse_ overlooking the rough _sea_ at _night_
the _image_ features a majestic _lion_ with a golden _mane_
a vintage _car_ is parked on the _side_ of the _road_
_rows_ of _lavender_ stretch towards the _horizon_
a little _girl_ blowing _bubbles_ in the _garden_
a _bowl_ of ripe _strawberries_ on a rustic _table_
_workers_ repairing the _roof_ of a tall _house_
a _herd_ of _elephants_ crossing a dusty _plain_
a _clock_ on the _top_ of a brick _tower_
an abstract _pattern_ of blue _circles_ and _lines_
a _soldier_ stands guard outside the royal _palace_
"""


def test_rules_agree_with_tags_by_hand():
  right = found = wanted = 0
  for line in TAGGED.splitlines():
    tagged = [nouns.singular(x) for x in re.findall(r"_(\S+?)_", line)]
    made = nouns.nouns(line.replace("_", ""))
    right += sum(min(made.count(x), tagged.count(x)) for x in set(tagged))
    found, wanted = found + len(made), wanted + len(tagged)
  assert wanted > 110
  assert right / wanted > 0.9
  assert right / found > 0.9


@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("", []),
    ("\u4e00\u53ea\u732b 123", []),
    ("A dog's bone", ["dog", "bone"]),
    ("they walk; a long walk.", ["walk"]),
    ("CATS, cats and a cat!", ["cat", "cat", "cat"]),
    ("it is quickly running", []),
  ],
)
def test_hard_captions(caption, expected):
  assert nouns.nouns(caption) == expected


def test_a_vocabulary_is_counted_as_in_the_papers_table():
  captions = ["a dog and a cat"] * 11 + ["two dogs", "a rare lynx", "of the"]
  found = nouns.vocabulary(captions, most=2)
  assert found == (14, 24, 3, 2, {"dog": 12, "cat": 11})
