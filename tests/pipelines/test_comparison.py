# SPDX-License-Identifier: Apache-2.0
"""Images of prompts, made, killed, damaged and measured, on tiny networks."""

import json
import pathlib
import random
import shutil
import time

import numpy as np
import pytest
import tiny
import tiny_captioners
import tiny_eyes
import toys

from cc_jax.core import files
from cc_jax.data import generated
from cc_jax.metrics import clip_score, frechet
from cc_jax.pipelines import (
  caption_likelihood,
  comparison,
  image_features,
  image_makers,
  text_to_image,
)

# More than the 128 features of the small InceptionV3.
EACH = 17


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  folder = toys.shared(tmp_path_factory)
  with tiny.compiled_once(folder[0]):
    yield folder


@pytest.fixture(scope="module")
def eyes(shared, tmp_path_factory):
  return tiny_eyes.save(tmp_path_factory.mktemp("eyes"), shared[0])


def config(shared, workdir, eyes=None, **fields):
  """8 prompts of the held-out captions, by the checkpoint of `shared`."""
  data, trained = shared
  none = {f"evaluate__{n}": "" for n in ("inception", "clip_fid", "cmmd")}
  fields = {
    **(eyes or {**none, "evaluate__clip_score": ()}),
    "train__checkpoints": f"{trained}/checkpoints",
    "evaluate__prompts": f"{data}/captions",
    "evaluate__validation_loss": False,
    "sample__steps": 2,
    **fields,
  }
  return tiny.config(data, workdir, **fields)


@pytest.fixture(scope="module")
def measured(shared, eyes, tmp_path_factory):
  """A finished evaluation: its folder, config and numbers."""
  work = tmp_path_factory.mktemp("measured")
  made = config(
    shared,
    work,
    eyes,
    evaluate__real=f"{shared[0]}/catalogue",
    evaluate__each=EACH,
    evaluate__draws=200,
    sample__batch_size=40,
  )
  return work, made, comparison.run(made)


def test_every_metric_has_an_interval_that_holds_it(measured):
  work, _, found = measured
  json.dumps(found, allow_nan=False)
  row = found["guidance_3"]
  assert row["images"] == 8 * EACH
  assert row["not_finite"] == 0
  for name in ("kid", "cmmd", "inception_score", "clip_score_clip"):
    assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
  for name in ("precision", "recall", "density", "coverage"):
    assert 0 <= row[name]["low"] <= row[name]["value"] <= row[name]["high"]
  table = (work / "evaluation" / "table.md").read_text()
  assert "| metric | guidance 3 |" in table
  assert table.count("95 %") == 1


def test_fid_of_too_few_real_images_says_so(measured):
  # 8 real images, and 128 features.
  row = measured[2]["guidance_3"]
  assert row["fid"]["value"] is None
  assert "FID of 8 images needs more than 128" in row["fid"]["why"]
  text = (measured[0] / "evaluation" / "table.md").read_text()
  assert "No fid: FID of 8 images needs more than 128" in text
  assert row["clip_fid"]["why"].startswith("FID of 8 images needs more than 12")


def test_numbers_are_those_of_the_images_in_the_folder(measured, eyes):
  """By another way: each image read, seen and compared by itself."""
  work, made, found = measured
  network = image_features.clip(eyes["evaluate__clip_fid"])
  folder = str(work / "evaluation" / "guidance-3")
  rows = image_features.extract(
    [network],
    lambda place: generated.read(folder, place),
    8 * EACH,
    batch_size=16,
  )[network.name, "image"]
  prompts = comparison.prompt_sets.open(made.evaluate.prompts, "validation")
  texts = [text for text in prompts.texts for _ in range(EACH)]
  captions = image_features.captions(network, texts)
  expected = clip_score.clip_score(rows, captions)
  value = found["guidance_3"]["clip_score_clip"]["value"]
  assert value == pytest.approx(expected, rel=1e-5)


def test_a_captioner_says_how_likely_the_prompts_are(
  shared, tmp_path, monkeypatch
):
  captioner = str(tmp_path / "blip2")
  tiny_captioners.save("blip2", captioner, positions=80)
  made = config(
    shared,
    tmp_path,
    evaluate__caption_score=captioner,
    caption__dtype="float32",
    evaluate__each=2,
  )
  found = comparison.run(made)
  row = found["guidance_3"]["caption_score_blip2"]
  assert 0 < row["low"] < row["value"] < row["high"] < 1
  # By another way: each image by itself, with the caption of its number.
  folder = str(tmp_path / "evaluation" / "guidance-3")
  prompts = comparison.prompt_sets.open(made.evaluate.prompts, "validation")
  asked = caption_likelihood.load(captioner, "blip2", "float32")
  scores = []
  for number in range(16):
    network, mask = caption_likelihood.network(
      asked, [prompts.texts[number // 2]]
    )
    log_p = image_features.extract(
      [network],
      lambda _, number=number: generated.read(folder, number),
      1,
      batch_size=8,
    )[captioner, "log_p"]
    scores += [np.exp(log_p[mask].mean())]
  assert row["value"] == pytest.approx(np.mean(scores), rel=1e-5)
  assert np.std(scores) > 0
  monkeypatch.setattr(image_features, "extract", None)
  assert comparison.run(made) == found


def test_a_second_run_makes_nothing_and_finds_the_same(measured, monkeypatch):
  _, made, found = measured

  def never(*arguments, **options):
    raise AssertionError("something was computed again")

  monkeypatch.setattr(text_to_image, "generate", never)
  monkeypatch.setattr(image_features, "extract", never)
  assert comparison.run(made) == found


def test_published_statistics_serve_in_place_of_real_images(
  measured, shared, tmp_path
):
  work, made, _ = measured
  rng = np.random.default_rng(0)
  real = frechet.gaussian(frechet.moments(rng.standard_normal((400, 128))))
  np.savez(tmp_path / "coco.npz", mu=real.mean, sigma=real.cov)
  made = made.copy_and_resolve_references()
  with made.unlocked():
    made.evaluate.real = str(tmp_path / "coco.npz")
  found = comparison.run(made)
  row = found["guidance_3"]
  assert row["fid"]["low"] < row["fid"]["value"] < row["fid"]["high"]
  assert "kid" not in row
  drawing = (work / "evaluation" / "curve.svg").read_text()
  assert drawing.count("<circle") == 1
  assert drawing.startswith("<svg xmlns=")
  assert ">CLIP score<" in drawing


def images(folder):
  """The bytes of every image, by name."""
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(pathlib.Path(folder).rglob("*.png"))
  }


def test_missing_images_are_made_again_to_the_bit(
  shared, tmp_path, monkeypatch
):
  made = config(shared, tmp_path, evaluate__each=3)
  comparison.run(made)
  folder = tmp_path / "evaluation" / "guidance-3"
  before = images(folder)
  assert len(before) == 24
  chosen = random.Random(1).sample(sorted(before), 5)
  for name in chosen:
    (folder / name).unlink()
  written = []
  write = generated.write
  monkeypatch.setattr(
    generated,
    "write",
    lambda folder, index, image: (
      written.append(index) or write(folder, index, image)
    ),
  )
  comparison.run(made)
  assert images(folder) == before
  assert sorted(generated.name(index) for index in written) == sorted(chosen)


def test_an_image_follows_from_seed_and_number(shared, tmp_path):
  """More prompts, another sweep: what was made before stays as it was."""
  few = config(shared, tmp_path / "a", evaluate__count=3)
  many = config(
    shared, tmp_path / "a", evaluate__guidance=(1.0, 3.0), evaluate__each=1
  )
  comparison.run(few)
  before = images(tmp_path / "a" / "evaluation" / "guidance-3")
  comparison.run(many)
  after = images(tmp_path / "a" / "evaluation" / "guidance-3")
  assert len(before) == 3
  assert len(after) == 8
  assert before.items() <= after.items()
  table = (tmp_path / "a" / "evaluation" / "table.md").read_text()
  assert "| metric | guidance 1 | guidance 3 |" in table
  other = config(shared, tmp_path / "b", seed=18)
  comparison.run(other)
  others = images(tmp_path / "b" / "evaluation" / "guidance-3")
  assert not set(others.values()) & set(after.values())


def test_images_that_are_not_finite_are_counted_rejects(
  shared, tmp_path, monkeypatch
):
  made = config(shared, tmp_path)
  generate = text_to_image.generate

  def broken(model, prompts, **options):
    found = generate(model, prompts, **options).copy()
    found[options["indices"] % 3 == 1, 2, 3, 0] = np.nan
    return found

  monkeypatch.setattr(text_to_image, "generate", broken)
  found = comparison.run(made)
  assert found["guidance_3"] == {"images": 5, "not_finite": 3}
  folder = tmp_path / "evaluation" / "guidance-3"
  assert len(images(folder)) == 5
  told = (folder / "000" / "000004.rejected").read_text()
  assert told == "1 of 768 values not finite\n"
  # They are not made again.
  monkeypatch.setattr(text_to_image, "generate", None)
  assert comparison.run(made) == found
  for place in folder.rglob("*.png"):
    place.rename(place.with_suffix(".rejected"))
  with pytest.raises(ValueError, match=r"all 8 images of .* not finite"):
    comparison.run(made)


def test_a_damaged_image_and_a_missing_one_are_named(shared, tmp_path):
  made = config(shared, tmp_path)
  comparison.run(made)
  folder = tmp_path / "evaluation" / "guidance-3"
  (folder / "000" / "000002.png").write_bytes(b"no picture")
  with pytest.raises(ValueError, match=r"000002.png is damaged .*remove it"):
    generated.read(str(folder), 2)
  (folder / "000" / "000002.png").unlink()
  with pytest.raises(ValueError, match=r"000002.png is gone"):
    generated.read(str(folder), 2)
  with pytest.raises(ValueError, match=r"lacks 1 of 8 images, 000/000002"):
    generated.indices(str(folder), 8)


def test_two_runs_in_one_folder_are_one_too_many(shared, tmp_path):
  made = config(shared, tmp_path)
  with generated.locked(made.evaluate.folder):
    with pytest.raises(ValueError, match=r"another run \(process \d+ on"):
      comparison.run(made)
  comparison.run(made)


def test_a_folder_of_another_recipe_is_left_alone(shared, tmp_path):
  comparison.run(config(shared, tmp_path))
  before = toys.contents(tmp_path)
  other = config(shared, tmp_path, sample__steps=3)
  with pytest.raises(
    ValueError, match=r"another recipe: model.steps 2 \(now 3\);"
  ):
    comparison.run(other)
  assert {k: v for k, v in toys.contents(tmp_path).items()} == before
  (tmp_path / "mine" / "guidance-3").mkdir(parents=True)
  (tmp_path / "mine" / "guidance-3" / "holiday.png").write_bytes(b"")
  mine = config(shared, tmp_path, evaluate__folder=str(tmp_path / "mine"))
  with pytest.raises(ValueError, match=r"has 'holiday.png' and no recipe"):
    comparison.run(mine)


def test_a_damaged_cache_is_made_anew(measured, capsys):
  _, made, found = measured
  cache = pathlib.Path(made.evaluate.cache)
  held = {p: p.read_bytes() for p in cache.glob("*.npy")}
  # Two of Inception and one of the CLIP, of real images and of ours.
  assert len(held) == 2 * (2 + 1)
  for number, (place, data) in enumerate(sorted(held.items())):
    if number % 2:
      place.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
      place.write_bytes(data[:100])
  assert comparison.run(made) == found
  assert (
    capsys.readouterr().out.count("is damaged: made anew") >= len(held) // 2
  )
  assert {p: p.read_bytes() for p in held} == held


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"evaluate__prompts": "nowhere.txt"}, "no prompts 'nowhere.txt'"),
    ({"evaluate__model": "nowhere"}, "no model 'nowhere'"),
    ({"evaluate__inception": "nowhere"}, "no inception 'nowhere'"),
    ({"evaluate__guidance": (2.0, 2.0)}, "names one twice"),
    ({"evaluate__caption_score": "nowhere"}, "no blip2 'nowhere'"),
    ({"evaluate__count": 9}, "9 rows of .*, which has 8"),
    ({"evaluate__each": 0}, "evaluate.each=0"),
    ({"evaluate__real": "nowhere"}, "no prompts 'nowhere'"),
    ({"evaluate__real": "nowhere.npz"}, "no mu and sigma"),
    ({"sample__sampler": "best"}, "sampler"),
  ],
)
def test_what_is_not_there_is_refused_before_an_image(
  shared, tmp_path, fields, words
):
  with pytest.raises(ValueError, match=words):
    comparison.run(config(shared, tmp_path, **fields))
  assert not list(tmp_path.rglob("*.png"))


def test_a_run_is_evaluated_by_its_work_folder(shared, tmp_path):
  """The config that it was trained with is noted there."""
  data, trained = shared
  work = tmp_path / "run"
  shutil.copytree(trained, work)
  own = tiny.config(data, work)
  files.write_json(work / "config.json", {"train": {"config": own.to_dict()}})
  plain = config(shared, tmp_path / "a")
  named = config(
    shared,
    tmp_path / "b",
    evaluate__model=str(work),
    model__prediction="v",
    train__checkpoints="/nowhere",
  )
  comparison.run(plain)
  comparison.run(named)
  one, other = (images(tmp_path / x / "evaluation") for x in "ab")
  assert one == other
  files.write_json(work / "config.json", {})
  with pytest.raises(ValueError, match="notes no training"):
    image_makers.open(named, str(work))


def test_killed_at_random_it_is_finished_by_the_same_command(shared, tmp_path):
  data, trained = shared
  words = [
    f"--config.train.checkpoints={trained}/checkpoints",
    f"--config.evaluate.prompts={data}/captions",
    "--config.evaluate.validation_loss=false",
    "--config.evaluate.each=20",
    *(f"--config.evaluate.{n}=" for n in ("inception", "clip_fid", "cmmd")),
    "--config.evaluate.clip_score=()",
    "--config.sample.steps=1",
  ]
  status, _, err = tiny.run("evaluate", data, str(tmp_path / "whole"), *words)
  assert status == 0, err
  whole = images(tmp_path / "whole" / "evaluation" / "guidance-3")
  assert len(whole) == 160
  folder = tmp_path / "killed" / "evaluation" / "guidance-3"
  after = random.randrange(1, 120)
  process = tiny.start("evaluate", data, str(tmp_path / "killed"), *words)
  stop = time.monotonic() + 120
  while len(list(folder.rglob("*.png"))) < after:
    assert time.monotonic() < stop
    assert process.poll() is None or len(images(folder)) == 160
    time.sleep(0.002)
  process.kill()
  process.communicate()
  status, _, err = tiny.run("evaluate", data, str(tmp_path / "killed"), *words)
  assert status == 0, err
  assert images(folder) == whole
  assert not list(folder.rglob("*.tmp"))
