#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: makes .venv when no virtual environment is
# active, and installs cc_jax with the extras given, at the tested versions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -d .venv ] || "${PYTHON:-python3}" -m venv .venv
  source .venv/bin/activate
fi

# A stamp of what was installed, so that a second run starts at once.
stamp="$VIRTUAL_ENV/.cc_jax-$1"
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ] ||
  [ launch/constraints.txt -nt "$stamp" ]; then
  echo "installing cc_jax[$1] into $VIRTUAL_ENV"
  python -m pip install --quiet --disable-pip-version-check \
    --constraint launch/constraints.txt --editable ".[$1]"
  touch "$stamp"
fi
