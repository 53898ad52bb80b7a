# SPDX-License-Identifier: Apache-2.0
"""Blind votes between two models: a page to vote on, and what votes say.

    pairwise.html       one file, offline: which of two pictures is better?
    pairwise.key.json   which model is on which side; keep it from the voters
    votes/*.json        what voters export

As in CommonCanvas (arXiv 2310.16825, section 6.3): pictures of the same prompts
side by side, the sides drawn by lot. Each voter sees the pairs in an order of
their own.
"""

import base64
import collections
from collections.abc import Mapping, Sequence
import hashlib
import io
import json
import os
import pathlib
import string
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from cc_jax.core import files
from cc_jax.data import generated, prompt_sets
from cc_jax.metrics import intervals

_DATA = pathlib.Path(prompt_sets.__file__).parent
CHOICES = {"left": -1, "right": 1, "neither": 0}


def page(
  folders: tuple[str, str],
  prompts: prompt_sets.Set,
  *,
  pairs: int,
  seed: int,
  names: tuple[str, str] = ("", ""),
  each: int = 1,
  quality: int = 90,
) -> tuple[str, dict[str, Any]]:
  """The page of two folders of generated images, and its key.

  Args:
    folders: of the two models, of the same prompts.
    prompts: that both were made of.
    pairs: how many are drawn; 0 for all.
    seed: of the draw and of the sides.
    names: of the two models, for the key; "" for their folders.
    each: images a prompt in the folders, of which the first is shown.
    quality: of the pictures as WebP.

  Raises:
    ValueError: the folders are not of these prompts, or images are missing.
  """
  recipes = [
    files.read_json(os.path.join(one, generated.RECIPE)) for one in folders
  ]
  for folder, recipe in zip(folders, recipes, strict=True):
    if recipe.get("prompts") != prompts.hash:
      raise ValueError(
        f"{folder} is of other prompts than {prompts.name}; name those that "
        "it was made of as evaluate.prompts"
      )
    if recipe.get("each", 1) != each:
      raise ValueError(
        f"{folder} has {recipe.get('each')} images a prompt, not each={each}"
      )
  if recipes[0] == recipes[1]:
    raise ValueError(f"{folders[0]} and {folders[1]} are of one recipe")
  count = len(prompts) * each
  there = [_numbers(folder, count) for folder in folders]
  # Of prompts that both have: a model that was killed or whose picture was no
  # picture loses nobody a vote.
  both = [p for p in range(len(prompts)) if all(p * each in x for x in there)]
  if not both or pairs > len(both):
    raise ValueError(
      f"{len(both):,} prompts of which both folders have an image; expected "
      f"{max(1, pairs):,}"
    )
  rng = np.random.default_rng(seed)
  chosen = rng.permutation(both)[: pairs or None].tolist()
  swapped = rng.integers(2, size=len(chosen)).tolist()
  shown, key = [], {}
  for place, (prompt, swap) in enumerate(zip(chosen, swapped, strict=True)):
    pictures = [
      _picture(generated.read(folder, prompt * each), quality)
      for folder in folders
    ]
    left, right = pictures[::-1] if swap else pictures
    shown.append(
      {
        "id": f"{place}",
        "prompt": prompts.texts[prompt],
        "left": left,
        "right": right,
      }
    )
    key[f"{place}"] = {
      "prompt": prompts.texts[prompt],
      "index": prompt,
      "left": "b" if swap else "a",
      "category": prompts.rows[prompt].get("Category", ""),
    }
  digest = hashlib.sha256(json.dumps([recipes, key]).encode()).hexdigest()[:12]
  whole = {"id": digest, "pairs": shown}
  # Inside a script nothing is escaped, but "<" must not end it.
  data = json.dumps(whole).replace("<", "\\u003c")
  script = (_DATA / "pairwise.js").read_text()
  sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  text = string.Template((_DATA / "pairwise.html").read_text()).substitute(
    script=script, script_hash=f"sha256-{sha}", pairs=data
  )
  named = {
    one: {"name": name or folder, "recipe": recipe}
    for one, name, folder, recipe in zip(
      "ab", names, folders, recipes, strict=True
    )
  }
  return text, {"id": digest, "models": named, "pairs": key}


def _numbers(folder: str, count: int) -> set[int]:
  """The images that a folder has, without rejects."""
  return {
    int(file.partition(".")[0])
    for inside in range(-(-count // generated.EACH))
    for file in files.listing(os.path.join(folder, f"{inside:03d}"))
    if file.endswith(".png") and file.partition(".")[0].isdecimal()
  }


def _picture(image: UInt8[np.ndarray, "H W 3"], quality: int) -> str:
  file = io.BytesIO()
  Image.fromarray(image).save(file, "WEBP", quality=quality, method=4)
  data = base64.b64encode(file.getvalue()).decode()
  return f"data:image/webp;base64,{data}"


def read_votes(places: Sequence[str]) -> list[dict[str, Any]]:
  """The files that voters exported, from files and folders of them.

  Raises:
    ValueError: there are none, or one is no file of votes.
  """
  names = []
  for place in places:
    if files.path(place).is_dir():
      inside = [one for one in files.listing(place) if one.endswith(".json")]
      names += [os.path.join(place, one) for one in inside]
    else:
      names.append(place)
  if not names:
    raise ValueError(f"no votes in {', '.join(places)}; expected .json files")
  found = []
  for name in names:
    one = files.read_json(name)
    votes = one.get("votes") if isinstance(one, Mapping) else None
    if not isinstance(votes, list) or not {"page", "voter"} <= set(one):
      raise ValueError(f"{name} is no file of votes that a page exported")
    for vote in votes:
      if not isinstance(vote, Mapping) or vote.get("choice") not in CHOICES:
        raise ValueError(
          f"{name} has the vote {str(vote)[:60]}; expected a choice of "
          f"{', '.join(CHOICES)}"
        )
    found.append(one)
  return found


def count_votes(
  key: Mapping[str, Any], voters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Which model is preferred: shares, Wilson intervals and a sign test.

  Of several votes for a pair the majority is taken, since only prompts are
  independent. Votes of another page, for pairs that it does not have, and
  earlier files of the same voter are counted rejects.

  Args:
    key: of `page`.
    voters: of `read_votes`.

  Returns:
    `preference` of model b, as JSON has it; by category where prompts have
    some; how many votes there were and which were refused.

  Raises:
    ValueError: no vote is of this page.
  """
  refused: collections.Counter[str] = collections.Counter()
  latest: dict[str, Mapping[str, Any]] = {}
  for one in voters:
    if one["page"] != key["id"]:
      refused["another_page"] += len(one["votes"])
      continue
    earlier = latest.get(one["voter"])
    # The same browser exports its votes again, with more of them.
    if earlier is not None:
      fewer = min(earlier, one, key=lambda x: len(x["votes"]))
      refused["exported_again"] += len(fewer["votes"])
      one = max(earlier, one, key=lambda x: len(x["votes"]))
    latest[one["voter"]] = one
  sums: dict[str, list[int]] = {}
  for one in latest.values():
    for vote in one["votes"]:
      pair = key["pairs"].get(vote.get("pair"))
      if pair is None:
        refused["unknown_pair"] += 1
        continue
      # Towards the right is towards b where a is on the left.
      towards = CHOICES[vote["choice"]] * (1 if pair["left"] == "a" else -1)
      sums.setdefault(vote["pair"], []).append(towards)
  if not sums:
    raise ValueError(
      f"no vote of page {key['id']}; refused: {dict(refused) or 'none'}"
    )
  majority = {pair: int(np.sign(sum(votes))) for pair, votes in sums.items()}
  by: dict[str, list[int]] = {}
  for pair, vote in majority.items():
    by.setdefault(key["pairs"][pair].get("category", ""), []).append(vote)
  agree = [
    abs(sum(votes)) == len(votes) for votes in sums.values() if len(votes) > 1
  ]
  return {
    "models": {one: row["name"] for one, row in key["models"].items()},
    "prefers_b": intervals.preference(list(majority.values()))._asdict(),
    "by_category": {
      name: intervals.preference(votes)._asdict()
      for name, votes in sorted(by.items())
      if name
    },
    "voters": len(latest),
    "votes": sum(map(len, sums.values())),
    "pairs": len(majority),
    "pairs_all_voters_agree_on": [sum(agree), len(agree)],
    "refused": dict(refused),
  }
