#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What launch/tpu.sh and the container call on each host of a slice.
#
#   on_host.sh install                  cc_jax and its packages, once
#   on_host.sh start TYPE SLICES CMD…   in the background; only one at a time
#   on_host.sh again                    the last command, unless it has finished
#   on_host.sh exec TYPE SLICES CMD…    in the foreground, as containers do
#   on_host.sh status [CMD…]            of that command alone, if one is named
#   on_host.sh log | stop
#
# A command ends as "finished", "preempted" (it saved and is to be run again) or
# "failed STATUS". CC_JAX_CACHE is where compiled programs are kept, gs:// for
# one place for all hosts.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
home="${CC_JAX_HOME:-$HOME/.cc_jax}"
mkdir -p "$home"

running() {
  [ -e "$home/pid" ] && kill -0 "$(cat "$home/pid")" 2>/dev/null
}

# Runs the words after TYPE and SLICES; says how they ended in $home/status.
execute() {
  local type=$1 slices=$2 child status=0 lines
  shift 2
  if [ -e "$home/python/bin/activate" ]; then
    source "$home/python/bin/activate"
  fi
  cd "$here"
  lines="$(python -m cc_jax.core.launching "$type" "$slices")"
  eval "$lines"
  export JAX_COMPILATION_CACHE_DIR="${CC_JAX_CACHE:-$home/compiled}"
  stopped=""
  echo "running" >"$home/status"
  "$@" >"$home/last" 2>&1 &
  child=$!
  tail -n +1 -F --pid="$child" "$home/last" 2>/dev/null &
  trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM INT
  wait "$child" || status=$?
  # The trap ends the first wait, and not the command.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || status=$?
  done
  wait
  if [ "$status" != 0 ] && [ -z "$stopped" ]; then
    echo "failed $status" >"$home/status"
  elif [ -n "$stopped" ] || grep -q "SIGTERM: step" "$home/last"; then
    echo "preempted" >"$home/status"
    # Not 0, which would tell Kubernetes that all is done.
    return 143
  else
    echo "finished" >"$home/status"
  fi
  return "$status"
}

case "${1:-}" in
  install)
    if [ ! -e "$home/python" ]; then
      # The images have a Python that is too old.
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python 3.12 "$home/python"
    fi
    source "$home/python/bin/activate"
    bash "$here/launch/setup.sh" tpu,gcs
    # After maintenance a host starts again, and goes on by itself.
    line="@reboot CC_JAX_HOME=$home $here/launch/on_host.sh again"
    { crontab -l 2>/dev/null | grep -vF on_host.sh || true; echo "$line"; } |
      crontab -
    touch "$home/installed"
    ;;
  start)
    shift
    if running; then
      echo "a command is running already; tpu.sh stop ends it" >&2
      exit 1
    fi
    printf '%q ' "$@" >"$home/command"
    printf '%s' "${CC_JAX_CACHE:-}" >"$home/cache"
    : >"$home/last"
    echo "starting" >"$home/status"
    exec "${BASH_SOURCE[0]}" again
    ;;
  again)
    [ -e "$home/command" ] || exit 0
    [ "$(cat "$home/status")" != finished ] || exit 0
    ! running || exit 0
    CC_JAX_CACHE="$(cat "$home/cache")"
    export CC_JAX_CACHE
    words=()
    eval "words=($(cat "$home/command"))"
    setsid nohup "${BASH_SOURCE[0]}" exec "${words[@]}" \
      >>"$home/log" 2>&1 </dev/null &
    echo $! >"$home/pid"
    ;;
  exec)
    shift
    execute "$@"
    ;;
  status)
    status=none
    [ ! -e "$home/installed" ] || status=installed
    [ ! -e "$home/status" ] || status="$(cat "$home/status")"
    shift
    if [ $# -gt 0 ] && [ -e "$home/command" ]; then
      printf -v words '%q ' "$@"
      # Behind TYPE and SLICES.
      [ "$(cut -d ' ' -f 3- "$home/command")" = "$words" ] || status=installed
    fi
    case "$status" in
      running | starting) running || status="failed, and did not say how" ;;
    esac
    echo "$status"
    ;;
  log)
    exec tail -n 100 -F "$home/log"
    ;;
  stop)
    if running; then
      # Once more if the first was early; the command saves, and then ends.
      kill -TERM "$(cat "$home/pid")"
      for _ in $(seq "${CC_JAX_PATIENCE:-120}"); do
        running || exit 0
        sleep 1
      done
      echo "the command did not end in time" >&2
      exit 1
    fi
    ;;
  *)
    echo "usage: on_host.sh install|start|again|exec|status|log|stop" >&2
    exit 2
    ;;
esac
