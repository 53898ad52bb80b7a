# SPDX-License-Identifier: Apache-2.0
"""The one list of other spellings of tensors' names in hub files."""

from collections.abc import Mapping
import re
from typing import Any

# Spellings of files that other releases of the libraries wrote. None drops a
# buffer that holds no weight: positions, how many batches a norm has seen.
LEGACY: tuple[tuple[re.Pattern, str | None], ...] = (
  (re.compile(r"(attentions\.\d+)\.query\."), r"\1.to_q."),
  (re.compile(r"(attentions\.\d+)\.key\."), r"\1.to_k."),
  (re.compile(r"(attentions\.\d+)\.value\."), r"\1.to_v."),
  (re.compile(r"(attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
  (
    re.compile(r"^vision_tower\.(?!vision_model\.)"),
    "vision_tower.vision_model.",
  ),
  (re.compile(r".*\.position_ids$"), None),
  (re.compile(r".*\.num_batches_tracked$"), None),
)

# Models that are one tower of CLIP: transformers 5 leaves the tower's name
# out, which a tensor of this name gives away.
TOWERS = {
  "final_layer_norm.weight": "text_model.",
  "pre_layrnorm.weight": "vision_model.",
}


def normalised(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Tensors by the names of today.

  >>> normalised({"mid.attentions.0.query.bias": 1, "a.position_ids": 2})
  {'mid.attentions.0.to_q.bias': 1}
  """
  result = {}
  tower = "".join(TOWERS[name] for name in tensors.keys() & TOWERS)
  for name, tensor in tensors.items():
    name = tower + name
    for pattern, new in LEGACY:
      if pattern.search(name):
        name = None if new is None else pattern.sub(new, name)
      if name is None:
        break
    else:
      result[name] = tensor
  return result
