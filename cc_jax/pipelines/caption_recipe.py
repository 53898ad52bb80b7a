# SPDX-License-Identifier: Apache-2.0
"""How captions are made: all that decides them besides the weights.

What CommonCanvas does not say of its captions is how texts were decoded, so a
`Recipe` has all of it, and is written into the provenance of captions.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from cc_jax.data import squares
from cc_jax.models import blip2, clip_vision, llava

IMAGE = "<image>"
DECODINGS = ("greedy", "beam", "nucleus")


class Defaults(NamedTuple):
  """What a kind of network is asked, and how, if a recipe does not say.

  Attributes:
    resize: one of `squares.WAYS`.
    prompt: what stands before the caption, or a question.
    frame: around a question.
    model: a row of models/published.py.
  """

  resize: str
  prompt: str
  frame: str
  model: str


KINDS = {
  "blip2": Defaults(squares.SQUASH, "", "{}", "blip2-opt-2.7b"),
  "llava": Defaults(
    squares.CROP,
    # As CommonCanvas' scripts ask it.
    "Describe this image and its style in a very detailed manner.",
    f"USER: {IMAGE}\n{{}} ASSISTANT:",
    "llava-1.5-7b",
  ),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that decides a caption, besides weights and tokenizer.

  Attributes:
    kind: a key of `KINDS`.
    prompt: "" for that of the kind; one with "<image>" is taken as it is.
    resize: one of `squares.WAYS`, or "" for that of the kind.
    middle: pixels a side to which the middle square is reduced first (512 in
      arXiv 2310.16825, §4.2); 0 for none.
    decoding: one of `DECODINGS`.
    length: most tokens of a caption.
    min_length: tokens it has at least.
    beams: that are searched.
    length_penalty: of beams; above 0 favours long captions.
    temperature: of a nucleus, by which logits are divided.
    top_k: tokens that are drawn from; 0 for no limit.
    top_p: the least probability that they have together.
    seed: of what is drawn.
    dtype: of weights and computation.
  """

  kind: str
  prompt: str = ""
  resize: str = ""
  middle: int = 0
  decoding: str = "greedy"
  length: int = 30
  min_length: int = 0
  beams: int = 5
  length_penalty: float = 1.0
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 0.9
  seed: int = 0
  dtype: str = "bfloat16"

  def __post_init__(self):
    for name, value, known in (
      ("captioner", self.kind, tuple(KINDS)),
      ("decoding", self.decoding, DECODINGS),
      ("resize", self.resize, ("", *squares.WAYS)),
    ):
      if value not in known:
        choices = ", ".join(map(repr, known))
        raise ValueError(f"caption.{name}={value!r}; expected {choices}")
    if not 0 <= self.min_length <= self.length or self.length < 1:
      raise ValueError(
        f"caption.length={self.length} and min_length={self.min_length}; "
        "expected 1 or more, and no more at least than at most"
      )
    if self.beams < 1 or min(self.middle, self.top_k) < 0:
      raise ValueError(
        f"caption.beams={self.beams}, middle={self.middle}, top_k={self.top_k}"
        "; expected at least 1, 0 and 0"
      )

  @property
  def way(self) -> str:
    """Of `squares.WAYS`, how images get their size."""
    return self.resize or KINDS[self.kind].resize

  @property
  def text(self) -> str:
    """The whole prompt."""
    asked = self.prompt or KINDS[self.kind].prompt
    return asked if IMAGE in asked else KINDS[self.kind].frame.format(asked)

  def decides(self) -> dict[str, Any]:
    """The fields that matter, for provenance: none of another decoding."""
    fields = dataclasses.asdict(self)
    of = {
      "beam": ("beams", "length_penalty"),
      "nucleus": ("temperature", "top_k", "top_p", "seed"),
    }
    for name, own in of.items():
      if name != self.decoding:
        for field in own:
          del fields[field]
    return {**fields, "prompt": self.text, "resize": self.way}


def small(
  kind: str, *, width: int, vision_depth: int, text_depth: int, size: int
) -> tuple[Any, np.ndarray]:
  """A small network of a kind and a prompt for it [1 T], for measurements.

  Its vocabulary is that of the published one, and no token ends a text.
  """
  sizes = dict(width=width, mlp=4 * width, heads=max(width // 64, 1))
  vision = dict(depth=vision_depth, image_size=size, patch=14, **sizes)
  if kind == "blip2":
    network = blip2.Config(
      blip2.VisionConfig(**vision),
      blip2.QFormerConfig(depth=vision_depth, source_width=width, **sizes),
      dataclasses.replace(
        blip2.OPT_2_7B.text, depth=text_depth, eos=None, **sizes
      ),
      image_token=blip2.OPT_2_7B.image_token,
    )
    return network, np.array([[network.text.bos]], np.int32)
  network = llava.Config(
    clip_vision.VisionConfig(**vision),
    dataclasses.replace(
      llava.LLAVA_1_5_7B.text, depth=text_depth, eos=None, **sizes
    ),
  )
  words = np.arange(10, 20)
  image = [network.image_token] * network.places
  prompt = np.concatenate([[network.text.bos], words, image, words])
  return network, prompt[None].astype(np.int32)
