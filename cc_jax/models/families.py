# SPDX-License-Identifier: Apache-2.0
"""The families of text-to-image models: which networks, and what reads what.

A family is a row of `FAMILIES` and one function, its `conditions`: from
captions and sizes to what the denoiser reads beside xt and t. Training and
sampling both call it, so a network is sampled as it was trained.

  stable_diffusion     all states of one CLIP tower (arXiv 2112.10752, §3.3;
                       CommonCanvas S and L)
  stable_diffusion_xl  penultimate states of two towers side by side, the
                       pooled state of the second, and six sizes (arXiv
                       2307.01952, §2.1-2.2; CommonCanvas XL)
  pixart               states of T5 with a mask and, where the transformer is
                       told, the image's size and aspect ratio (arXiv
                       2310.00426, §2.3)
  dit                  a class, as a caption of one token; there is no text
                       tower (arXiv 2212.09748; PixArt's first stage)
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from cc_jax.models import hub, kinds

Conditions = dict[str, Array]

# Where a diffusers pipeline has each network.
FOLDERS = {
  "unet": "unet",
  "transformer": "transformer",
  "text": "text_encoder",
  "text_2": "text_encoder_2",
  "vae": "vae",
}


class Captions(NamedTuple):
  """Captions as one text tower reads them, from `data.tokenize`.

  Attributes:
    tokens: ids, of a class where there is no tower.
    mask: true where they are not padding; None where nothing needs it.
    states: of the tower, where they were stored; ids are not read then.
  """

  tokens: Int[Array, "B T"]
  mask: Bool[Array, "B T"] | None = None
  states: Float[Array, "B T E"] | None = None


class Family(NamedTuple):
  """How the networks of a text-to-image model work together.

  Attributes:
    denoiser: the network that predicts, by its name in `kinds`.
    kinds: of each network, by the names that configs and folders have.
    conditions: `conditions(networks, captions, sizes)` -> what the denoiser
      takes by name beside xt and t, arrays [B ...]; captions are one
      `Captions` a text tower, sizes [B 6] the original height and width, top
      and left of the crop, and the height and width of the image, in pixels.
    features: of a record that `sizes` are made of in training.
    zeroed: the conditions that are zero for an empty caption, where a model
      wants zeros and not the states of ""; none if the family cannot.
    clean: what is done to a prompt before it is tokenised.
  """

  denoiser: str
  kinds: Mapping[str, str]
  conditions: Callable[..., Conditions]
  features: tuple[str, ...] = ()
  zeroed: tuple[str, ...] = ()
  clean: Callable[[str], str] = lambda prompt: prompt

  @property
  def text(self) -> tuple[str, ...]:
    """The names of the text towers."""
    return tuple(name for name in self.kinds if name.startswith("text"))


def stable_diffusion(
  networks: Mapping[str, Any],
  captions: Sequence[Captions],
  sizes: Num[Array, "B 6"],
) -> Conditions:
  """The states of the last block."""
  del sizes
  return {"context": networks["text"](captions[0].tokens).hidden}


def stable_diffusion_xl(
  networks: Mapping[str, Any],
  captions: Sequence[Captions],
  sizes: Num[Array, "B 6"],
) -> Conditions:
  """States of both towers, a pooled one, and sizes in diffusers' order."""
  first = networks["text"](captions[0].tokens)
  second = networks["text_2"](captions[1].tokens)
  states = [first.penultimate, second.penultimate]
  return {
    "context": jnp.concatenate(states, axis=-1),
    "pooled": second.pooled,
    "time_ids": sizes,
  }


def pixart(
  networks: Mapping[str, Any],
  captions: Sequence[Captions],
  sizes: Num[Array, "B 6"],
) -> Conditions:
  """States of all tokens and a mask; the original's size, our ratio."""
  tokens, mask, states = captions[0]
  if states is None:
    states = networks["text"](tokens, mask)
  read = {"context": states, "mask": mask}
  if networks["transformer"].config.micro_conditions:
    read |= {"sizes": sizes[:, :2], "ratio": sizes[:, 4] / sizes[:, 5]}
  return read


def dit(
  networks: Mapping[str, Any],
  captions: Sequence[Captions],
  sizes: Num[Array, "B 6"],
) -> Conditions:
  """The class."""
  del networks, sizes
  return {"labels": captions[0].tokens[:, 0]}


FAMILIES = {
  "stable_diffusion": Family(
    denoiser="unet",
    kinds={"unet": "unet", "text": "clip_text", "vae": "autoencoder"},
    conditions=stable_diffusion,
  ),
  "stable_diffusion_xl": Family(
    denoiser="unet",
    kinds={
      "unet": "unet",
      "text": "clip_text",
      "text_2": "clip_text",
      "vae": "autoencoder",
    },
    conditions=stable_diffusion_xl,
    features=("size", "crop"),
    zeroed=("context", "pooled"),
  ),
  "pixart": Family(
    denoiser="transformer",
    kinds={"transformer": "pixart", "text": "t5", "vae": "autoencoder"},
    conditions=pixart,
    features=("size", "crop"),
    clean=lambda prompt: prompt.lower().strip(),
  ),
  "dit": Family(
    denoiser="transformer",
    kinds={"transformer": "dit", "vae": "autoencoder"},
    conditions=dit,
  ),
}


def find(names: Any) -> str:
  """The family of a model, by the networks that it names.

  Args:
    names: a mapping of networks, as `hub.config` takes them; "" for one that
      it does not have.

  Raises:
    ValueError: networks that no family has together.
  """
  family = "stable_diffusion"
  if names["transformer"]:
    family = "pixart" if names["text"] else "dit"
  elif hub.config(names["unet"], "unet").pooled_conditions:
    family = "stable_diffusion_xl"
  expected = FAMILIES[family].kinds
  for name in FOLDERS:
    given = not isinstance(names[name], str) or bool(names[name])
    if given and name not in expected:
      raise ValueError(
        f"model.{name} is set, but a {family} model has no such network; set "
        "it to ''"
      )
    if not given and name in expected:
      raise ValueError(f"a {family} model needs model.{name}, which is ''")
  return family


def tokenizers(family: str, names: Any) -> dict[str, str]:
  """The name of the tokenizer of each text tower, from a model's names."""
  named = {"text": names["tokenizer"], "text_2": names["tokenizer_2"]}
  return {name: named[name] or named["text"] for name in FAMILIES[family].text}


def check_zeros(family: str, zero_empty: bool) -> None:
  """Refuses zeros for empty captions where pipelines cannot have them."""
  if zero_empty and not FAMILIES[family].zeroed:
    raise ValueError(
      f"model.zero_empty is for stable_diffusion_xl; a {family} model reads "
      "the states of the empty caption"
    )


def open(
  family: str,
  names: Any,
  ids: Mapping[str, Mapping[str, int]],
  *,
  train_text: bool,
  stored: bool = False,
  dtype: Any = jnp.float32,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, hub.Loaded]:
  """The networks of a model; the denoiser without its weights.

  Args:
    family: from `find`.
    names: a mapping of networks, as for `find`.
    ids: what `data.tokenize.ids` says of the tokenizer of each text tower; of
      the denoiser, fields of its config that data decide.
    train_text: the towers are trained, so that names need no weights.
    stored: the states of the towers are; none is opened.
    dtype: of the weights.
    mesh: on whose devices weights are made, see `hub.load`.

  Raises:
    ValueError: no such network, or no weights where they are needed.
  """
  row = FAMILIES[family]
  found = {}
  for name, kind in row.kinds.items():
    if name == row.denoiser:
      config = hub.config(names[name], kind)
      found[name] = hub.Loaded(dataclasses.replace(config, **ids.get(name, {})))
    elif name in row.text and stored:
      continue
    elif name in row.text:
      known = {
        field.name for field in dataclasses.fields(kinds.find(kind).config)
      }
      defaults = {k: v for k, v in ids[name].items() if k in known}
      found[name] = hub.open(
        names[name], kind, defaults, dtype=dtype, mesh=mesh
      )
      if found[name].params is None and not train_text:
        raise ValueError(
          f"model.{name}={names[name]!r} has no weights; name a row of "
          "models/published.py or a folder, or set latent_diffusion.train_text"
        )
    else:
      found[name] = hub.load(names[name], kind, dtype=dtype, mesh=mesh)
  return found


def zero(
  family: str, conditions: Conditions, where: Bool[Array, "B"]
) -> Conditions:
  """The conditions with zeros for those rows whose captions are left out."""
  rows = lambda x: where.reshape(-1, *[1] * (x.ndim - 1))
  return {
    name: jnp.where(rows(x), jnp.zeros_like(x), x)
    if name in FAMILIES[family].zeroed
    else x
    for name, x in conditions.items()
  }


def output(
  family: str,
  networks: Mapping[str, Any],
  xt: Float[Array, "B *dims C"],
  t: Num[Array, "B"],
  conditions: Conditions,
  places: Mapping[str, Array] | None = None,
) -> Float[Array, "B *dims O"]:
  """All that the denoiser gives for xt: the prediction, then a variance.

  Args:
    family: a key of `FAMILIES`.
    networks: its own.
    xt: latents [B H W C]; with `places` tokens [B T P C], of P values for each
      channel, some of them padding.
    t: timesteps.
    conditions: of the family.
    places: `positions` [B T 2] and `token_mask` [B T] of tokens, from
      tasks/padded.py, for transformers over patches.
  """
  denoiser = networks[FAMILIES[family].denoiser]
  if places is None:
    return denoiser(xt, t, **conditions)
  tokens = xt.reshape(*xt.shape[:2], -1)
  found = denoiser.on_tokens(
    tokens,
    places["positions"],
    t,
    **conditions,
    token_mask=places["token_mask"],
  )
  return found.reshape(*xt.shape[:-1], -1)


def predict(
  family: str,
  networks: Mapping[str, Any],
  xt: Float[Array, "B H W C"],
  t: Num[Array, "B"],
  conditions: Conditions,
) -> Float[Array, "B H W C"]:
  """What the denoiser predicts of xt, without the variance if it learns one."""
  found = output(family, networks, xt, t, conditions)
  return found[..., : xt.shape[-1]]


def prior(name: Any, vqgan: Any, clip: Any) -> Any:
  """The config of a prior by any of its names, for a VQGAN and a CLIP.

  Args:
    name: as of `hub.config`; fields need neither vocabulary nor condition.
    vqgan: its config.
    clip: its config.

  Raises:
    ValueError: a prior of other codes, or of other embeddings.
  """
  known = {"vocabulary": vqgan.codebook_size, "condition": clip.projection}
  fields = name if isinstance(name, str) else {**known, **name}
  found = hub.config(fields, "prior")
  for field, value in known.items():
    if getattr(found, field) != value:
      raise ValueError(
        f"model.prior has {field}={getattr(found, field)}, but "
        f"{'model.vqgan' if field == 'vocabulary' else 'model.clip'} has "
        f"{value}"
      )
  return found
