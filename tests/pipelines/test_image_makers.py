# SPDX-License-Identifier: Apache-2.0
"""A checkpoint, its export and diffusers make the same images of a prompt."""

import itertools

import numpy as np
import pytest
import theirs
import tiny
import tiny_clip_gen
import toys

from cc_jax.core import config as configs
from cc_jax.core import files
from cc_jax.pipelines import folders, image_makers, text_to_image

PROMPTS = ["a photo of red", "a photo of green", "a hat"]
# diffusers 0.42.1 calls np.array on a tensor, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation:DeprecationWarning"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  return toys.shared(tmp_path_factory)


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "pixart"])
def test_the_export_makes_the_images_of_the_checkpoint(
  family, shared, tmp_path
):
  data, workdir = shared
  config = {"sdxl": toys.sdxl, "pixart": toys.pixart}.get(family, tiny.config)
  fields = {"sample__steps": 4, "sample__batch_size": 3}
  made = config(
    data, tmp_path if family != "stable_diffusion" else workdir, **fields
  )
  if family != "stable_diffusion":
    toys.write_checkpoint(made)
  model = text_to_image.make(made)
  folder = str(tmp_path / "export")
  folders.write(
    folder,
    model,
    sampler=made.sample.sampler,
    size=tiny.SIZE,
    dtype="float32",
    readme="",
  )
  ours = image_makers.open(made)
  exported = image_makers.open(made, folder)
  baseline = image_makers.open(made, f"diffusers:{folder}")
  assert ours.identity == exported.identity
  chosen = [4, 0, 7]
  images = ours.make(PROMPTS, chosen, 3.0)
  np.testing.assert_array_equal(exported.make(PROMPTS, chosen, 3.0), images)
  others = baseline.make(PROMPTS, chosen, 3.0)
  assert np.abs(others - images).max() < theirs.TOLERANCE
  assert baseline.identity["diffusers"] == theirs.diffusers.__version__
  # An image does not depend on those beside it, but on its number.
  alone = baseline.make(PROMPTS[:1], chosen[:1], 3.0)
  assert np.abs(alone - images[:1]).max() < theirs.TOLERANCE
  moved = ours.make(PROMPTS, [5, 0, 7], 3.0)
  assert np.abs(moved - images)[0].max() > 0.05
  np.testing.assert_array_equal(moved[1:], images[1:])


@pytest.mark.parametrize("candidates", [1, 2])
def test_clip_gen_makes_images_by_their_numbers(
  candidates, tmp_path_factory, tmp_path
):
  made = tiny_clip_gen.config(
    *tiny_clip_gen.shared(tmp_path_factory),
    tmp_path,
    sample__candidates=candidates,
    sample__batch_size=4,
  )
  tiny_clip_gen.write_checkpoint(made)
  maker = image_makers.open(made)
  assert maker.name.startswith("CLIP-GEN, step 1 of")
  images = maker.make(["a photo of red"] * 4, [4, 0, 7, 1], 1.0)
  assert images.shape == (4, 16, 16, 3)
  # The same beside others, and another one under another number.
  few = maker.make(["a photo of red"] * 2, [7, 0], 1.0)
  np.testing.assert_array_equal(few, images[[2, 1]])
  far = [np.abs(a - b).max() for a, b in itertools.combinations(images, 2)]
  assert min(far) > 0.01
  guided = maker.make(["a photo of red"] * 4, [4, 0, 7, 1], 4.0)
  assert np.abs(guided - images).max() > 0.01
  files.write_json(
    tmp_path / "config.json", {"train": {"config": made.to_dict()}}
  )
  with made.unlocked():
    made.train.task = "latent_diffusion"
    again = image_makers.open(made, str(tmp_path))
    assert again.identity == maker.identity
    made.sample.size = 32
  with pytest.raises(ValueError, match=r"have 16 pixels .* sample.size=16"):
    image_makers.open(made, str(tmp_path))


def test_what_is_no_pipeline_is_refused(shared, tmp_path):
  made = tiny.config(*shared)
  with pytest.raises(ValueError, match="diffusers cannot open"):
    image_makers.open(made, f"diffusers:{tmp_path}")
  (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
  with pytest.raises(ValueError, match="is a FluxPipeline; expected one of St"):
    image_makers.open(made, str(tmp_path))


def test_the_protocol_has_two_fields_under_short_names():
  made = configs.load("configs/evaluate.py")
  configs.override(made, "config.checkpoint", "{workdir}/../sd2")
  configs.override(made, "config.prompts", "parti")
  configs.resolve(made, "runs/x")
  found = made.lock().to_dict()
  assert found["evaluate"]["model"] == found["checkpoint"] == "runs/sd2"
  assert found["evaluate"]["prompts"] == "parti"
  assert len(found["evaluate"]["guidance"]) == 9


def test_batches_are_cut_from_all_images():
  found = image_makers.batches([1, 2, 9], 10, 4)
  assert found == [range(0, 4), range(8, 10)]
  assert image_makers.batches([], 10, 4) == []
