# SPDX-License-Identifier: Apache-2.0
"""cc-jax export: a checkpoint to a folder that diffusers opens.

A text-to-image model becomes the whole folder of its pipeline, an autoencoder
one of its own. With `export.check` diffusers makes an image from it, which must
be ours; `export.push` puts it on the Hugging Face hub.

With `export.network` it is no checkpoint that is written but any network that
models/hub.py can name: a VQGAN of taming's becomes a folder of VQModel, a .pth
of PixArt one of diffusers.
"""

import dataclasses
import inspect
import logging

import huggingface_hub
import jax
import ml_collections
import numpy as np

from cc_jax.core import checkpoint, files, log, tree, versions
from cc_jax.data import aligned, clean_caption, shards
from cc_jax.models import families, hub, kinds
from cc_jax.pipelines import (
  card,
  clip_gen_folder,
  folders,
  preview,
  run_report,
  scaling,
  text_to_image,
)
from cc_jax.tasks import task as tasks

# Largest difference from diffusers' image, in [0, 1]: half a grey level.
TOLERANCE = 2e-3

REPORT = "report.html"
CODE = """\
```python
import diffusers

model = diffusers.{type}.from_pretrained("path/of/this/folder")
{call}
```"""
SAMPLE = """\
image = model(
  "a prompt", num_inference_steps={steps}, guidance_scale={guidance}
).images[0]"""
ENCODE = "latents = model.encode(images).latent_dist.sample()"


def main(config: ml_collections.ConfigDict, workdir: str) -> str:
  """Writes `config.export.folder`; its last file is the one that opens it.

  Returns:
    The folder.

  Raises:
    ValueError: no checkpoint, or one of another model; a check that fails; a
      repository that cannot be pushed to.
  """
  options, task = config.export, config.train.task
  write = {
    "autoencoder": autoencoder,
    "contrastive": clip_gen,
    "latent_diffusion": pipeline,
    "prior": clip_gen,
    "vqgan": clip_gen,
  }
  if options.network:
    task, write = "", {"": network}
  if task not in write:
    raise ValueError(f"no export for the task {task!r}")
  folders.check_dtype(options.dtype)
  if options.part not in ("ema", "params"):
    raise ValueError(f"export.part={options.part!r}; expected ema or params")
  if options.check:
    check_possible(config)
  if options.push and files.is_remote(options.folder):
    raise ValueError(
      f"export.push sends a local folder, not {options.folder}; set "
      "export.folder to one"
    )
  if jax.process_index() == 0:
    counts = write[task](config, workdir)
    parts = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    log.announce("export", f"parameters: {parts}")
    if options.check:
      difference = check(config)
      log.announce(
        "export", f"largest difference from diffusers: {difference:.1e}"
      )
    if options.push:
      push(options.folder, options.push, private=options.private)
      log.announce("export", f"pushed to {options.push}")
  versions.record(workdir, "export", config)
  what = options.network or f"{options.part} weights"
  log.announce("export", f"{what} -> {options.folder}")
  return options.folder


def pipeline(config: ml_collections.ConfigDict, workdir: str) -> dict[str, int]:
  """A folder for `from_pretrained` of the pipeline of the model's family.

  Its scheduler is the config's sampler, so that it gives our images.
  """
  sample = config.sample
  model = text_to_image.make(config, part=config.export.part)
  report = ""
  if run_report.is_noted(workdir):
    files.write_atomic(
      f"{config.export.folder}/{REPORT}", run_report.write(config, workdir)
    )
    report = (
      f"\n\n[{REPORT}]({REPORT}) has the curves of the training, samples, all "
      "metrics with their intervals, the data by licence, the cost and the "
      "commands."
    )
  readme = card.write(
    config,
    workdir,
    usage=f"A text-to-image model for {sample.size} x {sample.size} pixels, "
    f"{sample.sampler} with {sample.steps} steps, guidance {sample.guidance}:"
    "\n\n"
    + CODE.format(
      type=folders.LAYOUTS[model.design.family].pipeline,
      call=SAMPLE.format(steps=sample.steps, guidance=sample.guidance),
    )
    + report,
    tag="text-to-image",
  )
  return folders.write(
    config.export.folder,
    model,
    sampler=sample.sampler,
    size=sample.size,
    dtype=config.export.dtype,
    readme=readme,
  )


def autoencoder(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, int]:
  """A folder for `diffusers.AutoencoderKL.from_pretrained`.

  The scaling factor in its config is measured here, on training images: one
  over the standard deviation of their latents.
  """
  vae_config = hub.config(config.model.vae, "autoencoder")
  _, shapes = kinds.structure("autoencoder", vae_config, dtype="float32")
  params = checkpoint.load(
    config.train.checkpoints,
    config.export.part,
    {"vae": shapes},
    None if config.sample.step < 0 else config.sample.step,
  )["vae"]
  datasets = [shards.open(name) for name in config.train.folders]
  source = aligned.source(datasets, config.train.split, ("image",))
  rows = np.linspace(0, len(source) - 1, min(len(source), 256)).astype(int)
  factor = scaling.scaling_factor(
    hub.Loaded(vae_config, params),
    [source[int(row)]["image"] for row in rows],
    config.autoencoder.size,
  )
  log.announce(
    "export", f"scaling factor {factor:.4f}, from {len(rows)} images"
  )
  made = dataclasses.replace(
    vae_config, scaling_factor=factor, sample_size=config.autoencoder.size
  )
  readme = card.write(
    config,
    workdir,
    usage=CODE.format(call=ENCODE, type="AutoencoderKL"),
    tag="image-to-image",
  )
  folder = config.export.folder
  files.write_atomic(f"{folder}/README.md", readme)
  hub.save(folder, "autoencoder", made, params, dtype=config.export.dtype)
  return {"vae": tree.count(params)}


def clip_gen(config: ml_collections.ConfigDict, workdir: str) -> dict[str, int]:
  """A network of CLIP-GEN, or with the prior all three, by themselves."""
  task = tasks.make(config)
  params = tasks.trained(config, task, config.export.part)
  readme = card.write(
    config,
    workdir,
    usage=clip_gen_folder.usage(config),
    tag=clip_gen_folder.TAGS[config.train.task],
  )
  return clip_gen_folder.write(config, task.parts, params, readme)


def network(config: ml_collections.ConfigDict, workdir: str) -> dict[str, int]:
  """A network by its name, in the files that its library opens."""
  options = config.export
  loaded = hub.load(options.network, options.kind)
  hub.save(
    options.folder,
    options.kind,
    loaded.config,
    loaded.params,
    dtype=options.dtype,
  )
  return {options.kind: tree.count(loaded.params)}


def check_possible(config: ml_collections.ConfigDict) -> None:
  """Refuses `export.check` before anything is written.

  Raises:
    ValueError: the task has no images to compare, the sampler draws noise on
      the way, or diffusers or torch is not installed.
  """
  what = config.export.network or config.train.task
  if what != "latent_diffusion":
    raise ValueError(
      "export.check compares images of a text-to-image model; this is an "
      f"export of {what}"
    )
  names = config.model
  family = families.find(names)
  if family == "dit":
    raise ValueError(
      "export.check has prompts, and a model of classes takes none; open the "
      "folder with diffusers.DiTPipeline"
    )
  if names.null_caption == "buffer":
    raise ValueError(
      "export.check: PixArtAlphaPipeline guides away from an empty caption, "
      "this model from its null caption; set model.null_caption='empty'"
    )
  if config.sample.channels:
    raise ValueError(
      "export.check: diffusers guides all channels; set sample.channels=0"
    )
  if config.sample.sampler == "ddpm":
    raise ValueError(
      "export.check cannot compare images of ddpm, which draws noise on the "
      "way; set sample.sampler=ddim"
    )
  try:
    import diffusers
    import torch
  except ImportError as error:
    raise ValueError(
      f"export.check needs diffusers and torch ({error}); "
      f"pip install 'diffusers>={folders.DIFFUSERS}' torch"
    ) from None
  del diffusers, torch


def check(config: ml_collections.ConfigDict) -> float:
  """Compares an image of diffusers with ours, from the files alone.

  Both compute in float32 from the same noise, for the first prompt.

  Returns:
    The largest difference of a value in [0, 1].

  Raises:
    ValueError: it is over `TOLERANCE`.
  """
  import diffusers
  import torch

  for name in ("diffusers", "transformers"):
    logging.getLogger(name).setLevel(logging.ERROR)
  diffusers.utils.logging.disable_progress_bar()
  config = ml_collections.ConfigDict(config)
  config.train.dtype = "float32"
  options, folder = config.sample, config.export.folder
  model = text_to_image.make(config, part=config.export.part)
  model = folders.read(folder, model)
  name = folders.LAYOUTS[model.design.family].pipeline
  pipe = getattr(diffusers, name).from_pretrained(folder, dtype=torch.float32)
  pipe.set_progress_bar_config(disable=True)
  takes = inspect.signature(pipe.__call__).parameters
  # Not all pipelines have these, and PixArt's alters prompts and sizes.
  rescale = options.rescale if "guidance_rescale" in takes else 0.0
  more = {
    "guidance_rescale": rescale,
    "clean_caption": False,
    "use_resolution_binning": False,
    "max_sequence_length": model.length,
  }
  arguments = preview.arguments(config) | {"rescale": rescale, "batch_size": 1}
  height, width = arguments["size"]
  shape = text_to_image.latent_shape(model, (height, width))
  xt = text_to_image.noise(
    jax.random.key(config.seed), np.zeros(1, np.int32), shape
  )
  prompts = list(options.prompts[:1])
  arguments["wanted"] = None
  ours = text_to_image.generate(model, prompts, xt=xt, **arguments)
  if model.clean:
    # By our rules, since diffusers' need packages that may not be there.
    prompts = [clean_caption.clean(prompt) for prompt in prompts]
  theirs = pipe(
    prompts,
    latents=torch.tensor(np.asarray(xt)).permute(0, 3, 1, 2),
    height=height,
    width=width,
    num_inference_steps=options.steps,
    guidance_scale=options.guidance,
    output_type="np",
    **{name: value for name, value in more.items() if name in takes},
  ).images
  difference = float(np.abs(ours - theirs).max())
  # Not a number is no agreement either.
  if not difference < TOLERANCE:
    raise ValueError(
      f"diffusers makes another image of {folder}: values differ by up to "
      f"{difference:.1e}, expected under {TOLERANCE}"
    )
  return difference


def push(folder: str, repository: str, *, private: bool) -> None:
  """Uploads a folder to a repository of the hub, which is made if need be.

  Args:
    folder: a local one.
    repository: "user/name".
    private: whether a repository that is made is private.

  Raises:
    ValueError: no such user, no token, no network.
  """
  revision = versions.code()["revision"] or "no revision"
  api = huggingface_hub.HfApi()
  try:
    api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
      repo_id=repository,
      folder_path=folder,
      commit_message=f"cc_jax export, {revision}",
    )
  except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"cannot push {folder} to {repository}: {reason}; log in with `hf auth "
      "login` or set HF_TOKEN, and check the name and the network"
    ) from error
