#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what tests need and runs them: `test.sh` all but the slow ones,
# `test.sh slow` all. Further arguments go to pytest.
source "$(dirname "$0")/setup.sh" test,quickstart
if [ "${1:-}" = slow ]; then
  shift
  set -- --slow "$@"
fi
# The compiler for TPUs is for Linux alone, and large.
python -c "import libtpu" 2>/dev/null ||
  python -m pip install --quiet --disable-pip-version-check \
    --constraint launch/constraints.txt libtpu ||
  echo "no libtpu here: tests of cc-jax plan are skipped"
# Two processes, a file at a time: most of the work is compiling on one core.
exec python -m pytest -n 2 --dist loadfile "$@"
