# SPDX-License-Identifier: Apache-2.0
"""What CLIP-GEN's tasks export.

contrastive  a folder of transformers' CLIPModel, with its tokenizer
vqgan        a folder of diffusers' VQModel; discriminator/ beside it, from
             which a training can go on
prior        prior/ clip/ vqgan/: a whole model. The prior's own format is a
             config.json and a model.safetensors; its trunk opens as
             transformers' GPT2Model, cond_proj and head have no place there.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from cc_jax.core import files, tree
from cc_jax.data import tokenize
from cc_jax.models import hub

# The hub's names of what the models do.
TAGS = {
  "contrastive": "zero-shot-image-classification",
  "prior": "text-to-image",
  "vqgan": "image-to-image",
}
OPENS = {
  "contrastive": "transformers.CLIPModel",
  "vqgan": "diffusers.VQModel",
}

CODE = """\
```python
{library}

model = {name}.from_pretrained("path/of/this/folder")
```"""
WHOLE = """\
CLIP-GEN: `clip/` opens as transformers' CLIPModel, `vqgan/` as diffusers'
VQModel; `prior/` has cc_jax's own format.

```bash
cc-jax sample --config=… --workdir=… --config.model.prior=FOLDER/prior \\
  --config.model.clip=FOLDER/clip --config.model.vqgan=FOLDER/vqgan \\
  --config.model.tokenizer=FOLDER/clip
```"""


def usage(config: ml_collections.ConfigDict) -> str:
  """How what was exported is used, for its card."""
  name = OPENS.get(config.train.task)
  if name is None:
    return WHOLE
  return CODE.format(library=f"import {name.partition('.')[0]}", name=name)


def write(
  config: ml_collections.ConfigDict,
  parts: Mapping[str, tuple[str, Any]],
  params: Mapping[str, Any],
  readme: str,
) -> dict[str, int]:
  """Writes `config.export.folder`.

  Args:
    config: of the run.
    parts: of the task.
    params: its weights.
    readme: the text of README.md.

  Returns:
    The number of weights of each network.
  """
  task, folder = config.train.task, config.export.folder
  networks = {name: (*part, params[name]) for name, part in parts.items()}
  if task == "vqgan":
    kind, found, weights = networks["vqgan"]
    size = config.autoencoder.size
    found = dataclasses.replace(found, sample_size=size)
    networks["vqgan"] = kind, found, weights
  if task == "prior":
    for name in ("clip", "vqgan"):
      loaded = hub.load(config.model[name], name)
      networks[name] = name, loaded.config, loaded.params
  alone = OPENS.get(task) and next(iter(networks))
  files.write_atomic(f"{folder}/README.md", readme)
  if "clip" in networks:
    tokenizer = tokenize.load(config.model.tokenizer)
    place = folder if alone else f"{folder}/clip"
    tokenize.save(tokenizer, place, config.encode.tokens)
  # What opens the folder comes last.
  for name, (kind, found, weights) in reversed(networks.items()):
    place = folder if name == alone else f"{folder}/{name}"
    hub.save(place, kind, found, weights, dtype=config.export.dtype)
  return {name: tree.count(weights) for name, (*_, weights) in networks.items()}
