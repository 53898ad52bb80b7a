# SPDX-License-Identifier: Apache-2.0
"""The U-Net's output is zero at first, so first losses have closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toys

from cc_jax.core import tree
from cc_jax.data import tokenize
from cc_jax.diffusion import schedule as schedules
from cc_jax.tasks import conditioning, latent_diffusion
from cc_jax.tasks import task as tasks

# So many rows that a mean over them is within a percent or so.
B, T, SIDE = 128, 8, 8
MEAN, STD, FACTOR = 1.5, 0.5, 0.5
# Of scaled latents: (mean^2 + std^2) factor^2.
POWER = (MEAN**2 + STD**2) * FACTOR**2
SMALL = dict(
  channels=(8,),
  attention=(True,),
  layers_per_block=1,
  heads=2,
  source_width=16,
  groups=4,
)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  return tiny.shared(tmp_path_factory)


def make(data, **fields):
  fields = {"latent_diffusion__stratified": True, **fields}
  return tasks.make(tiny.config(data, data, model__unet=SMALL, **fields))


@pytest.fixture(scope="module")
def batch():
  shape = (B, SIDE, SIDE, 4)
  sign = np.where(np.arange(B) % 2, 1.0, -1.0)[:, None, None, None]
  return {
    "latent_mean": jnp.asarray(np.broadcast_to(MEAN * sign, shape), "bfloat16"),
    "latent_std": jnp.full(shape, STD, "bfloat16"),
    "tokens": jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1)),
  }


def first_loss(task, batch):
  params = jax.jit(task.init)(jax.random.key(0))
  loss, metrics = jax.jit(task.loss)(params, batch, jax.random.key(1))
  return float(loss), float(metrics["mse"])


def schedule(**fields):
  fields = (
    dict(kind="scaled_linear", beta_start=0.00085, beta_end=0.012, steps=1000)
    | fields
  )
  return schedules.Schedule(**fields)


def test_the_first_loss_of_eps_is_its_variance(data, batch):
  loss, mse = first_loss(make(data), batch)
  assert loss == mse == pytest.approx(1, abs=0.03)


def test_the_first_loss_of_x0_is_the_power_of_scaled_latents(data, batch):
  # Scaled twice it would be a quarter of this, not at all four times.
  loss, mse = first_loss(make(data, model__prediction="x0"), batch)
  assert loss == mse == pytest.approx(POWER, rel=0.03)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_first_loss_of_v_mixes_both(data, batch, zero_snr):
  fields = dict(model__prediction="v", model__schedule__zero_snr=zero_snr)
  made = schedule(zero_snr=zero_snr)
  wanted = np.mean(made.alpha**2 + made.sigma**2 * POWER)
  loss, _ = first_loss(make(data, **fields), batch)
  assert loss == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weighs_the_squared_errors(data, batch, prediction):
  gamma, made = 5.0, schedule()
  fields = dict(
    model__prediction=prediction, latent_diffusion__min_snr_gamma=gamma
  )
  snr = made.alpha**2 / made.sigma**2
  error, per = {
    "eps": (1.0, snr),
    "v": (made.alpha**2 + made.sigma**2 * POWER, snr + 1),
    "x0": (POWER, 1.0),
  }[prediction]
  wanted = np.mean(np.minimum(snr, gamma) / per * error)
  loss, mse = first_loss(make(data, **fields), batch)
  assert loss == pytest.approx(wanted, rel=0.04)
  assert mse == pytest.approx(np.mean(error), rel=0.03)


def test_offset_noise_adds_its_variance(data, batch):
  # 512 constants of standard deviation 2: their power is within 13 percent.
  loss, _ = first_loss(make(data, latent_diffusion__offset_noise=2.0), batch)
  assert loss == pytest.approx(5, rel=0.15)


def test_eps_with_no_signal_at_the_end_is_refused(data):
  with pytest.raises(ValueError, match="use prediction='v'"):
    make(data, model__schedule__zero_snr=True)


@pytest.mark.parametrize(
  ("field", "value"),
  [("drop_caption", -0.1), ("drop_caption", 1.1), ("offset_noise", -1.0)],
)
def test_shares_and_strengths_out_of_range_are_refused(data, field, value):
  with pytest.raises(ValueError, match=f"{field}={value}"):
    make(data, **{f"latent_diffusion__{field}": value})


def test_a_text_tower_without_weights_must_be_trained(data):
  with pytest.raises(ValueError, match=r"has no weights; .*train_text"):
    make(data, latent_diffusion__train_text=False)


def test_dropped_captions_are_replaced_by_the_empty_one():
  empty = np.arange(5, dtype=np.int32)
  tokens = jnp.arange(100, 140, dtype=jnp.int32).reshape(8, 5)
  dropped = jnp.arange(8) % 3 == 0
  out = conditioning.drop(tokens, empty, dropped)
  assert (np.asarray(out)[dropped] == empty).all()
  np.testing.assert_array_equal(out[~dropped], tokens[~dropped])


def trained(task, key=3):
  """Weights as after some training: none of them zero."""
  params = jax.jit(task.init)(jax.random.key(0))
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(key), len(leaves))
  moved = [
    leaf + 0.05 * jax.random.normal(k, leaf.shape)
    for leaf, k in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(structure, moved)


def test_a_dropped_caption_is_the_empty_captions_tokens(data, batch):
  tokenizer = tokenize.load(f"{data}/tokenizer")
  empty, _ = tokenize.encode(tokenizer, [""], T)
  tokens, _ = tokenize.encode(tokenizer, ["a photo of red"], T)
  rows = {name: value[:8] for name, value in batch.items()}
  task = make(data, latent_diffusion__drop_caption=1.0)
  params, loss = trained(task), jax.jit(task.loss)

  def at(ids):
    ids = jnp.tile(jnp.asarray(ids), (8, 1))
    return float(loss(params, rows | {"tokens": ids}, jax.random.key(1))[0])

  kept = make(data, latent_diffusion__drop_caption=0.0)
  keeps = jax.jit(kept.loss)
  whole = rows | {"tokens": jnp.tile(jnp.asarray(tokens), (8, 1))}
  assert at(tokens) == at(empty)
  assert at(tokens) != float(keeps(params, whole, jax.random.key(1))[0])


def test_a_latent_is_drawn_from_what_the_encoder_gave(batch):
  z = latent_diffusion.sample_latent(batch, jax.random.key(0))
  assert z.dtype == jnp.float32
  rest = np.asarray(z) - np.asarray(batch["latent_mean"], np.float32)
  assert rest.mean() == pytest.approx(0, abs=0.02)
  assert rest.std() == pytest.approx(STD, rel=0.02)


def test_without_a_deviation_a_latent_is_its_mean(data, batch):
  task = make(data, encode__std=False)
  assert "latent_std" not in task.features
  batch = {name: x for name, x in batch.items() if name != "latent_std"}
  z = latent_diffusion.sample_latent(batch, jax.random.key(0))
  np.testing.assert_array_equal(z, batch["latent_mean"].astype(jnp.float32))
  assert np.isfinite(first_loss(task, batch)[0])


def gradient(data, rows, **fields):
  """(loss, gradients) of one batch at weights that are the same each time."""
  task = make(data, **fields)
  params = trained(task)
  found = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
  (loss, _), grads = found(params, rows, jax.random.key(1))
  return float(loss), grads


@pytest.fixture(scope="module")
def plain(data, batch):
  rows = {name: value[:8] for name, value in batch.items()}
  return rows, gradient(data, rows)


@pytest.mark.parametrize(
  "remat",
  [
    "attention",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("dots", "full")),
  ],
)
def test_remat_changes_no_loss_and_no_gradient(data, plain, remat):
  rows, (loss, grads) = plain
  found, found_grads = gradient(data, rows, train__remat=remat)
  assert found == pytest.approx(loss, rel=1e-6)
  assert tiny.largest_difference(found_grads, grads) < 1e-5


def test_bfloat16_computes_near_float32_and_keeps_float32_weights(data, plain):
  rows, (loss, grads) = plain
  found, found_grads = gradient(data, rows, train__dtype="bfloat16")
  assert np.isfinite(found)
  assert found == pytest.approx(loss, rel=0.02)
  types = {g.dtype for g in jax.tree.leaves(found_grads)}
  assert types == {np.dtype(np.float32)}
  exact, rounded = tree.flatten(grads), tree.flatten(found_grads)
  flat = lambda grads: np.concatenate([np.ravel(g) for g in grads.values()])
  a, b = flat(exact), flat(rounded)
  assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


@pytest.fixture
def xl(data, batch, tmp_path):
  """SDXL's task, its weights, and 8 rows with sizes."""
  size = jnp.tile(jnp.array([[300, 400]], jnp.int32), (8, 1))
  rows = {name: value[:8] for name, value in batch.items()}
  rows |= {"size": size, "crop": size * 0}

  def task(**fields):
    task = tasks.make(toys.sdxl(data, tmp_path, **fields))
    return task, trained(task), rows

  return task


def test_sdxl_reads_both_towers_and_the_sizes(xl):
  task, params, rows = xl(latent_diffusion__drop_caption=0.0)
  assert task.features[-2:] == ("size", "crop")
  assert set(params) == {"unet", "text", "text_2"}
  at = lambda params, rows: task.loss(params, rows, jax.random.key(1))[0]
  loss, grads = jax.jit(jax.value_and_grad(at))(params, rows)
  for name in params:
    assert any(np.any(grad) for grad in jax.tree.leaves(grads[name])), name
  at = jax.jit(at)
  assert float(at(params, rows)) == pytest.approx(float(loss), rel=1e-5)
  for name in ("size", "crop", "tokens"):
    assert at(params, rows | {name: rows[name] + 1}) != at(params, rows), name


@pytest.mark.parametrize("zero_empty", [False, True])
def test_without_captions_sdxl_reads_the_sizes_alone(zero_empty, xl):
  fields = {"latent_diffusion__drop_caption": 1.0}
  task, params, rows = xl(model__zero_empty=zero_empty, **fields)
  at = jax.jit(lambda rows: task.loss(params, rows, jax.random.key(1))[0])
  assert at(rows | {"tokens": rows["tokens"] + 1}) == at(rows)
  assert at(rows | {"size": rows["size"] + 1}) != at(rows)


def test_sizes_are_height_and_width_of_original_crop_and_image():
  rows = {
    "latent_mean": jnp.zeros((1, 4, 6, 3)),
    "size": jnp.array([[300, 400]]),
    "crop": jnp.array([[0, 17]]),
  }
  found = latent_diffusion.sizes(rows, 8)
  assert found.tolist() == [[300, 400, 0, 17, 32, 48]]


def test_each_tower_has_its_padding_and_a_mask_to_the_end():
  empty, nine, zero = np.array([1, 9, 9, 9]), np.int32(9), np.int32(0)
  words = conditioning.Words(empty, nine, (nine, zero))
  tokens = jnp.array([[1, 5, 9, 9], [1, 9, 9, 9]])
  first, second = conditioning.captions(tokens, words)
  np.testing.assert_array_equal(first.tokens, tokens)
  assert second.tokens.tolist() == [[1, 5, 9, 0], [1, 9, 0, 0]]
  assert first.mask.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2]


def test_pixart_learns_the_noise_and_its_variance(data, batch, tmp_path):
  rows = {name: value[:32] for name, value in batch.items()}
  rows["size"] = jnp.full((32, 2), 300)
  rows["crop"] = jnp.zeros((32, 2), jnp.int32)
  task = tasks.make(toys.pixart(data, tmp_path))
  params = jax.jit(task.init)(jax.random.key(0))
  loss, metrics = jax.jit(task.loss)(params, rows, jax.random.key(1))
  assert float(metrics["mse"]) == pytest.approx(1, abs=0.15)
  assert float(loss) == pytest.approx(
    float(metrics["mse"] + metrics["vb"]), rel=1e-6
  )
  # The same network without a variance has the squared error alone.
  made = toys.pixart(data, tmp_path)
  with made.unlocked():
    made.model.transformer.out_channels = 4
  loss, mse = first_loss(tasks.make(made), rows)
  assert loss == mse == pytest.approx(float(metrics["mse"]), rel=1e-5)


def test_channels_that_are_neither_latents_nor_a_variance_are_refused(
  data, tmp_path
):
  made = toys.pixart(data, tmp_path)
  with made.unlocked():
    made.model.transformer.out_channels = 5
  with pytest.raises(ValueError, match="set out_channels=4, or 8 to learn"):
    tasks.make(made)
