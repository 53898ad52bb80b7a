# SPDX-License-Identifier: Apache-2.0
"""Our networks in the libraries that they come from, for comparison.

The one place that knows torch, diffusers and transformers' models. They are
imported when a comparison is asked for, so none is needed otherwise.
"""

from collections.abc import Callable, Mapping
import importlib
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
  if kind not in CLASSES:
    raise ValueError(
      f"no reference for {kind!r}; expected {', '.join(CLASSES)}"
    )
  torch = library("torch")
  package, name, options = CLASSES[kind]
  opener = getattr(library(package), name)
  with tempfile.TemporaryDirectory() as folder:
    hub.save(folder, kind, config, params)
    model = opener.from_pretrained(folder, **options).eval()
  given = {key: _tensor(torch, value) for key, value in inputs.items()}
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
