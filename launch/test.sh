#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what tests need and runs them: `test.sh` all but the slow ones,
# `test.sh slow` all. Further arguments go to pytest.
source "$(dirname "$0")/setup.sh" test,quickstart
if [ "${1:-}" = slow ]; then
  shift
  set -- --slow "$@"
fi
# Two processes, a file at a time: most of the work is compiling on one core.
exec python -m pytest -n 2 --dist loadfile "$@"
