# SPDX-License-Identifier: Apache-2.0
"""python -m cc_jax: the same as cc-jax, where its script is not on the path."""

import sys

from cc_jax import cli

sys.exit(cli.main())
