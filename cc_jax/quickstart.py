# SPDX-License-Identifier: Apache-2.0
"""cc-jax quickstart: every stage at toy size, in minutes, on two CPU cores.

1,797 handwritten digits (UCI, CC BY 4.0) and a few photographs, all of which
come inside scikit-learn and scikit-image, go through the whole pipeline: the
licence gate, captions, an autoencoder, latents, a text-to-image model, samples,
an evaluation and an export. Nothing is downloaded.

What is done, in which order, is `config.quickstart.steps`: "STAGE" runs a stage
with the config itself, "STAGE PART" with another argument of the config's file,
in a folder of that name. One step is no stage: "curve", below.
"""

import importlib.resources
import json
import time

import ml_collections
import numpy as np

from cc_jax.core import config as configs
from cc_jax.core import files, log
from cc_jax.data import charts, grids
from cc_jax.stages import (
  caption,
  catalogue,
  encode,
  evaluate,
  export,
  sample,
  train,
)

WORDS = "zero one two three four five six seven eight nine".split()

DIGITS = {
  "author": "Ethem Alpaydin and Cenk Kaynak",
  "licensename": "CC BY 4.0",
  "licenseurl": "https://creativecommons.org/licenses/by/4.0/",
  "pageurl": "https://doi.org/10.24432/C50P49",
}
# One in so many digits is held out, to test the judge of the samples.
HELD_OUT = 10

FLICKR = "https://creativecommons.org/licenses/by/2.0/"
FREE = "CC0 1.0 Universal"
OLD = "No known copyright restrictions"
# Photographs in the two packages, with what their documentation states: file,
# author, licence. Those that state none are here for the gate to refuse.
PHOTOGRAPHS = (
  ("sklearn.datasets/images/china.jpg", "danielbuechele", FLICKR),
  ("sklearn.datasets/images/flower.jpg", "vultilion", FLICKR),
  ("skimage/data/camera.png", "Lav Varshney", FREE),
  ("skimage/data/chelsea.png", "Stefan van der Walt", FREE),
  ("skimage/data/coffee.png", "Rachel Michetti", FREE),
  ("skimage/data/horse.png", "Andreas Preuss", FREE),
  ("skimage/data/microaneurysms.png", "Andreas Maier", FREE),
  ("skimage/data/astronaut.png", "NASA", OLD),
  ("skimage/data/coins.png", "Brooklyn Museum", OLD),
  ("skimage/data/ihc.png", "CMMI", OLD),
  ("skimage/data/color.png", "", ""),
  ("skimage/data/logo.png", "", ""),
  ("skimage/data/moon.png", "", ""),
  ("skimage/data/motorcycle_left.png", "", ""),
  ("skimage/data/page.png", "", ""),
)


STAGES = {
  "caption": caption.main,
  "catalogue": catalogue.main,
  "encode": encode.main,
  "evaluate": evaluate.main,
  "export": export.main,
  "sample": sample.main,
  "train": train.main,
}


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Runs all steps in a work folder; a second run goes on where one stopped.

  Raises:
    ValueError: scikit-learn or scikit-image is not installed.
  """
  started, cpu = time.perf_counter(), time.process_time()
  write_source(config.catalogue.source)
  for step in config.quickstart.steps:
    stage, _, part = step.partition(" ")
    made, folder = of_part(config, workdir, part)
    (STAGES | {"curve": curve})[stage](made, folder)
  found = files.read_json(f"{workdir}/metrics.json")
  seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
  log.announce("quickstart", f"{seconds:.0f} s, {cpu:.0f} s of CPU time")
  goodbye = GOODBYE.format(
    workdir=workdir,
    minutes=seconds / 60,
    opens=config.quickstart.opens.format(workdir=workdir),
    **found,
  )
  log.say(goodbye + (CURVE if "curve" in config.quickstart.steps else ""))


def of_part(
  config: ml_collections.ConfigDict, workdir: str, part: str
) -> tuple[ml_collections.ConfigDict, str]:
  """The config and the folder of a part of a quickstart; "" for the whole."""
  if not part:
    return config, workdir
  made = configs.load(f"{config.quickstart.file}:{part}")
  folder = f"{workdir}/{part}"
  configs.resolve(made, folder)
  return made, folder


def curve(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Recognised digits over steps of several parts: curve.json and curve.svg.

  Of each checkpoint that is there, with the averaged weights.
  """
  series: dict[str, list[tuple[float, float]]] = {}
  for part, name in config.quickstart.curve.items():
    made = of_part(config, workdir, part)[0]
    series[name] = []
    every, steps = made.train.checkpoint_every, made.train.steps
    for step in range(every, steps + 1, every):
      made.sample.step = step
      found = evaluate.recognise(made)
      series[name].append((step, found["recognised"]))
      log.announce("curve", f"{part}, step {step}: {found['recognised']:.1%}")
  files.write_json(f"{workdir}/curve.json", series)
  drawn = charts.chart(
    config.quickstart.curve_title,
    {
      name: [charts.Point(*pair) for pair in line]
      for name, line in series.items()
    },
    x="steps",
    y="share of digits recognised",
  )
  files.write_atomic(f"{workdir}/curve.svg", charts.alone(drawn))


def write_source(folder: str) -> None:
  """Writes the images with a metadata.jsonl, as a user would bring them.

  Raises:
    ValueError: a package that carries them is not installed.
  """
  if files.path(f"{folder}/metadata.jsonl").exists():
    return
  try:
    from sklearn import datasets
  except ImportError:
    raise ValueError(
      "the quickstart's images come in scikit-learn and scikit-image; "
      "pip install 'cc_jax[quickstart]'"
    ) from None
  rows = []
  digits = datasets.load_digits()
  for index, (pixels, digit) in enumerate(
    zip(digits.images, digits.target, strict=True)
  ):
    grey = np.round(pixels * (255 / 16)).astype(np.uint8)
    data = grids.encode_png(np.repeat(grey[..., None], 3, axis=-1))
    name = f"digits/{index:04d}.png"
    files.write_atomic(f"{folder}/{name}", data)
    split = "train" if (index + 1) % HELD_OUT else "validation"
    row = {"file_name": name, "title": WORDS[digit], "split": split}
    # How near pixels are to black or white: a score, as photographs have one
    # for aesthetics.
    row["contrast"] = round(float(np.abs(pixels / 8 - 1).mean()), 4)
    rows.append(row | DIGITS)
  for path, author, licence in PHOTOGRAPHS:
    package, _, inside = path.partition("/")
    try:
      data = (importlib.resources.files(package) / inside).read_bytes()
    except ImportError:
      raise ValueError(
        f"{path} comes in scikit-image; pip install 'cc_jax[quickstart]'"
      ) from None
    name = f"photographs/{path.rpartition('/')[2]}"
    files.write_atomic(f"{folder}/{name}", data)
    field = "licenseurl" if licence.startswith("http") else "licensename"
    title = name.partition("/")[2].partition(".")[0]
    row = {"file_name": name, "title": title, "split": "photographs"}
    rows.append(row | {"author": author, field: licence})
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  files.write_atomic(f"{folder}/metadata.jsonl", lines)
  log.announce("quickstart", f"{len(rows)} images -> {folder}")


GOODBYE = """
Done in {minutes:.1f} minutes. A classifier that learned from real digits
recognises {recognised:.1%} of {recognised_of} samples as the digit asked for,
and {recognised_real:.1%} of real digits that were held out.

  {workdir}/samples.png        a labelled grid of samples
  {workdir}/metrics.json       the numbers of the evaluation
  {workdir}/metrics.jsonl      the curves of the training
  {workdir}/checkpoints/       the last train state
  {workdir}/export/            {opens}
  {workdir}/catalogue/         the data set; rejects.jsonl says what was refused

Next: notebooks/quickstart.ipynb looks at all of it, and configs/clothing.py
does the same with photographs, your own if you like (see README.md)."""

CURVE = """

curve.svg, beside them: what the first stage is worth to the second."""
