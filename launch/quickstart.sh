#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs cc_jax and runs the whole pipeline on handwritten digits, in minutes
# on two CPU cores. Arguments go to `cc-jax quickstart`.
source "$(dirname "$0")/setup.sh" quickstart
exec cc-jax quickstart "$@"
