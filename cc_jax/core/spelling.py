# SPDX-License-Identifier: Apache-2.0
"""How files spell the names of our weights: the language of the name tables.

Import and export both walk our leaves and ask for their names, so a table
says ours -> theirs only:

  ("attn.q", "self_attn.q_proj")   whole path segments, wherever they occur,
                                   row after row
  ("blocks", "layers.{l}")         {l} is our stacked first axis L
  ("attn.k", "attn.qkv[1/3]")      the second third of a fused tensor
  ("up", "mlp.c_fc^T")             a matrix that lies transposed there, [I O]
  ("time", "layers.{*}.time")      one array here, an equal copy there in each
                                   of the layers that are "layers.{l}"
  ("text", "model", names)         what is under "text", by a table of its own

What holds for all models is not in tables: kernel, scale and embedding are
"weight" there, [I O] is [O I], and [H W I O] is [O I H W].
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any, NamedTuple

from cc_jax.core import safetensors_files

Names = Sequence[tuple[str, str] | tuple[str, str, Sequence]]
Tensors = Mapping[str, safetensors_files.Tensor]

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class Place(NamedTuple):
  """Where one of our leaves stands in their file."""

  name: str
  part: int = 0
  parts: int = 1
  stacked: bool = False
  transposed: bool = False
  copied: bool = False

  def spelled(self, layers: int) -> list[str]:
    """Its names, one a layer where it has several."""
    several = layers if self.stacked or self.copied else 1
    names = (self.name.replace("{l}", str(n)) for n in range(several))
    return [name.replace("{*}", str(n)) for n, name in enumerate(names)]


class Format(NamedTuple):
  """How the files of one origin spell the weights of a model.

  Attributes:
    names: the table.
    marker: a tensor that files of this origin have, and of no other.
    config: of such files, where they come without a config.json; or what makes
      it of their tensors by name, where their shapes tell.
    unused: how names begin of tensors that the model has no use for.
    keys: the way to the weights within a torch file, ("model", "ema"); or
      several ways, of which the first that is there is taken:
      (("state_dict_ema",), ("state_dict",)). Files without any of these are
      searched for the marker themselves.
  """

  names: Names
  marker: str
  config: Any = None
  unused: tuple[str, ...] = ()
  keys: tuple[str, ...] | tuple[tuple[str, ...], ...] = ()

  def ways(self) -> tuple[tuple[str, ...], ...]:
    """The ways in, the preferred first.

    >>> Format((), "w", keys=("model", "ema")).ways()
    (('model', 'ema'), ())
    """
    several = bool(self.keys) and not isinstance(self.keys[0], str)
    return (*(self.keys if several else (self.keys,)), ())


def place(path: str, names: Names) -> Place:
  """Translates one of our paths.

  >>> place("blocks.attn.q.kernel", [("blocks", "h.{l}"), ("q", "qkv[0/3]")])
  Place(name='h.{l}.attn.qkv.weight', part=0, parts=3, stacked=True, \
transposed=False, copied=False)
  """
  for ours, replacement, *inner in names:
    if inner and path.startswith(f"{ours}."):
      found = place(path.removeprefix(f"{ours}."), *inner)
      return found._replace(name=f"{replacement}.{found.name}")
  body, _, leaf = path.rpartition(".")
  theirs = ".".join(filter(None, (body, LEAVES.get(leaf, leaf))))
  for ours, replacement, *_ in names:
    pattern = rf"(?<![^.]){re.escape(ours)}(?![^.])"
    theirs = re.sub(pattern, lambda _, new=replacement: new, theirs)
  fused = re.search(r"\[(\d+)/(\d+)\]", theirs)
  part, parts = (int(fused[1]), int(fused[2])) if fused else (0, 1)
  if fused:
    theirs = theirs.replace(fused[0], "")
  transposed = "^T" in theirs
  theirs = theirs.replace("^T", "")
  stacked, copied = "{l}" in theirs, "{*}" in theirs
  return Place(theirs, part, parts, stacked, transposed, copied)


def places(
  flat: Mapping[str, Any], names: Names
) -> dict[str, tuple[Place, list[str]]]:
  """Where each leaf stands, and all its names there."""
  places = {path: place(path, names) for path in flat}
  depths = {
    where.name.partition("{l}")[0]: flat[path].shape[0]
    for path, where in places.items()
    if where.stacked
  }
  result = {}
  for path, where in places.items():
    ahead = re.split(r"{[l*]}", where.name)[0]
    result[path] = where, where.spelled(depths.get(ahead, 1))
  return result
