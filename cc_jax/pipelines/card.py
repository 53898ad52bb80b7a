# SPDX-License-Identifier: Apache-2.0
"""The model card: what a model is, and what it learned from, by licence.

Every number comes from files: provenance.json of the folders that it was
trained on and of those that they were made from, metrics.json, and the config
that the training noted. Paths are shown without what is private in them.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import json
import os
from typing import Any, NamedTuple

import huggingface_hub
import ml_collections

from cc_jax.core import checkpoint, files
from cc_jax.data import licences, shards
from cc_jax.pipelines import evaluation_tables

TAGS = ("cc_jax", "creative-commons")

# What the card says of the training besides the whole config.
FIELDS = (
  ("batch size", "train.batch_size"),
  ("learning rate", "train.lr"),
  ("its schedule", "train.schedule"),
  ("warm-up steps", "train.warmup"),
  ("weight decay", "train.weight_decay"),
  ("average's decay", "train.ema_decay"),
  ("computed in", "train.dtype"),
  ("prediction", "model.prediction"),
  ("captions dropped", "latent_diffusion.drop_caption"),
  ("seed", "seed"),
)


class Made(NamedTuple):
  """A dataset folder in the history of a model.

  Attributes:
    folder: where it is, or was.
    provenance: of it; None where it is gone or has changed since.
  """

  folder: str
  provenance: Mapping[str, Any] | None


def write(
  config: ml_collections.ConfigDict, workdir: str, *, usage: str, tag: str
) -> str:
  """The text of README.md, in the form of the Hugging Face hub.

  Args:
    config: of the export.
    workdir: of the training; its config.json says with what it was run.
    usage: a paragraph or code on how to use the model.
    tag: the hub's name of what the model does.

  Raises:
    ValueError: no data where the model was trained.
  """
  datasets = [shards.open(name) for name in config.train.folders]
  made = history(datasets)
  options = config.export
  head = huggingface_hub.ModelCardData(
    license=options.licence or None,
    library_name="diffusers",
    pipeline_tag=tag,
    tags=list(TAGS),
    datasets=list(options.datasets) or None,
  )
  noted = _noted(config, workdir)
  sections = [
    f"---\n{head.to_yaml()}\n---",
    f"# {config.name}",
    usage,
    data(datasets[0], config.train.split, collection(made, config)),
    sources(made, workdir),
    training(config, noted, workdir),
    evaluation(config.evaluate.metrics),
    licence(datasets[0], options.licence),
  ]
  return "\n\n".join(filter(None, sections)) + "\n"


def data(dataset: shards.Dataset, split: str, name: str) -> str:
  """How many images of which licence, and what those require.

  Args:
    dataset: the first of the folders that were trained on; those aligned with
      it hold the same images.
    split: that was trained on.
    name: of the collection.
  """
  counts = _licences(dataset)
  rows = []
  for found, count in sorted(counts.items()):
    terms = licences.parse(found)
    says = [
      "" if terms is None else "yes" if flag else "no"
      for flag in (
        terms and terms.attribution,
        terms and terms.share_alike,
        terms and terms.commercial,
      )
    ]
    rows.append((found, f"{count:,}", *says))
  head = ("licence", "images", "attribution", "share alike", "commercial use")
  splits = ", ".join(
    f"{sum(lengths):,} in `{one}`" for one, lengths in dataset.splits.items()
  )
  attribution, share_alike, _ = requirements(counts)
  return f"""\
## What it learned from

{len(dataset):,} images of known licence ({name} collection): {splits}. It was
trained on `{split}`; the table counts all.

{table(head, rows)}

{attribution:,} of them require that their author is named, {share_alike:,} that
adaptations are shared alike. Who made each image, its page and its licence are
in the records of the data set."""


def requirements(counts: Mapping[str, int]) -> tuple[int, int, int]:
  """How many images require attribution, share-alike and no commerce."""
  terms = [(licences.parse(name), count) for name, count in counts.items()]
  known = [(one, count) for one, count in terms if one is not None]
  return (
    sum(count for one, count in known if one.attribution),
    sum(count for one, count in known if one.share_alike),
    sum(count for one, count in known if not one.commercial),
  )


def history(datasets: Sequence[shards.Dataset]) -> list[Made]:
  """The folders that some were made from, the earliest first, then they."""
  found: dict[str, Made] = {}

  def walk(made: Made) -> None:
    for one in (made.provenance or {}).get("inputs", ()):
      # Only another dataset has a provenance; the rest are sources.
      if isinstance(one, Mapping) and "provenance" in one:
        if one["folder"] not in found:
          walk(Made(one["folder"], _unchanged(**one)))
    found.setdefault(made.folder, made)

  for dataset in datasets:
    walk(Made(dataset.folder, dataset.provenance or None))
  return list(found.values())


def _unchanged(folder: str, provenance: str) -> Mapping[str, Any] | None:
  """A folder's provenance, if it is there and has this hash."""
  name = os.path.join(folder, shards.PROVENANCE)
  if not files.path(name).exists():
    return None
  found = files.read_json(name)
  same = files.sha256(files.to_json(found).encode()) == provenance
  return found if same else None


def collection(made: Sequence[Made], config: ml_collections.ConfigDict) -> str:
  """The collection that the gate let images in for."""
  for _, provenance in made:
    if provenance and "collection" in provenance.get("config", {}):
      return provenance["config"]["collection"]
  return config.catalogue.collection


def sources(made: Sequence[Made], workdir: str) -> str:
  """What each stage read, kept and refused, and with which weights."""
  rows, weights, captions = [], {}, []
  rejects: collections.Counter[str] = collections.Counter()
  for folder, provenance in made:
    if provenance is None:
      rows.append(
        ("?", shown(folder, workdir), "gone or changed since", "", "")
      )
      continue
    counts = provenance.get("counts", {})
    refused = counts.get("rejected", {})
    inputs = ", ".join(
      shown(_source(one), workdir) for one in provenance.get("inputs", ())
    )
    numbers = counts.get("read", 0), counts.get("kept", 0)
    rows.append(
      (
        provenance.get("stage", "?"),
        inputs,
        *(f"{number:,}" for number in numbers),
        f"{sum(refused.values()):,}",
      )
    )
    rejects.update(refused)
    weights |= provenance.get("weights", {})
    if provenance.get("stage") == "caption":
      captions.append(provenance["config"])
  parts = ["## How the data was made"]
  parts.append(table(("stage", "from", "read", "kept", "refused"), rows))
  if rejects:
    reasons = ", ".join(f"{name} {n:,}" for name, n in sorted(rejects.items()))
    parts.append(f"Refused: {reasons}.")
  for recipe in captions:
    text = json.dumps(recipe, ensure_ascii=False)
    parts.append(f"Captions: `{text}`")
  if weights:
    made_by = [(name, f"`{digest}`") for name, digest in weights.items()]
    parts.append(table(("feature", "made by the weights"), made_by))
  return "\n\n".join(parts)


def training(
  config: ml_collections.ConfigDict, noted: Mapping[str, Any], workdir: str
) -> str:
  """Steps, the main fields, and the whole config folded away."""
  used = noted["config"]
  step = config.sample.step
  if step < 0:
    step = checkpoint.latest_step(config.train.checkpoints) or 0
  part = {"ema": "their moving average", "params": "the last"}
  rows = [("steps", f"{step:,}"), ("weights", part[config.export.part])]
  for name, path in FIELDS:
    value = used
    for key in path.split("."):
      value = value.get(key, {})
    if not isinstance(value, Mapping):
      rows.append((name, f"{value}"))
  if noted["revision"]:
    rows.append(("cc_jax", noted["revision"]))
  text = files.to_json(shown(used, workdir))
  return f"""\
## How it was trained

{table(("", ""), rows)}

<details><summary>The whole config</summary>

```json
{text}```

</details>"""


def _noted(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """The config and revision that a training noted; else what is at hand."""
  name = files.path(workdir) / "config.json"
  noted = files.read_json(name).get("train") if name.exists() else None
  return noted or {"config": config.to_dict(), "revision": ""}


def evaluation(metrics: str) -> str:
  """The numbers of metrics.json; nothing where there are none."""
  if not files.path(metrics).exists():
    return ""
  found = files.read_json(metrics)
  made = found.pop("evaluation", None)
  rows = [
    (name, f"{value:.4g}" if isinstance(value, float) else f"{value}")
    for name, value in flat(found)
  ]
  parts = ["## Evaluation"]
  if rows:
    parts.append(table(("metric", "value"), rows))
  if made:
    named = {**made, "model": "Images of this model"}
    named["prompts"] = {
      **made["prompts"],
      "name": os.path.basename(made["prompts"]["name"]),
    }
    parts.append(evaluation_tables.table(named).strip())
  return "\n\n".join(parts)


def licence(dataset: shards.Dataset, weights: str) -> str:
  """What the images' licences may mean for the weights."""
  _, share_alike, reserved = requirements(_licences(dataset))
  lines = [
    f"The weights are released under `{weights}`."
    if weights
    else "No licence of the weights is stated here: that is its makers' choice."
  ]
  if share_alike:
    lines.append(
      f"{share_alike:,} images are shared alike: what is adapted from them "
      "must carry the same licence. Whether weights are an adaptation of what "
      "they learned from is not settled; a share-alike licence of the weights, "
      "as CommonCanvas has, is right either way."
    )
  if reserved:
    lines.append(
      f"{reserved:,} images may not be used commercially. Do not use this "
      "model or what it makes commercially, unless you know that you may."
    )
  return "## Licence\n\n" + "\n\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table of Markdown."""
  lines = [head, ["---"] * len(head), *rows]
  cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
  return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def shown(value: Any, workdir: str) -> Any:
  """A value without the private part of local paths.

  The work folder is {workdir}, any other path of this machine its last part.
  """
  if isinstance(value, Mapping):
    return {key: shown(one, workdir) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [shown(one, workdir) for one in value]
  if not isinstance(value, str):
    return value
  for root, name in (
    (workdir, "{workdir}"),
    (os.path.dirname(workdir), "{workdir}/.."),
  ):
    if value == root or (len(root) > 1 and value.startswith(f"{root}/")):
      return name + value[len(root) :]
  return os.path.basename(value) if os.path.isabs(value) else value


def _source(one: Any) -> str:
  if isinstance(one, Mapping):
    # Files have no place in a card, but the hash of what was in them.
    named = (f"{name} {str(value)[:12]}" for name, value in one.items())
    return one.get("folder") or ", ".join(named)
  return str(one)


def _licences(dataset: shards.Dataset) -> Mapping[str, int]:
  return dataset.provenance.get("counts", {}).get("licences", {})


def flat(
  values: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """Values of groups, as "group.name"; a number with its interval is one."""
  for name, value in values.items():
    if isinstance(value, Mapping) and "value" not in value:
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value
