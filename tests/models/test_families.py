# SPDX-License-Identifier: Apache-2.0
"""Which networks make a family, and what its denoiser reads.

tests/pipelines/test_folders.py compares the conditions with diffusers'.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from cc_jax.models import families

NAMES = {
  "unet": "SD2",
  "transformer": "",
  "text": "sd2/text",
  "text_2": "",
  "vae": "sd2/vae",
  "tokenizer": "sd2/tokenizer",
  "tokenizer_2": "",
}
PIXART = {"unet": "", "transformer": "XL_256", "text": "t5-xxl"}
XL = {"unet": "SDXL", "text": "sdxl/text_1", "text_2": "sdxl/text_2"}


@pytest.mark.parametrize(
  ("family", "names"),
  [
    ("stable_diffusion", {}),
    ("stable_diffusion", {"unet": "COMMON_CANVAS_L"}),
    ("stable_diffusion_xl", XL),
    ("pixart", PIXART),
    ("pixart", PIXART | {"transformer": dict(depth=2)}),
  ],
)
def test_a_family_is_known_by_its_networks(family, names):
  assert families.find(NAMES | names) == family


@pytest.mark.parametrize(
  ("names", "words"),
  [
    ({"text_2": "SDXL_G"}, "model.text_2 is set, but a stable_diffusion model"),
    ({"transformer": "XL_256"}, "model.unet is set, but a pixart model"),
    (XL | {"text_2": ""}, "stable_diffusion_xl model needs model.text_2"),
    ({"unet": "SD3"}, "no unet 'SD3'"),
  ],
)
def test_networks_that_do_not_go_together_are_refused(names, words):
  with pytest.raises(ValueError, match=words):
    families.find(NAMES | names)


def test_a_second_tower_may_share_the_tokenizer():
  names = NAMES | {"tokenizer": "a", "tokenizer_2": ""}
  both = families.tokenizers("stable_diffusion_xl", names)
  assert both == {"text": "a", "text_2": "a"}
  names["tokenizer_2"] = "b"
  both = families.tokenizers("stable_diffusion_xl", names)
  assert both == {"text": "a", "text_2": "b"}
  assert families.tokenizers("pixart", names) == {"text": "a"}


def test_zeros_replace_captions_and_not_sizes():
  conditions = {
    "context": jnp.ones((3, 2, 4)),
    "pooled": jnp.ones((3, 5)),
    "time_ids": jnp.ones((3, 6)),
  }
  where = jnp.array([False, True, False])
  found = families.zero("stable_diffusion_xl", conditions, where)
  for name in ("context", "pooled"):
    rows = np.asarray(found[name]).reshape(3, -1)
    np.testing.assert_array_equal(rows.min(axis=1), [1, 0, 1])
    np.testing.assert_array_equal(rows.max(axis=1), [1, 0, 1])
  np.testing.assert_array_equal(found["time_ids"], conditions["time_ids"])


def test_zeros_are_refused_where_no_pipeline_has_them():
  families.check_zeros("stable_diffusion_xl", True)
  with pytest.raises(ValueError, match="zero_empty is for stable_diffusion_xl"):
    families.check_zeros("stable_diffusion", True)


def test_a_learned_variance_is_not_part_of_the_prediction():
  networks = {"transformer": lambda xt, t, context: jnp.tile(xt, 2) * context}
  xt = jnp.arange(2 * 3 * 3 * 4, dtype=jnp.float32).reshape(2, 3, 3, 4)
  conditions = {"context": jnp.float32(2)}
  found = families.predict("pixart", networks, xt, jnp.ones(2), conditions)
  np.testing.assert_array_equal(found, 2 * xt)
