# SPDX-License-Identifier: Apache-2.0
"""The kernels for TPU, step by step on this device, beside XLA's attention.

And what cuDNN is asked for on a GPU, which is not here.
"""

import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from cc_jax.core import flops, sharding
from cc_jax.models import attention, attention_blocks, layers


def drawn(tokens, sources, heads, size, dtype=jnp.float32):
  """Queries, keys, values, and a cotangent of the result."""
  rng = np.random.default_rng(tokens + sources)
  lengths = (tokens, sources, sources, tokens)
  return [
    jnp.asarray(rng.standard_normal((2, length, heads, size)), dtype)
    for length in lengths
  ]


def results(f, q, k, v, cotangent):
  out, backward = jax.vjp(f, q, k, v)
  return out, *backward(cotangent)


def kernel(q, k, v, mask=None, causal=False):
  scale = q.shape[-1] ** -0.5
  return attention.by_columns(q, k, v, mask, causal, scale, interpret=True)


def check_hiding(ours, arrays, mask, causal):
  """Our attention and gradients beside XLA's, with some keys hidden."""
  given = lambda f, **options: lambda q, k, v: f(q, k, v, mask, **options)
  expected = results(given(attention.attention, causal=causal), *arrays)
  found = results(given(ours, causal=causal), *arrays)
  for one, other in zip(found, expected, strict=True):
    parity.check(one, other, parity.LAYER)


@pytest.mark.parametrize(
  ("tokens", "sources", "heads", "size"),
  [
    (512, 512, 2, 64),
    (64, 77, 4, 8),
    (256, 256, 2, 72),
    (16, 16, 1, 8),
    (640, 600, 1, 8),
    (1536, 1536, 1, 72),
  ],
)
def test_the_kernel_and_its_gradients_are_those_of_xla(
  tokens, sources, heads, size
):
  arrays = drawn(tokens, sources, heads, size)
  assert attention_blocks.fits(tokens, heads * size, heads)
  expected = results(attention.attention, *arrays)
  for ours, theirs in zip(results(kernel, *arrays), expected, strict=True):
    parity.check(ours, theirs, parity.LAYER)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_heads_queries_and_keys_sum_up(causal, monkeypatch):
  monkeypatch.setattr(attention_blocks, "AREA", 128 * 16)
  monkeypatch.setattr(attention_blocks, "PIECES", 2)
  monkeypatch.setattr(attention_blocks, "SUMMED", 128 * 8)
  arrays = drawn(512, 640, 4, 8)
  assert attention_blocks.cut(32, 512, 640, 4, 4) == (8, 1, 128, 128, 4)
  mask = jnp.arange(640) < jnp.array([[300], [17]])
  check_hiding(kernel, arrays, mask, causal)


def test_a_block_of_which_all_keys_are_hidden_adds_nothing():
  arrays = drawn(128, 1536, 1, 8)
  assert attention_blocks.cut(8, 128, 1536, 1, 4).keys == 768
  mask = np.arange(1536) >= np.array([[0], [1300]])
  check_hiding(kernel, arrays, jnp.asarray(mask), False)


def test_several_heads_and_pieces_are_one_program(monkeypatch):
  monkeypatch.setattr(attention_blocks, "PIECE", 128)
  arrays = drawn(256, 256, 4, 8)
  assert attention_blocks.cut(32, 256, 256, 4, 4) == (8, 4, 256, 256, 1)
  check_hiding(kernel, arrays, None, True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "sources"), [(512, 512), (64, 120)])
def test_the_kernel_hides_the_keys_that_xla_hides(tokens, sources, causal):
  arrays = drawn(tokens, sources, 2, 16)
  check_hiding(kernel, arrays, None, causal)
  mask = np.random.default_rng(1).random((2, sources)) < 0.5
  mask[:, 0] = True  # Or a causal row could be without any key.
  check_hiding(kernel, arrays, jnp.asarray(mask), causal)


def test_the_kernel_in_bfloat16_errs_no_more_than_xla():
  arrays = drawn(64, 77, 2, 16)
  short = [x.astype(jnp.bfloat16) for x in arrays]
  exact = results(attention.attention, *(x.astype(jnp.float32) for x in short))
  plain = results(attention.attention, *short)
  for ours, theirs, truth in zip(
    results(kernel, *short), plain, exact, strict=True
  ):
    assert ours.dtype == jnp.bfloat16
    error, bound = (
      float(jnp.abs(x.astype(jnp.float32) - truth).max())
      for x in (ours, theirs)
    )
    assert error <= 1.5 * bound


def test_shapes_that_do_not_fit_are_refused():
  assert attention_blocks.fits(4096, 320, 5)
  assert not attention_blocks.fits(1000, 320, 5)  # No whole blocks.
  assert not attention_blocks.fits(25, 320, 5)
  assert not attention_blocks.fits(64, 60, 5)  # Heads of 12 channels.


def test_on_a_tpu_the_kernel_is_chosen_by_length(monkeypatch):
  called = []
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  monkeypatch.setattr(
    attention, "by_columns", lambda q, *_: called.append(q.shape[1]) or q
  )
  for tokens, sources in ((1024, 1024), (64, 77), (25, 77)):
    attention.attention(*drawn(tokens, sources, 2, 8)[:3])
  assert called == [1024, 64]
  q, k, v, _ = drawn(64, 77, 5, 8)
  attention.attention(q, k, v, jnp.ones((1, 77), bool))
  assert len(called) == 3
  attention.attention(q, k, v, jnp.ones((1, 64, 77), bool))
  attention.attention(q, k, v, bias=jnp.ones((1, 5, 64, 77)))
  with attention.using("einsum"):
    attention.attention(q, k, v)
  assert len(called) == 3
  with pytest.raises(ValueError, match="unknown attention 'flash'"):
    with attention.using("flash"):
      pass


@pytest.fixture
def nvidia(monkeypatch):
  """Traces are for a GPU that is not here, and for cuDNN 9.10."""
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  monkeypatch.setattr(attention, "_is_nvidia", lambda: True)
  monkeypatch.setattr(
    fused_attention_stablehlo, "check_cudnn_version", lambda: 91000
  )


def lowered(*arrays, **options):
  """Attention and its gradients, as a program for CUDA."""
  f = lambda q, k, v: attention.attention(q, k, v, **options).astype(float)
  slopes = jax.grad(lambda *args: f(*args).sum(), argnums=(0, 1, 2))
  return jax.jit(slopes).trace(*arrays).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("tokens", [64, 77])
@pytest.mark.parametrize("sources", [77, 78])
def test_on_a_gpu_cudnn_attends_in_16_bits(tokens, sources, nvidia):
  arrays = drawn(tokens, sources, 2, 40, jnp.bfloat16)[:3]
  mask = jnp.ones((1, sources), bool)
  for options, kind in (
    ({}, "Softmax"),
    ({"causal": True}, "Softmax"),
    ({"mask": mask}, "ScaleBiasSoftmax"),
  ):
    program = lowered(*arrays, **options).as_text()
    for name in (f"__cudnn$fmha{kind}", f"__cudnn$fmha{kind}Backward"):
      assert program.count(f"@{name}(") == 1, options


@pytest.mark.parametrize("tokens", [64, 77])
@pytest.mark.parametrize("sources", [77, 78])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_what_cudnn_is_asked_for_is_attention(
  tokens, sources, causal, hidden, monkeypatch
):
  asked = jax.nn.dot_product_attention
  monkeypatch.setattr(
    jax.nn,
    "dot_product_attention",
    lambda *args, implementation=None, **options: asked(*args, **options),
  )
  arrays = drawn(tokens, sources, 2, 8)
  # Of rows that see nothing cuDNN makes something else.
  mask = np.arange(sources) % 5 != 1 if hidden else np.ones(sources, bool)
  mask = jnp.asarray(mask)[None].repeat(2, 0)

  def ours(q, k, v, mask, causal=False):
    scale = q.shape[-1] ** -0.5
    return attention.by_cudnn(q, k, v, mask if hidden else None, causal, scale)

  check_hiding(ours, arrays, mask, causal)


def test_on_a_gpu_xla_attends_where_cudnn_cannot(nvidia, monkeypatch):
  arrays = drawn(64, 64, 2, 40, jnp.bfloat16)[:3]
  programs = [
    lowered(*arrays, mask=jnp.ones((1, 64, 64), bool)),
    lowered(*arrays, bias=jnp.ones((1, 2, 64, 64), jnp.bfloat16)),
    lowered(*drawn(64, 64, 2, 40)[:3]),
    lowered(*drawn(1, 64, 2, 40, jnp.bfloat16)[:3]),
    lowered(*drawn(64, 64, 2, 36, jnp.bfloat16)[:3]),
    lowered(*drawn(64, 64, 2, 512, jnp.bfloat16)[:3]),
  ]
  with attention.using("einsum"):
    programs.append(lowered(*arrays))
  monkeypatch.setattr(attention, "_is_nvidia", lambda: False)
  programs.append(lowered(*arrays))
  assert not any("cudnn" in program.as_text() for program in programs)


def test_cudnns_products_are_counted_as_those_of_einsum(nvidia):
  arrays = drawn(64, 78, 2, 40, jnp.bfloat16)[:3]
  forward = lambda *args: attention.attention(*args)
  slopes = jax.grad(lambda *args: forward(*args).sum(), argnums=(0, 1, 2))
  for f in (forward, slopes):
    found = flops.count(lambda *args, f=f: f(*args), *arrays)
    with attention.using("einsum"):
      assert found == flops.count(lambda *args, f=f: f(*args), *arrays) > 0


def test_a_kernel_runs_on_each_devices_rows_and_heads():
  arrays = [jnp.concatenate([x, x]) for x in drawn(8, 8, 4, 8)[:3]]  # B = 4.
  shapes = []

  mask = jnp.arange(8) < jnp.array([[3], [8], [5], [1]])

  def run(q, k, v, mask, scale):
    shapes.append((q.shape, mask.shape))
    return attention.attention(q, k, v, mask, scale=scale)

  with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
    split = sharding.by_head(4, 4, run)
    ours = jax.jit(lambda *arrays: split(*arrays, 0.5))(*arrays, mask)
    assert sharding.by_head(3, 4, run) is None
    assert sharding.by_head(4, 3, run) is None
  assert shapes == [((1, 8, 2, 8), (1, 8))]
  expected = attention.attention(*arrays, mask, scale=0.5)
  parity.check(ours, expected, parity.LAYER)


def test_remat_keeps_what_the_kernel_gives_where_it_is_asked_to():
  q, k, v, _ = drawn(16, 16, 1, 8)

  def kept(remat):
    run = layers.checkpointed(lambda q: kernel(q, k, v), remat)
    return [leaf.shape for leaf in jax.tree.leaves(jax.vjp(run, q)[1])]

  logs = (2, 1, 1, 16)  # Of which nothing outside reads.
  assert logs in kept("attention")
  assert logs not in kept("full")


@pytest.mark.parametrize("hidden", [None, "keys", "all", "pairs"])
def test_sums_that_divide_last_give_what_xla_gives(hidden):
  arrays = drawn(24, 20, 2, 8)
  mask = None
  if hidden == "pairs":
    mask = np.random.default_rng(0).random((2, 24, 20)) < 0.7
  elif hidden:
    mask = np.ones((2, 20), bool)
    mask[:, 13 if hidden == "keys" else 0 :] = False
  mask = None if mask is None else jnp.asarray(mask)
  given = lambda q, k, v: attention.attention(q, k, v, mask)
  found = results(given, *arrays)
  with attention.using("einsum"):
    expected = results(given, *arrays)
  for one, other in zip(found, expected, strict=True):
    parity.check(one, other, parity.LAYER)


def test_large_products_do_not_overflow():
  q, k, v, _ = drawn(8, 8, 1, 8)
  found = attention.attention(100 * q, 100 * k, v)
  with attention.using("einsum"):
    expected = attention.attention(100 * q, 100 * k, v)
  parity.check(found, expected, parity.LAYER)
