# SPDX-License-Identifier: Apache-2.0
"""What transformers over patches of latents share: DiT and PixArt-alpha.

"Scalable Diffusion Models with Transformers", arXiv 2212.09748, §3.2: latents
cut into tokens, fixed sinusoids for where each stands, norms whose shift and
scale come from a condition; and what their files have in common.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from cc_jax.core import convert
from cc_jax.models import layers

# Sinusoids of a timestep, before the first layer that reads them.
SINUSOIDS = 256

XAVIER = nnx.initializers.xavier_uniform()
NORMAL = nnx.initializers.normal(0.02)


def fused_xavier(parts: int) -> nnx.Initializer:
  """Of one of `parts` square matrices that the authors' code keeps as one."""
  return nnx.initializers.variance_scaling(
    2 / (1 + parts), "fan_avg", "uniform"
  )


def check_sizes(config: Any) -> None:
  """Refuses widths and patches that cannot be, for the models here."""
  if config.heads * config.head_width % 4:
    raise ValueError(
      f"heads={config.heads} of head_width={config.head_width}: their product "
      "must divide by 4, for the sinusoids of two axes"
    )
  if config.sample_size % config.patch:
    raise ValueError(
      f"sample_size={config.sample_size} does not divide into patches of "
      f"patch={config.patch}"
    )


def patchify(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B T P"]:
  """Cuts maps into tokens, row by row: P = `patch` x `patch` x C values each.

  Raises:
    ValueError: height or width does not divide into patches.
  """
  B, H, W, C = x.shape
  if H % patch or W % patch:
    raise ValueError(
      f"latents of {H} x {W} do not divide into patches of {patch} x {patch}; "
      f"crop the images to multiples of {patch} latents"
    )
  x = x.reshape(B, H // patch, patch, W // patch, patch, C)
  return x.swapaxes(2, 3).reshape(B, -1, patch * patch * C)


def unpatchify(
  tokens: Float[Array, "B T P"], height: int, width: int, patch: int
) -> Float[Array, "B H W C"]:
  """The inverse of `patchify`, for maps of that height and width."""
  B, rows, columns = len(tokens), height // patch, width // patch
  x = tokens.reshape(B, rows, columns, patch, patch, -1)
  return x.swapaxes(2, 3).reshape(B, height, width, -1)


def grid(
  rows: int, columns: int, *, base: int, scale: float | int = 1
) -> Float[np.ndarray, "T 2"]:
  """Where each token of a map of patches stands: its row and column.

  Both run from 0 to `base` / `scale`, whatever the height and width: an axis is
  stretched to the one that the network was trained on.

  Args:
    rows: of patches.
    columns: of patches.
    base: patches a side of the square map that it was trained on.
    scale: by which that map was larger than the one trained on before
      (`interpolation_scale` of the files).
  """
  axes = (np.arange(n, dtype=np.float32) * base / n for n in (rows, columns))
  places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) / scale
  return places.reshape(-1, 2).astype(np.float32)


def position_embedding(
  positions: Float[Any, "*B T 2"], width: int
) -> Float[Array, "*B T width"]:
  """Sinusoids of column, then row, [sin, cos] each, in float32.

  arXiv 2212.09748, §3.2, after "An Image is Worth 16x16 Words", arXiv
  2010.11929, appendix D.4.

  Args:
    positions: of `grid`.
    width: D.
  """
  quarter = width // 4
  frequency = 10_000 ** -(np.arange(quarter) / quarter)
  places = jnp.asarray(positions, jnp.float32)[..., ::-1, None]
  angle = places * frequency.astype(np.float32)
  embedding = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  return embedding.reshape(*positions.shape[:-1], width)


def modulate(
  x: Float[Array, "B T D"],
  shift: Float[Array, "B 1 D"],
  scale: Float[Array, "B 1 D"],
) -> Float[Array, "B T D"]:
  """x (1 + scale) + shift, in float32; the result has the type of x."""
  return (x.astype(jnp.float32) * (1 + scale) + shift).astype(x.dtype)


def parts(
  modulation: Float[Array, "B D6"], count: int
) -> list[Float[Array, "B 1 D"]]:
  """`count` vectors of a block's modulation, in float32."""
  return jnp.split(modulation.astype(jnp.float32)[:, None], count, axis=-1)


def table(rows: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
  """Vectors of length one, more or less."""
  return nnx.Param(jax.random.normal(rngs.params(), (rows, width)) / width**0.5)


class Patch(nnx.Module):
  """A linear layer over the values of a patch; files have a convolution."""

  def __init__(
    self,
    patch: int,
    channels: int,
    width: int,
    *,
    dtype: layers.Dtype,
    rngs: nnx.Rngs,
  ):
    flat = XAVIER(rngs.params(), (patch * patch * channels, width))
    self.dtype = dtype
    self.kernel = nnx.Param(flat.reshape(patch, patch, channels, width))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: Float[Array, "B T P"]) -> Float[Array, "B T D"]:
    flat = self.kernel[...].reshape(x.shape[-1], -1).astype(self.dtype)
    return x.astype(self.dtype) @ flat + self.bias[...].astype(self.dtype)


# What both have in the files of diffusers, and in those of the authors.
NAMES: convert.Names = (
  ("patch", "pos_embed.proj"),
  ("blocks", "transformer_blocks.{l}"),
  ("q", "to_q"),
  ("k", "to_k"),
  ("v", "to_v"),
  ("out", "to_out.0"),
  ("mlp.up", "ff.net.0.proj"),
  ("mlp.down", "ff.net.2"),
  ("up", "linear_1"),
  ("down", "linear_2"),
)
ORIGINAL: convert.Names = (
  ("patch", "x_embedder.proj"),
  ("blocks", "blocks.{l}"),
  ("attn1.q", "attn.qkv[0/3]"),
  ("attn1.k", "attn.qkv[1/3]"),
  ("attn1.v", "attn.qkv[2/3]"),
  ("attn1.out", "attn.proj"),
  ("mlp.up", "mlp.fc1"),
  ("mlp.down", "mlp.fc2"),
  ("time.up", "t_embedder.mlp.0"),
  ("time.down", "t_embedder.mlp.2"),
  ("proj_out", "final_layer.linear"),
)

# What both transformers of diffusers have one value of.
FIXED = {
  "activation_fn": "gelu-approximate",
  "attention_bias": True,
  "dropout": 0.0,
  "norm_elementwise_affine": False,
}
RENAMED = {
  "patch": "patch_size",
  "heads": "num_attention_heads",
  "head_width": "attention_head_dim",
  "depth": "num_layers",
  "eps": "norm_eps",
}
# Files from before diffusers 0.29 are of a class for many models.
LEGACY = {
  "_class_name": ("Transformer2DModel",),
  "double_self_attention": (False,),
  "num_vector_embeds": (None,),
  "only_cross_attention": (False,),
  "use_linear_projection": (False,),
}
# The softmax is in float32 here whatever they say; there are no group norms.
IGNORED = ("upcast_attention", "norm_num_groups")


def sizes(tensors: convert.Tensors) -> dict[str, int]:
  """Fields of a config that the authors' tensors tell, of DiT or PixArt.

  Raises:
    ValueError: the table of positions is missing, which alone tells the size
      of the latents.
  """
  if "pos_embed" not in tensors:
    raise ValueError(
      "no pos_embed among the tensors, which tells the size of the latents; "
      "convert the file with diffusers and open that folder"
    )
  width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
  out = tensors["final_layer.linear.weight"].shape[0]
  blocks = {
    name.split(".")[1] for name in tensors if name.startswith("blocks.")
  }
  # Heads leave no trace in the weights. XL's are 72 wide, in other sizes 64.
  head = 72 if width % 72 == 0 else 64
  return dict(
    sample_size=round(tensors["pos_embed"].shape[1] ** 0.5) * patch,
    patch=patch,
    in_channels=channels,
    out_channels=out // patch**2,
    heads=width // head,
    head_width=head,
    depth=len(blocks),
    eps=1e-6,
  )
