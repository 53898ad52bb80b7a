# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import transformers

from cc_jax.core import config_json, convert, tree, weight_files
from cc_jax.models import decoding, layers, lm, prior

TINY = prior.Config(
  vocabulary=61, width=24, depth=3, heads=3, positions=12, condition=20
)


def make(config):
  return prior.Prior(config, rngs=layers.keys(0))


@pytest.fixture(scope="module")
def random():
  structure, shapes = parity.abstract(lambda: make(TINY))
  params = parity.scramble(shapes)
  params["lm"]["token"]["embedding"] *= 8
  return tree.merge(structure, params), params


def inputs(rows, codes=TINY.positions - 1):
  rng = np.random.default_rng(2)
  condition = rng.standard_normal((rows, 20)).astype(np.float32)
  condition /= np.linalg.norm(condition, axis=1, keepdims=True)
  return condition, rng.integers(0, 61, (rows, codes), dtype=np.int32)


@jax.jit
def run(model, condition, codes):
  return model(condition, codes)


class Encoder(torch.nn.Module):
  """A block of HFAiLab's, with the mask that its files have."""

  def __init__(self):
    super().__init__()
    self.encoder = torch.nn.TransformerEncoderLayer(
      24, 3, 96, 0.1, "gelu", batch_first=True, norm_first=True
    )
    mask = torch.full((12, 12), -torch.inf).triu(1)
    self.register_buffer("mask", mask)


class HFAiLab(torch.nn.Module):
  """The prior of HFAiLab, by the names of its files."""

  def __init__(self):
    super().__init__()
    self.tok_emb = torch.nn.Embedding(61, 24)
    self.pos_emb = torch.nn.Parameter(torch.randn(1, 12, 24))
    self.cond_proj = torch.nn.Linear(20, 24)
    self.blocks = torch.nn.ModuleList(Encoder() for _ in range(3))
    self.norm = torch.nn.LayerNorm(24)
    self.head = torch.nn.Linear(24, 61)

  def forward(self, condition, codes):
    start = self.cond_proj(condition)[:, None]
    x = torch.cat([start, self.tok_emb(codes)], dim=1)
    x = x + self.pos_emb[:, : x.shape[1]]
    T = x.shape[1]
    for block in self.blocks:
      x = block.encoder(x, src_mask=block.mask[:T, :T])
    return self.head(self.norm(x))


@pytest.fixture(scope="module")
def hfailab():
  """Their model with random weights, and ours with the same."""
  torch.manual_seed(0)
  reference = HFAiLab().eval()
  with torch.no_grad():
    for weight in reference.parameters():
      weight.copy_(torch.randn_like(weight) * 0.3)
    # So that the next code depends on the condition and on the last ones.
    reference.cond_proj.weight *= 20
    reference.tok_emb.weight *= 20
  state = reference.state_dict()
  kept = torch.nn.ParameterDict()
  for name, array in state.items():
    if not name.startswith(prior.HFAILAB.unused):
      kept[name.replace(".", "/")] = array

  class Files:
    def state_dict(self):
      return {name.replace("/", "."): kept[name].detach() for name in kept}

  structure, shapes = parity.abstract(lambda: make(TINY))
  params = parity.adopt(Files(), shapes, prior.HFAILAB.names)
  return reference, tree.merge(structure, params)


def test_the_trunk_opens_as_gpt2_and_gives_the_same_states(random, tmp_path):
  model, params = random
  parity.save(tmp_path, params, TINY, prior.NAMES, prior.CONFIG, "model")
  trunk, report = transformers.GPT2Model.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert set(report.pop("unexpected_keys")) == {
    f"{layer}.{leaf}"
    for layer in ("cond_proj", "head")
    for leaf in ("weight", "bias")
  }
  assert not any(report.values()), report
  condition, codes = inputs(4)
  rest = {
    name: torch.from_numpy(tensor.read().copy())
    for name, tensor in weight_files.open_tensors(str(tmp_path)).items()
  }
  with torch.no_grad():
    start = torch.nn.functional.linear(
      torch.from_numpy(condition),
      rest["cond_proj.weight"],
      rest["cond_proj.bias"],
    )
    x = torch.cat([start[:, None], trunk.wte(torch.from_numpy(codes))], dim=1)
    states = trunk.eval()(inputs_embeds=x).last_hidden_state
    theirs = states @ rest["head.weight"].T + rest["head.bias"]
  parity.check(run(model, condition, codes), theirs, parity.MODEL)


def test_files_of_a_gpt2_become_the_trunk(random, tmp_path):
  _, params = random
  torch.manual_seed(0)
  settings = config_json.export_config(TINY, prior.CONFIG)
  trunk = transformers.GPT2Model(transformers.GPT2Config(**settings)).eval()
  state = {name: array.numpy() for name, array in trunk.state_dict().items()}
  rest = convert.export_weights(params, prior.NAMES)
  state |= {name: rest[name] for name in rest.keys() - state.keys()}
  weight_files.save_folder(str(tmp_path), state, settings, stem="model")
  config, model = parity.load(
    tmp_path, make, prior.Config, prior.NAMES, prior.CONFIG
  )
  assert config == TINY
  _, codes = inputs(3)
  with torch.no_grad():
    theirs = trunk(torch.from_numpy(codes)).last_hidden_state.numpy()
  logits = jax.jit(lambda m, c: m.lm(m.lm.embed(c)))(model, codes)
  expected = theirs @ rest["head.weight"].T + rest["head.bias"]
  parity.check(logits, expected, parity.MODEL)


def test_the_published_pickle_gives_the_same_logits(hfailab):
  reference, model = hfailab
  condition, codes = inputs(5)
  with torch.no_grad():
    theirs = reference(torch.from_numpy(condition), torch.from_numpy(codes))
  parity.check(run(model, condition, codes), theirs, parity.MODEL)


def test_the_masks_of_the_pickle_are_all_that_is_not_used():
  names = HFAiLab().state_dict()
  unused = {name for name in names if name.startswith(prior.HFAILAB.unused)}
  assert unused == {f"blocks.{layer}.mask" for layer in range(3)}
  assert prior.HFAILAB.marker in names


@functools.partial(jax.jit, static_argnames=("pick", "guidance"))
def sample(model, condition, key=None, *, pick=decoding.greedy, guidance=1.0):
  return prior.sample(model, condition, pick, key, guidance=guidance)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_likeliest_codes_are_those_of_the_whole_prefix_each_time(
  hfailab, guidance
):
  reference, model = hfailab
  condition, _ = inputs(40)
  codes = torch.zeros(40, 0, dtype=torch.long)
  given = torch.from_numpy(condition)
  with torch.no_grad():
    for _ in range(12):
      logits = reference(given, codes)[:, -1]
      if guidance != 1:
        none = reference(0 * given, codes)[:, -1]
        logits = none + guidance * (logits - none)
      codes = torch.cat([codes, logits.argmax(-1)[:, None]], dim=1)
  ours = np.asarray(sample(model, condition, guidance=guidance))
  np.testing.assert_array_equal(ours, codes.numpy())
  assert len(np.unique(ours, axis=0)) > 5


def test_drawn_codes_are_among_the_likeliest(random):
  model, _ = random
  condition, _ = inputs(16)
  pick = decoding.sampler(top_k=3)
  codes = np.asarray(sample(model, condition, jax.random.key(0), pick=pick))
  logits = np.asarray(run(model, condition, codes[:, :-1]))
  chosen = np.take_along_axis(logits, codes[..., None], axis=2)
  ranks = (logits > chosen).sum(axis=-1)
  assert ranks.max() == 2
  again = sample(model, condition, jax.random.key(1), pick=pick)
  assert (codes != np.asarray(again)).any()


@pytest.mark.parametrize(
  ("config", "count"),
  [(prior.MEDIUM, 336_669_696), (prior.LARGE, 751_334_144)],
  ids=["MEDIUM", "LARGE"],
)
def test_presets_have_the_published_number_of_weights(config, count):
  _, shapes = parity.abstract(lambda: make(config))
  assert tree.count(shapes) == count


def test_recomputing_blocks_changes_no_gradient(random):
  _, params = random
  condition, codes = map(jnp.asarray, inputs(2))

  def gradients(remat):
    structure, _ = parity.abstract(
      lambda: prior.Prior(TINY, remat=remat, rngs=layers.keys(0))
    )
    return jax.jit(
      jax.grad(
        lambda p: tree.merge(structure, p)(condition, codes).std(),
      )
    )(params)

  # Biases of keys have none, but for rounding.
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    gradients("full"),
    gradients("none"),
  )


def test_the_computation_is_in_the_type_asked_for(random):
  structure, _ = parity.abstract(
    lambda: prior.Prior(TINY, dtype=jnp.bfloat16, rngs=layers.keys(0))
  )
  model = tree.merge(structure, random[1])
  condition, codes = inputs(2)
  assert run(model, condition, codes).dtype == jnp.bfloat16


def test_more_codes_than_an_image_has_are_refused(random):
  condition, codes = inputs(2, codes=12)
  with pytest.raises(ValueError, match="13 tokens are too many"):
    run(random[0], condition, codes)


def test_a_width_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match="width=24 does not divide over 5 heads"):
    dataclasses.replace(TINY, heads=5)


def test_a_cache_has_one_place_for_each_code():
  cache = jax.eval_shape(
    lambda: lm.empty_cache(prior.MEDIUM, 2, 256, jnp.bfloat16)
  )
  assert cache.k.shape == (24, 2, 256, 16, 64)


def test_dropout_is_where_torch_s_layers_have_it(hfailab, monkeypatch):
  """With halves in place of zeros, which both sides can do alike."""

  class Half(torch.nn.Module):
    def forward(self, x):
      return x / 2

  reference, model = copy.deepcopy(hfailab[0]), hfailab[1]
  for block in reference.blocks:
    for name in ("dropout", "dropout1", "dropout2"):
      setattr(block.encoder, name, Half())
  # So that torch takes the way through its modules, but for attention.
  reference.train()
  for block in reference.blocks:
    block.encoder.self_attn.eval()
  monkeypatch.setattr(prior, "drop", lambda x, share, key: x / 2)
  condition, codes = inputs(3)
  with torch.no_grad():
    theirs = reference(torch.from_numpy(condition), torch.from_numpy(codes))
  rows = jnp.asarray(condition), jnp.asarray(codes)
  ours = model(*rows, dropout=0.5, key=jax.random.key(0))
  parity.check(ours, theirs, parity.MODEL)
  whole = run(model, condition, codes)
  assert np.abs(np.asarray(ours) - np.asarray(whole)).max() > 0.1


def test_what_is_dropped_is_drawn_place_by_place():
  """Bits are fair, and neighbours and other keys have nothing to do with it."""
  keys = jax.random.split(jax.random.key(3))
  one, other = (
    np.asarray(prior.scattered(key, (64, 32, 50))) / 2**32 for key in keys
  )
  assert len(np.unique(one)) > 0.999 * one.size
  count, error = np.histogram(one, 16, (0, 1))[0], one.size**-0.5
  expected = one.size / 16
  # 15 degrees of freedom: more than 44.3 once in 10,000.
  assert np.sum((count - expected) ** 2 / expected) < 44.3
  pairs = [(one[:-1], one[1:]), (one[:, :-1], one[:, 1:])]
  pairs += [(one[..., :-1], one[..., 1:]), (one, other)]
  for a, b in pairs:
    found = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert abs(found) < 5 * error
  bits = (
    np.asarray(prior.scattered(keys[0], (20_000,)))[:, None]
  ) >> np.arange(32)
  assert np.all(np.abs(np.mean(bits & 1, axis=0) - 0.5) < 5 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_what_is_dropped_of_rows_and_columns_that_cross_is_independent(share):
  """Of four places at two rows and two columns three say nothing of the last.

  They would, if the words of rows and columns were only joined by exclusive or.
  """
  found = np.asarray(prior.scattered(jax.random.key(5), (2000, 1000))) / 2**32
  dropped = ((found < share) - share) / (share * (1 - share)) ** 0.5
  error = dropped.size**-0.5
  for step in (1, 3):
    a, b = dropped[step:], dropped[:-step]
    crossed = a[:, step:] * a[:, :-step] * b[:, step:] * b[:, :-step]
    three = a[:, step:] * a[:, :-step] * b[:, step:]
    assert abs(np.mean(crossed)) < 5 * error
    assert abs(np.mean(three)) < 5 * error


def test_dropout_drops_a_share_and_keeps_the_mean(random):
  x = jnp.ones((200, 300))
  found = prior.drop(x, jnp.float32(0.3), jax.random.key(0))
  assert np.mean(found == 0) == pytest.approx(0.3, abs=0.01)
  assert np.mean(found) == pytest.approx(1, abs=0.02)
  model, _ = random
  rows = [jnp.asarray(x) for x in inputs(2)]
  one, other = (
    model(*rows, dropout=0.3, key=jax.random.key(seed)) for seed in (0, 1)
  )
  assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3
