#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs cc_jax[beam] into .venv-beam, at the versions of constraints-beam.txt,
# and tests the catalogue on Apache Beam. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ -d .venv-beam ] || "${PYTHON:-python3}" -m venv .venv-beam
.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint launch/constraints-beam.txt \
  --editable '.[beam]' beartype pytest
exec .venv-beam/bin/python -m pytest tests/data/test_beam_runner.py "$@"
