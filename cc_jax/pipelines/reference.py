# SPDX-License-Identifier: Apache-2.0
"""Our networks in the libraries that they come from, for comparison.

The one place that knows torch, diffusers and transformers' models. They are
imported when a comparison is asked for, so none is needed otherwise.
"""

from collections.abc import Callable, Mapping
import hashlib
import importlib
import inspect
import json
import tempfile
from typing import Any, NamedTuple

import numpy as np

from cc_jax.models import hub

# diffusers' quicker way to load needs one more package, and says so.
PLAIN = {"low_cpu_mem_usage": False}
# What opens a kind's folder: library, class, options.
CLASSES = {
  "unet": ("diffusers", "UNet2DConditionModel", PLAIN),
  "autoencoder": ("diffusers", "AutoencoderKL", PLAIN),
  "clip_text": ("transformers", "CLIPTextModel", {}),
}
CAPTIONERS = {
  "blip2": "Blip2ForConditionalGeneration",
  "llava": "LlavaForConditionalGeneration",
}


class Reference(NamedTuple):
  """A network in torch.

  Attributes:
    forward: runs it without gradients.
    backward: runs it and the backward pass of the mean square of its output;
      gradients are of all weights that the output depends on.
  """

  forward: Callable[[], Any]
  backward: Callable[[], Any]


def library(name: str) -> Any:
  """A library that is needed for comparisons only.

  Raises:
    ValueError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError:
    raise ValueError(
      f"a comparison needs {name}, which is not installed; "
      "pip install torch==2.13.0 diffusers"
    ) from None


def open(
  kind: str, config: Any, params: Any, inputs: Mapping[str, np.ndarray]
) -> Reference:
  """The network of a kind with our weights, through files, on the CPU.

  Args:
    kind: a key of `CLASSES`.
    config: of that kind.
    params: our weights.
    inputs: by the names that our network gives them, channels-last: xt, t and
      context of the U-Net, x of the autoencoder's encoder, tokens of a tower.

  Raises:
    ValueError: the library is not installed, or no class opens that kind.
  """
  torch = library("torch")
  model = load(kind, config, params).eval()
  given = tensors(inputs)
  run = {
    "unet": lambda: model(given["xt"], given["t"], given["context"]).sample,
    "autoencoder": lambda: model.encode(given["x"]).latent_dist.mean,
    "clip_text": lambda: model(given["tokens"]).last_hidden_state,
  }[kind]

  def forward():
    with torch.no_grad():
      return run()

  def backward():
    model.zero_grad(set_to_none=True)
    loss = run().square().mean()
    loss.backward()
    return loss

  return Reference(forward, backward)


def load(kind: str, config: Any, params: Any) -> Any:
  """The network of a kind in torch, with our weights, through files.

  Raises:
    ValueError: the library is not installed, or no class opens that kind.
  """
  if kind not in CLASSES:
    raise ValueError(
      f"no reference for {kind!r}; expected {', '.join(CLASSES)}"
    )
  library("torch")
  package, name, options = CLASSES[kind]
  opener = getattr(library(package), name)
  with tempfile.TemporaryDirectory() as folder:
    hub.save(folder, kind, config, params)
    return opener.from_pretrained(folder, **options)


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Arrays in torch, maps with the channels first."""
  torch = library("torch")
  return {name: _tensor(torch, value) for name, value in arrays.items()}


class Pipeline(NamedTuple):
  """A text-to-image pipeline of diffusers.

  Attributes:
    identity: its class, scheduler and weights, as JSON has it.
    latent_shape: `latent_shape(size) -> (height, width, channels)`; None where
      it cannot be given noise, being of packed latents or of pixels, and draws
      its own by `seeds`.
    run: `run(prompts, xt, seeds, *, size, steps, guidance) -> images` from
      standard normal noise [N H W C] or None, and a seed an image for what is
      drawn by torch; images [N Y X 3] in [0, 1].
  """

  identity: dict[str, Any]
  latent_shape: Callable[[int], tuple[int, int, int]] | None
  run: Callable[..., np.ndarray]


NEEDED = {
  "prompt",
  "height",
  "width",
  "num_inference_steps",
  "guidance_scale",
  "generator",
}


def pipeline(name: str, dtype: str = "float32") -> Pipeline:
  """Any text-to-image pipeline of diffusers.

  A safety checker is left out: it would paint pictures black.

  Args:
    name: a folder, or a repository on the hub.
    dtype: of weights and computation.

  Raises:
    ValueError: a library is not installed, or there is no such pipeline.
  """
  torch, diffusers = library("torch"), library("diffusers")
  # They fill the terminal with bars and advice of their own.
  quiet = importlib.import_module("diffusers.utils.logging")
  quiet.disable_progress_bar()
  quiet.set_verbosity_error()
  importlib.import_module("transformers.utils.logging").disable_progress_bar()
  try:
    pipe = diffusers.DiffusionPipeline.from_pretrained(
      name, dtype=getattr(torch, dtype)
    )
  # It says so by any of these, of a class that this release does not have too.
  except (AttributeError, ImportError, OSError, ValueError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(f"diffusers cannot open {name!r}: {reason}") from None
  pipe.set_progress_bar_config(disable=True)
  pipe.to("cuda" if torch.cuda.is_available() else "cpu")
  if getattr(pipe, "safety_checker", None) is not None:
    pipe.safety_checker = None
  takes = inspect.signature(pipe.__call__).parameters
  kind = type(pipe).__name__
  if absent := NEEDED - set(takes):
    raise ValueError(
      f"{name} is a {kind}, which takes no {', '.join(sorted(absent))}; "
      "expected a pipeline from prompts to images"
    )
  if "num_frames" in takes:
    raise ValueError(f"{name} is a {kind}, which makes videos, not images")
  # Maps as they are: neither packed into tokens nor joined with others.
  denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
  vae = getattr(pipe, "vae", None)
  channels = lambda part, field: getattr(part.config, field, 0) if part else 0
  given = channels(denoiser, "in_channels")
  plainly = given and given == channels(vae, "latent_channels")
  plain = {"clean_caption": False, "use_resolution_binning": False}
  plain = {key: value for key, value in plain.items() if key in takes}

  def latent_shape(size: int) -> tuple[int, int, int]:
    factor = pipe.vae_scale_factor
    if size % factor:
      raise ValueError(f"size={size} does not divide by {factor}")
    return size // factor, size // factor, given

  def run(prompts, xt, seeds, *, size, steps, guidance):
    latents = {}
    if xt is not None:
      xt = _tensor(torch, xt).to(pipe.device, denoiser.dtype)
      latents = {"latents": xt}
    draws = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return pipe(
      prompt=prompts,
      height=size,
      width=size,
      num_inference_steps=steps,
      guidance_scale=guidance,
      generator=draws,
      output_type="np",
      **latents,
      **plain,
    ).images

  digest = hashlib.sha256()
  for part in sorted(pipe.components):
    module = getattr(pipe, part)
    if isinstance(module, torch.nn.Module):
      for key, value in sorted(module.state_dict().items()):
        digest.update(f"{part}.{key} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().float().numpy().tobytes())
  scheduler = getattr(pipe, "scheduler", None)
  told = dict(scheduler.config) if scheduler else {}
  told = json.dumps(told, sort_keys=True, default=str)
  takes_noise = plainly and "latents" in takes
  identity = {
    "pipeline": kind,
    "diffusers": diffusers.__version__,
    "scheduler": type(scheduler).__name__,
    "scheduler_config": hashlib.sha256(told.encode()).hexdigest()[:12],
    "weights": f"sha256:{digest.hexdigest()}",
    "noise": "ours" if takes_noise else "torch's",
    "dtype": dtype,
  }
  return Pipeline(identity, latent_shape if takes_noise else None, run)


def captioner(
  kind: str,
  config: Any,
  params: Any,
  images: np.ndarray,
  prompt: np.ndarray,
  *,
  dtype: str,
  length: int,
  **options: Any,
) -> Callable[[], np.ndarray]:
  """A function that writes captions with transformers' `generate`.

  Args:
    kind: a key of `CAPTIONERS`.
    config: of that kind.
    params: our weights.
    images: normalised, channels-last.
    prompt: token ids [1 T] of all images, with places for each image.
    dtype: of weights and computation.
    length: tokens of each caption.
    **options: of `generate`.

  Raises:
    ValueError: the library is not installed.
  """
  torch = library("torch")
  opener = getattr(library("transformers"), CAPTIONERS[kind])
  with tempfile.TemporaryDirectory() as folder:
    hub.save(folder, kind, config, params)
    model = opener.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
  tokens = _tensor(torch, prompt).repeat(len(images), 1)
  given = dict(
    pixel_values=_tensor(torch, images).to(getattr(torch, dtype)),
    input_ids=tokens,
    attention_mask=torch.ones_like(tokens),
  )
  never = {"eos_token_id": -1, "pad_token_id": config.text.pad or 0}

  def write():
    with torch.no_grad():
      made = model.generate(
        **given, max_new_tokens=length, **{**never, **options}
      )
    return made[:, -length:].numpy()

  return write


def _tensor(torch: Any, array: np.ndarray) -> Any:
  """Images and maps with the channels first, as torch has them."""
  order = (0, 3, 1, 2) if array.ndim == 4 else range(array.ndim)
  tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(*order)))
  return tensor if tensor.is_floating_point() else tensor.long()
