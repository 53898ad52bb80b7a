# SPDX-License-Identifier: Apache-2.0
"""Our networks in the libraries that they come from, for comparison.

The one place that knows torch, diffusers and transformers' models. They are
imported when a comparison is asked for, so none is needed otherwise.
"""

from collections.abc import Callable, Mapping
import hashlib
import importlib
import inspect
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
    latent_shape: `latent_shape(size) -> (height, width, channels)`.
    run: `run(prompts, xt, *, size, steps, guidance) -> images` from standard
      normal noise [N H W C]; images [N Y X 3] in [0, 1].
  """

  identity: dict[str, Any]
  latent_shape: Callable[[int], tuple[int, int, int]]
  run: Callable[..., np.ndarray]


def pipeline(name: str, dtype: str = "float32") -> Pipeline:
  """Any text-to-image pipeline of diffusers that takes latents to begin from.

  Args:
    name: a folder, or a repository on the hub.
    dtype: of weights and computation.

  Raises:
    ValueError: a library is not installed, or there is no such pipeline.
  """
  torch, diffusers = library("torch"), library("diffusers")
  # It fills the terminal with bars of its own.
  importlib.import_module("diffusers.utils.logging").disable_progress_bar()
  try:
    pipe = diffusers.DiffusionPipeline.from_pretrained(
      name, dtype=getattr(torch, dtype)
    )
  except (OSError, ValueError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(f"diffusers cannot open {name!r}: {reason}") from None
  pipe.set_progress_bar_config(disable=True)
  pipe.to("cuda" if torch.cuda.is_available() else "cpu")
  takes = inspect.signature(pipe.__call__).parameters
  absent = {"latents", "num_inference_steps", "guidance_scale"} - set(takes)
  if absent:
    raise ValueError(
      f"{type(pipe).__name__} takes no {', '.join(sorted(absent))}; it cannot "
      "be given a seed's noise"
    )
  denoiser = getattr(pipe, "unet", None) or pipe.transformer
  plain = {"clean_caption": False, "use_resolution_binning": False}
  plain = {key: value for key, value in plain.items() if key in takes}

  def latent_shape(size: int) -> tuple[int, int, int]:
    factor = pipe.vae_scale_factor
    if size % factor:
      raise ValueError(f"size={size} does not divide by {factor}")
    return size // factor, size // factor, denoiser.config.in_channels

  def run(prompts, xt, *, size, steps, guidance):
    latents = _tensor(torch, xt).to(pipe.device, denoiser.dtype)
    return pipe(
      prompts,
      latents=latents,
      height=size,
      width=size,
      num_inference_steps=steps,
      guidance_scale=guidance,
      output_type="np",
      **plain,
    ).images

  digest = hashlib.sha256()
  for part in sorted(pipe.components):
    module = getattr(pipe, part)
    if isinstance(module, torch.nn.Module):
      for key, value in sorted(module.state_dict().items()):
        digest.update(f"{part}.{key} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().float().numpy().tobytes())
  identity = {
    "pipeline": type(pipe).__name__,
    "diffusers": diffusers.__version__,
    "scheduler": type(pipe.scheduler).__name__,
    "weights": f"sha256:{digest.hexdigest()}",
    "dtype": dtype,
  }
  return Pipeline(identity, latent_shape, run)


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
