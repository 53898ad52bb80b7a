# SPDX-License-Identifier: Apache-2.0
import json

import jax
import numpy as np
import pytest
import tiny

from cc_jax.core import checkpoint
from cc_jax.stages import evaluate
from cc_jax.tasks import step as steps
from cc_jax.tasks import task as tasks


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  """Checkpoints before the first and after the 30th step."""
  folder = tmp_path_factory.mktemp("evaluate")
  made = tiny.config(data, folder)
  task = tasks.make(made)
  init, update = steps.make(made, task)
  source = tasks.source(task, made.train.folders, "train")
  rows = {
    name: np.stack([source[row][name] for row in range(8)])
    for name in task.features
  }
  state = jax.jit(init)(jax.random.key(0))
  folders = checkpoint.manager(made.train.checkpoints, async_=False)
  checkpoint.save(folders, 1, state, {}, {})
  run = jax.jit(update)
  for _ in range(30):
    state, _ = run(state, task.loss, rows)
  checkpoint.save(folders, 30, state, {}, {})
  checkpoint.close(folders)
  return folder


def loss(data, folder, **fields):
  fields = {"sample__part": "params", **fields}
  return evaluate.validation_loss(tiny.config(data, folder, **fields))


def test_the_validation_loss_is_repeatable_and_drops_no_caption(data, trained):
  found = loss(data, trained)
  assert loss(data, trained, latent_diffusion__drop_caption=1.0) == found


def test_the_validation_loss_falls_in_training(data, trained):
  first = loss(data, trained, sample__step=1)
  assert first == pytest.approx(1, abs=0.1)
  assert loss(data, trained) < 0.95 * first


def test_the_validation_loss_is_of_whole_and_partial_batches(data, trained):
  # The 8 records in batches of 8, and of 5 and 3: other noise, one measure.
  whole = loss(data, trained)
  parts = loss(data, trained, evaluate__batch_size=5)
  assert parts == pytest.approx(whole, rel=0.25)


def test_the_error_at_fixed_timesteps_is_of_the_same_noise(data, trained):
  made = tiny.config(
    data,
    trained,
    sample__part="params",
    evaluate__timesteps=(0, 500, 999),
    latent_diffusion__stratified=True,
  )
  found = evaluate.validation_mse(made)
  assert list(found) == ["0", "500", "999"]
  # However training draws and weighs them.
  with made.unlocked():
    made.latent_diffusion.stratified = False
    made.latent_diffusion.min_snr_gamma = 5.0
  assert evaluate.validation_mse(made) == found
  # Of a network that says zero it is the variance of the noise at each.
  first = tiny.config(
    data,
    trained,
    sample__part="params",
    sample__step=1,
    evaluate__timesteps=(0, 999),
  )
  assert list(evaluate.validation_mse(first).values()) == pytest.approx(
    [1, 1], abs=0.1
  )
  with made.unlocked():
    made.evaluate.timesteps = (1000,)
  with pytest.raises(ValueError, match="1000; expected 0 to 999"):
    evaluate.validation_mse(made)


def test_numbers_are_added_to_those_that_are_there(data, trained):
  made = tiny.config(data, trained)
  path = trained / "metrics.json"
  path.write_text(json.dumps({"seconds": 3, "validation_loss": 9}))
  found = evaluate.main(made, str(trained))
  assert set(found) == {"validation_loss"}
  assert json.loads(path.read_text()) == {"seconds": 3, **found}


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"evaluate__split": "test"}, "no records in the split 'test'"),
    ({"evaluate__batch_size": 12}, "batch_size=12 does not divide over 8"),
    ({"sample__step": 7}, "no checkpoint of step 7"),
    ({"sample__part": "mean"}, "no 'mean'; it has ema"),
    ({"train__checkpoints": "/nowhere"}, "no checkpoint in /nowhere"),
    ({"model__unet__channels": (8, 8)}, "is of another model"),
  ],
)
def test_what_is_not_there_is_refused(data, trained, fields, words):
  before = sorted(map(str, trained.rglob("*")))
  with pytest.raises(ValueError, match=words):
    evaluate.main(tiny.config(data, trained, **fields), str(trained))
  assert sorted(map(str, trained.rglob("*"))) == before


def test_latents_of_another_autoencoder_are_refused(data, trained, tmp_path):
  tiny.save_vae(str(tmp_path / "other"), seed=1)
  made = tiny.config(data, trained, model__vae=str(tmp_path / "other"))
  with pytest.raises(ValueError, match="was made by weights"):
    evaluate.main(made, str(trained))


def test_real_images_are_as_they_were_encoded(data):
  made = tiny.config(data, data)
  pictures, titles = evaluate.real_images(made, "validation")
  assert pictures.shape == (tiny.VALIDATION, tiny.SIZE, tiny.SIZE, 3)
  assert 0.8 < pictures.max() <= 1
  assert titles == list(tiny.TITLES) * 4
  for picture, title in zip(pictures, titles, strict=True):
    channel = int(picture.mean((0, 1)).argmax())
    assert tiny.TITLES[channel] == title


def test_samples_are_asked_for_by_every_template_and_title_alike(
  data, monkeypatch
):
  asked = []

  def generate(model, prompts, **arguments):
    del model, arguments
    asked.extend(prompts)
    colour = {"red": (0.8, 0.1, 0.1), "green": (0.1, 0.8, 0.1)}
    rows = [colour[prompt.split()[-1]] for prompt in prompts]
    shape = (len(rows), tiny.SIZE, tiny.SIZE, 3)
    return np.broadcast_to(np.asarray(rows)[:, None, None], shape)

  monkeypatch.setattr(evaluate.text_to_image, "make", lambda config: None)
  monkeypatch.setattr(evaluate.text_to_image, "generate", generate)
  templates = ("a photo of {title}", "all {title}")
  fields = {"each": 4, "templates": templates, "side": 4}
  made = tiny.config(
    data, data, **{f"evaluate__recognise__{k}": v for k, v in fields.items()}
  )
  found = evaluate.recognise(made)
  assert found == {
    "recognised": 1.0,
    "recognised_real": 1.0,
    "recognised_of": 8,
  }
  assert sorted(asked) == sorted(
    template.format(title=title)
    for template in templates
    for title in tiny.TITLES
    for _ in range(2)
  )
