# SPDX-License-Identifier: Apache-2.0
"""Small pipelines of random weights, made and saved by diffusers itself."""

import pathlib

import diffusers
from diffusers.pipelines.stable_diffusion import safety_checker
import tiny
import torch
import toys
import transformers

TEXT = dict(
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  max_position_embeddings=8,
)


def _vae(channels=4):
  return diffusers.AutoencoderKL(
    block_out_channels=(4, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=channels,
    norm_num_groups=4,
    sample_size=tiny.SIZE,
    scaling_factor=0.5,
  )


def _clip(tokenizer):
  ids = dict(
    vocab_size=len(tokenizer),
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
  )
  return transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, **ids))


def _t5(tokenizer):
  config = transformers.T5Config(
    vocab_size=len(tokenizer),
    d_model=16,
    d_ff=24,
    d_kv=8,
    num_layers=2,
    num_heads=2,
    feed_forward_proj="gated-gelu",
  )
  return transformers.T5EncoderModel(config)


def _t5_tokenizer(data, folder):
  toys.pixart(data, folder)
  return transformers.AutoTokenizer.from_pretrained(f"{folder}/tokenizer")


def stable_diffusion(data, folder):
  """As stable-diffusion-2-base is, and a safety checker."""
  del folder
  tokenizer = transformers.CLIPTokenizer.from_pretrained(f"{data}/tokenizer")
  unet = diffusers.UNet2DConditionModel(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=16,
    norm_num_groups=4,
    use_linear_projection=True,
    sample_size=tiny.SIZE // 2,
  )
  config = transformers.CLIPConfig(
    vision_config=dict(
      hidden_size=8,
      intermediate_size=8,
      num_hidden_layers=1,
      num_attention_heads=2,
      image_size=8,
      patch_size=4,
    ),
    projection_dim=4,
  )
  return diffusers.StableDiffusionPipeline(
    vae=_vae(),
    text_encoder=_clip(tokenizer),
    tokenizer=tokenizer,
    unet=unet,
    scheduler=diffusers.DDIMScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      clip_sample=False,
      steps_offset=1,
      # SD2's own is "leading"; ours of a folder is that of config.sample.
      timestep_spacing="trailing",
    ),
    safety_checker=safety_checker.StableDiffusionSafetyChecker(config),
    feature_extractor=transformers.CLIPImageProcessor(
      size=8, crop_size=dict(height=8, width=8)
    ),
  )


def pixart(data, folder):
  """As PixArt-XL-2-256x256 is."""
  tokenizer = _t5_tokenizer(data, folder)
  transformer = diffusers.PixArtTransformer2DModel(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    cross_attention_dim=24,
    caption_channels=16,
    sample_size=tiny.SIZE // 2,
    norm_num_groups=4,
    use_additional_conditions=False,
  )
  return diffusers.PixArtAlphaPipeline(
    tokenizer=tokenizer,
    text_encoder=_t5(tokenizer),
    vae=_vae(),
    transformer=transformer,
    scheduler=diffusers.DPMSolverMultistepScheduler(
      beta_start=0.0001, beta_end=0.02, beta_schedule="linear"
    ),
  )


def flux(data, folder):
  """A kind that this project does not have, of packed latents."""
  tokenizer = transformers.CLIPTokenizer.from_pretrained(f"{data}/tokenizer")
  other = _t5_tokenizer(data, folder)
  vae = _vae()
  vae.register_to_config(shift_factor=0.0)
  return diffusers.FluxPipeline(
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    vae=vae,
    text_encoder=_clip(tokenizer),
    tokenizer=tokenizer,
    text_encoder_2=_t5(other),
    tokenizer_2=other,
    transformer=diffusers.FluxTransformer2DModel(
      in_channels=16,
      num_layers=1,
      num_single_layers=1,
      attention_head_dim=16,
      num_attention_heads=2,
      joint_attention_dim=16,
      pooled_projection_dim=16,
      axes_dims_rope=(4, 4, 8),
    ),
  )


MADE = {"sd": stable_diffusion, "pixart": pixart, "flux": flux}


def save(kind, data, folder):
  """Writes the folder of a kind; its weights follow from a seed.

  Weights are larger than they begin, so that a prompt is heard.
  """
  torch.manual_seed(7)
  pipe = MADE[kind](data, pathlib.Path(folder).parent / f"{kind}-parts")
  for name in ("unet", "transformer", "text_encoder"):
    network = getattr(pipe, name, None)
    if network is not None:
      for parameter in network.parameters():
        if parameter.ndim > 1:
          parameter.data *= 2.0
  pipe.save_pretrained(folder)
  return str(folder)
