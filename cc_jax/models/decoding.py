# SPDX-License-Identifier: Apache-2.0
"""How texts are written with a model that gives logits: greedily, at random or
by beams.

A model is a function `step(tokens [B], cache) -> (logits [B V], cache)` and the
logits after the prompt; `lm.LM.step` is one. Shapes are static and loops are
XLA's, so all of it runs under one `jax.jit`; rows that have ended wait for the
others. Beam search is that of transformers' `generate`, token by token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

Step = Callable[[Array, Any], tuple[Array, Any]]
Pick = Callable[[Array, Any], Array]

# As good as minus infinity for a sum of log-probabilities, and still a number.
NEVER = -1e9


def greedy(
  logits: Float[Array, "B V"], key: Key[Array, ""] | None = None
) -> Int[Array, " B"]:
  """The likeliest token of each row."""
  del key
  return jnp.argmax(logits, axis=-1)


def sampler(
  temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Pick:
  """A function (logits, key) -> tokens that draws from the likelier tokens.

  Args:
    temperature: by which logits are divided first.
    top_k: how many tokens are drawn from.
    top_p: the least probability that those drawn from have together ("The
      Curious Case of Neural Text Degeneration", arXiv 1904.09751, §3.1), among
      those that `top_k` leaves.

  Raises:
    ValueError: a value that leaves nothing to draw from.
  """
  if (
    temperature <= 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1)
  ):
    raise ValueError(
      f"cannot sample with temperature={temperature}, top_k={top_k}, "
      f"top_p={top_p}; expected temperature > 0, top_k >= 1 and 0 < top_p <= 1 "
      "(decoding.greedy takes the likeliest)"
    )

  def pick(
    logits: Float[Array, "B V"], key: Key[Array, ""]
  ) -> Int[Array, " B"]:
    logits = logits.astype(jnp.float32) / temperature
    V = logits.shape[-1]
    values, tokens = jax.lax.top_k(logits, min(top_k or V, V))
    p = jax.nn.softmax(values)
    above = jnp.cumsum(p, axis=-1) - p
    values = jnp.where(above < top_p, values, -jnp.inf)
    place = jax.random.categorical(key, values)
    return jnp.take_along_axis(tokens, place[:, None], axis=1)[:, 0]

  return pick


def generate(
  step: Step,
  logits: Float[Array, "B V"],
  cache: Any,
  pick: Pick = greedy,
  *,
  length: int,
  key: Key[Array, ""] | None = None,
  eos: int | None = None,
  pad: int = 0,
  min_length: int = 0,
) -> Int[Array, "B length"]:
  """Writes one token after another, each picked by the logits of its place.

  Args:
    step: the model.
    logits: after the prompt.
    cache: of the prompt, with room for `length` - 1 tokens more.
    pick: `greedy`, or what `sampler` gives.
    length: largest number of tokens.
    key: for a `pick` that draws.
    eos: the token that ends a row.
    pad: what follows it.
    min_length: tokens that a row has at least, before its end.

  Returns:
    Tokens, with `eos` where a row ends earlier, and `pad` after that.
  """

  def choose(logits, done, i):
    logits = _not_yet(logits, i < min_length, eos)
    tokens = pick(logits, None if key is None else jax.random.fold_in(key, i))
    tokens = jnp.where(done, pad, tokens).astype(jnp.int32)
    return tokens, done if eos is None else done | (tokens == eos)

  def body(state):
    i, tokens, done, cache, result = state
    logits, cache = step(tokens, cache)
    tokens, done = choose(logits, done, i)
    return i + 1, tokens, done, cache, result.at[:, i].set(tokens)

  B = logits.shape[0]
  tokens, done = choose(logits, jnp.zeros(B, bool), 0)
  result = jnp.full((B, length), pad, jnp.int32).at[:, 0].set(tokens)
  return jax.lax.while_loop(
    lambda state: (state[0] < length) & ~jnp.all(state[2]),
    body,
    (jnp.int32(1), tokens, done, cache, result),
  )[-1]


def _not_yet(
  scores: Float[Array, "... V"], early: Any, eos: int | None
) -> Float[Array, "... V"]:
  """No end while it is too early for one."""
  if eos is None:
    return scores
  return jnp.where(
    early & (jnp.arange(scores.shape[-1]) == eos), -jnp.inf, scores
  )


class Beams(NamedTuple):
  """The state of a beam search: N running and N finished texts for each row.

  Attributes:
    i: number of tokens in a running text.
    tokens: of running texts, the likeliest first.
    scores: sums of their log-probabilities.
    rows: of the cache, which the last token of each text follows.
    ended: finished texts, the best first.
    ended_scores: their scores; `NEVER` for places that are not taken.
    taken: places that hold a finished text.
    improvable: whether a running text of the row may still beat a finished one.
    stuck: whether no running text can go on.
  """

  i: Int[Array, ""]
  tokens: Int[Array, "B N T"]
  scores: Float[Array, "B N"]
  rows: Int[Array, "B N"]
  ended: Int[Array, "B N T"]
  ended_scores: Float[Array, "B N"]
  taken: Bool[Array, "B N"]
  improvable: Bool[Array, " B"]
  stuck: Bool[Array, ""]


def beam_search(
  step: Step,
  logits: Float[Array, "B V"],
  cache: Any,
  select: Callable[[Any, Array], Any],
  *,
  beams: int,
  length: int,
  eos: int | None,
  pad: int = 0,
  length_penalty: float = 1.0,
  early_stopping: bool = False,
  min_length: int = 0,
) -> tuple[Int[Array, "B length"], Float[Array, " B"]]:
  """The best of the texts that keeping the N likeliest beginnings finds.

  A text that ends, or has all its tokens, is finished, if it is among the N
  likeliest then, with its log-probability / tokens^length_penalty for a score.

  Args:
    step: the model, for B * `beams` rows.
    logits: after the prompt.
    cache: of the prompt, B rows with room for `length` - 1 tokens more.
    select: gives the cache of rows by their numbers, as `lm.select`.
    beams: N.
    length: largest number of tokens.
    eos: the token that ends a text.
    pad: what follows it.
    length_penalty: above 0 favours long texts, below 0 short ones.
    early_stopping: a row is done when N texts have ended; else when none that
      runs would, ending now, have a better score than the worst of N.
    min_length: tokens that a text has at least, before its end.

  Returns:
    The best text of each row, with `eos` where it ends earlier and `pad` after
    that, and its score.

  Raises:
    ValueError: fewer tokens to choose from than the beams need.
  """
  B, V = logits.shape
  if 2 * beams > V:
    raise ValueError(
      f"{beams} beams need {2 * beams} tokens to choose from; expected at most "
      f"{V // 2} for a vocabulary of {V}"
    )
  # In float64, as Python's powers are.
  lengths = np.arange(1, length + 1, dtype=np.float64) ** length_penalty
  lengths = jnp.asarray(lengths, jnp.float32)

  def advance(state: Beams, logits: Float[Array, "B N V"]) -> Beams:
    i = state.i
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    scores = _not_yet(scores, i < min_length, eos) + state.scores[..., None]
    # Twice as many as run on, since half of them may end.
    scores, places = jax.lax.top_k(scores.reshape(B, -1), 2 * beams)
    parents, last = places // V, (places % V).astype(jnp.int32)
    tokens = _take(state.tokens, parents).at[:, :, i].set(last)
    ends = jnp.broadcast_to(i + 1 == length, last.shape)
    if eos is not None:
      ends = ends | (last == eos)

    running, best = jax.lax.top_k(scores + ends * NEVER, beams)
    rows = jnp.arange(B)[:, None] * beams + _take(parents, best)

    # What ends behind the N likeliest does not count.
    ends_well = ends & (jnp.arange(2 * beams) < beams)
    full = jnp.all(state.taken, axis=1) & early_stopping
    closed = (full | ~state.improvable)[:, None]
    final = scores / lengths[i] + closed * NEVER + ~ends_well * NEVER
    pool = jnp.concatenate([state.ended_scores, final], axis=1)
    ended_scores, kept = jax.lax.top_k(pool, beams)
    ended = _take(jnp.concatenate([state.ended, tokens], axis=1), kept)
    taken = _take(jnp.concatenate([state.taken, ends_well], axis=1), kept)

    hope = running[:, 0] / lengths[i]
    worst = jnp.where(taken, ended_scores[:, -1:], NEVER)
    return Beams(
      i=i + 1,
      tokens=_take(tokens, best),
      scores=running,
      rows=rows,
      ended=ended,
      ended_scores=ended_scores,
      taken=taken,
      improvable=state.improvable & jnp.any(hope[:, None] > worst, axis=1),
      stuck=jnp.all(ends),
    )

  def unfinished(carry):
    state, _ = carry
    full = jnp.all(state.taken) & early_stopping
    return jnp.any(state.improvable) & ~full & ~state.stuck

  def body(carry):
    state, cache = carry
    cache = select(cache, state.rows.reshape(-1))
    last = jax.lax.dynamic_index_in_dim(state.tokens, state.i - 1, 2, False)
    logits, cache = step(last.reshape(-1), cache)
    return advance(state, logits.reshape(B, beams, V)), cache

  empty = jnp.full((B, beams, length), pad, jnp.int32)
  state = Beams(
    i=jnp.int32(0),
    tokens=empty,
    # One beginning, so that the beams will not be all the same.
    scores=jnp.full((B, beams), NEVER).at[:, 0].set(0.0),
    rows=jnp.zeros((B, beams), jnp.int32),
    ended=empty,
    ended_scores=jnp.full((B, beams), NEVER),
    taken=jnp.zeros((B, beams), bool),
    improvable=jnp.ones(B, bool),
    stuck=jnp.array(False),
  )
  first = jnp.broadcast_to(logits[:, None], (B, beams, V))
  state = advance(state, first)
  cache = select(cache, jnp.repeat(jnp.arange(B), beams))
  state, _ = jax.lax.while_loop(unfinished, body, (state, cache))
  return state.ended[:, 0], state.ended_scores[:, 0]


def _take(x: Array, places: Int[Array, "B N"]) -> Array:
  """Texts of each row, by their places on the second axis."""
  return jnp.take_along_axis(
    x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1
  )
