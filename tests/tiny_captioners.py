# SPDX-License-Identifier: Apache-2.0
"""Small captioners with random weights, in the folders of published ones."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import parity
import tiny_tokenizers
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
import transformers

from cc_jax.core import tree
from cc_jax.models import (
  blip2,
  clip_vision,
  decoding,
  hub,
  kinds,
  llama,
  llava,
  lm,
  opt,
)

IMAGE = "<image>"


def _trained(special, before):
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = before
  trainer = trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=special,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  made.train_from_iterator(tiny_tokenizers.CAPTIONS, trainer)
  state = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
  return state.get_vocab(), made


def _pairs(made):
  merges = json.loads(made.to_str())["model"]["merges"]
  return [tuple(pair) for pair in merges]


def opt_tokenizer(folder):
  """OPT's: GPT-2's pairs of bytes, and </s> before a text."""
  special = ["<s>", "<pad>", "</s>", "<unk>"]
  vocab, made = _trained(special, pre_tokenizers.ByteLevel(False))
  tokenizer = transformers.GPT2Tokenizer(
    vocab=vocab,
    merges=_pairs(made),
    bos_token="</s>",
    eos_token="</s>",
    unk_token="</s>",
    pad_token="<pad>",
    add_bos_token=True,
    padding_side="left",
  )
  tokenizer.add_tokens([IMAGE], special_tokens=True)
  tokenizer.save_pretrained(folder)
  return tokenizer


def llama_tokenizer(folder):
  """LLaMA's: "▁" for blanks, <s> before a text."""
  special = ["<unk>", "<s>", "</s>"]
  vocab, made = _trained(special, pre_tokenizers.Metaspace())
  tokenizer = transformers.LlamaTokenizer(
    vocab=vocab, merges=_pairs(made), padding_side="left"
  )
  tokenizer.add_tokens([IMAGE, "<pad>"], special_tokens=True)
  tokenizer.pad_token = "<pad>"
  tokenizer.save_pretrained(folder)
  return tokenizer


def blip2_config(tokenizer):
  return blip2.Config(
    vision=blip2.VisionConfig(
      width=24, mlp=40, depth=2, heads=4, image_size=28, patch=14
    ),
    qformer=blip2.QFormerConfig(
      width=16, mlp=20, depth=3, heads=2, source_width=24
    ),
    text=opt.Config(
      vocabulary=len(tokenizer),
      width=32,
      mlp=48,
      depth=2,
      heads=4,
      positions=64,
      eos=tokenizer.convert_tokens_to_ids("Ċ"),
    ),
    queries=5,
    image_token=tokenizer.convert_tokens_to_ids(IMAGE),
  )


def llava_config(tokenizer):
  return llava.Config(
    vision=clip_vision.VisionConfig(
      width=24, mlp=40, depth=3, heads=4, image_size=28, patch=7
    ),
    text=llama.Config(
      vocabulary=len(tokenizer), width=32, mlp=48, depth=2, heads=4, eps=1e-5
    ),
    image_token=tokenizer.convert_tokens_to_ids(IMAGE),
  )


LOUD = ("vision.patch.kernel", "projection.kernel", "projector.down.kernel")
TOKENIZERS = {"blip2": opt_tokenizer, "llava": llama_tokenizer}
CONFIGS = {"blip2": blip2_config, "llava": llava_config}
THEIRS = {
  "blip2": transformers.Blip2ForConditionalGeneration,
  "llava": transformers.LlavaForConditionalGeneration,
}


def save(kind, folder, **text):
  """Writes network and tokenizer; gives the tokenizer."""
  tokenizer = TOKENIZERS[kind](folder)
  config = CONFIGS[kind](tokenizer)
  config = dataclasses.replace(
    config, text=dataclasses.replace(config.text, **text)
  )
  params = parity.scramble(kinds.structure(kind, config)[1])
  flat = tree.flatten(params)
  # Or captions would be one word over and over, whatever the image.
  for path in flat:
    if path == "text.position.embedding":
      flat[path] = flat[path] * 30
    if path in LOUD or path.endswith(("attn2.out.kernel", "attn.v.kernel")):
      flat[path] = flat[path] * (5 if path.startswith("text") else 20)
  hub.save(str(folder), kind, config, tree.unflatten(flat))
  return tokenizer


def begun(model, text, images, tokens, mask):
  """(step, logits, cache): what goes on with six tokens at most."""
  x, mask = model.embed(images, tokens, mask)
  cache = lm.empty_cache(text, len(x), x.shape[1] + 6, jnp.float32)
  logits, cache = model.text.extend(x, cache, mask, last=True)
  return model.text.step, logits[:, 0], cache


@functools.partial(jax.jit, static_argnums=1)
def greedy(model, text, images, tokens, mask):
  """Six tokens after each prompt, the likeliest each time."""
  start = begun(model, text, images, tokens, mask)
  return decoding.generate(*start, length=6)


def reference(kind, folder):
  """The network in transformers."""
  return THEIRS[kind].from_pretrained(folder).eval()
