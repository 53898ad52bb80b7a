# SPDX-License-Identifier: Apache-2.0
"""A train step of our U-Net in diffusers and torch, for comparison only."""

from collections.abc import Callable, Mapping
import contextlib
import copy
from typing import Any

import numpy as np

from cc_jax.pipelines import reference


def unet_step(
  config: Any,
  params: Any,
  batch: Mapping[str, np.ndarray],
  options: Any,
  *,
  channels_last: bool = False,
  compiled: bool = False,
) -> Callable[[], float]:
  """A function that trains for a step on one batch, and returns the loss.

  Mean squared error, AdamW with its one fused kernel, clipping by the norm of
  all gradients, and an average of the weights, as `tasks/step.py` has them; on
  the GPU if torch sees one. Attention is torch's own, which diffusers calls.

  Args:
    config: of the U-Net.
    params: our weights to begin with.
    batch: of `tasks/denoiser.py`.
    options: `config.train`; its rate is constant here.
    channels_last: the order in which torch keeps maps and kernels.
    compiled: by `torch.compile`.

  Raises:
    ValueError: torch or diffusers is not installed.
  """
  torch = reference.library("torch")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  layout = torch.channels_last if channels_last else torch.contiguous_format
  model = reference.load("unet", config, params)
  model = model.to(device, memory_format=layout).train()
  given = {
    name: tensor.to(device, memory_format=layout)
    if tensor.ndim == 4
    else tensor.to(device)
    for name, tensor in reference.tensors(batch).items()
  }
  more = {}
  if "pooled" in given:
    added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
    more = {"added_cond_kwargs": added}
  weights = list(model.parameters())
  average = copy.deepcopy(weights)
  # As `optim.decay_mask`: kernels, not biases and scales.
  small = [weight for weight in weights if weight.ndim < 2]
  large = [weight for weight in weights if weight.ndim >= 2]
  few = 0.0 if options.decay == "matrices" else options.weight_decay
  groups = [
    {"params": large, "weight_decay": options.weight_decay},
    {"params": small, "weight_decay": few},
  ]
  adam = torch.optim.AdamW(
    groups,
    lr=options.lr,
    betas=(options.b1, options.b2),
    eps=options.eps,
    fused=True,
  )
  half = (
    torch.autocast(device, torch.bfloat16)
    if options.dtype == "bfloat16"
    else contextlib.nullcontext()
  )
  run = torch.compile(model) if compiled else model

  def step() -> float:
    adam.zero_grad(set_to_none=True)
    with half:
      output = run(given["xt"], given["t"], given["context"], **more).sample
    loss = torch.nn.functional.mse_loss(output.float(), given["target"])
    loss.backward()
    if options.clip:
      torch.nn.utils.clip_grad_norm_(weights, options.clip)
    adam.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, weights, 1 - options.ema_decay)
    return float(loss.detach())

  return step
