#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs commands on a Cloud TPU slice, which it asks for as a queued resource.
#
#   tpu.sh create NAME TYPE [--slices=N] [--spot | --reserved] [--FLAG…]
#   tpu.sh setup  NAME            copies this folder to all hosts, and installs
#   tpu.sh run    NAME COMMAND…   the command on all hosts, in the background
#   tpu.sh logs   NAME [HOST]     what it says; of host 0 if none is named
#   tpu.sh status NAME            of the slice, and of the command on each host
#   tpu.sh stop   NAME            the command saves and ends; the slice stays
#   tpu.sh delete NAME            ends what costs money
#   tpu.sh keep   NAME TYPE [--FLAG…] -- COMMAND…
#                                 all of it until the command has finished: asks
#                                 anew for a slice that was taken away, and runs
#                                 the same command again, which goes on
#
# TYPE is v4-8, v5e-16, v5p-128, v6e-64 and the like. Other flags go to gcloud.
# ZONE and PROJECT are gcloud's own unless set; CC_JAX_CACHE=gs://BUCKET/compiled
# keeps compiled programs for all hosts and for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

POLL="${POLL:-60}"   # Seconds between looks of `keep`.
TRIES="${TRIES:-3}"  # Failures of the command, one after another, that end it.

usage() {
  sed -n '/^# Runs/,/^set -e/p' launch/tpu.sh | sed '$d; s/^# \{0,1\}//'
}

die() {
  echo "tpu.sh: $*" >&2
  exit 1
}

where=()
[ -z "${ZONE:-}" ] || where+=("--zone=$ZONE")
[ -z "${PROJECT:-}" ] || where+=("--project=$PROJECT")

queued() {
  local verb=$1 name=$2
  shift 2
  gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}

# A command on every host, or on the one of --worker.
on_hosts() {
  local name=$1 worker=$2 node=all
  [ "$worker" = all ] || node=0
  queued ssh "$name" "--node=$node" "--worker=$worker" "--command=$3"
}

# The words of a command as a shell on the host reads them.
quote() {
  local words
  printf -v words '%q ' "$@"
  echo "${words% }"
}

# The state of a slice; NONE if there is none by that name.
state() {
  local found
  if found="$(queued describe "$1" '--format=value(state.state)' 2>&1)"; then
    echo "$found"
  elif grep -q NOT_FOUND <<<"$found"; then
    echo NONE
  else
    echo "$found" >&2
    return 1
  fi
}

# "TYPE SLICES" of a slice, which `create` wrote into its description.
described() {
  local found
  found="$(queued describe "$1" \
    '--format=value(tpu.nodeSpec[0].node.description)')"
  case "$found" in
    "cc_jax "*) echo "${found#cc_jax }" ;;
    *) die "$1 was not made by tpu.sh create" ;;
  esac
}

create() {
  local name=$1 type=$2 slices=1 flags=() runtime node
  shift 2
  for flag in "$@"; do
    case "$flag" in
      --slices=*) slices="${flag#*=}" ;;
      -*) flags+=("$flag") ;;
      *) die "$flag: expected a flag" ;;
    esac
  done
  case "$type" in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5e-* | v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die "unknown TPU type $type; expected v4-, v5e-, v5p- or v6e-NUMBER" ;;
  esac
  node="--node-id=$name"
  [ "$slices" = 1 ] || node="--node-count=$slices"
  queued create "$name" "$node" \
    "--accelerator-type=${type/v5e-/v5litepod-}" \
    "--runtime-version=${RUNTIME:-$runtime}" \
    "--description=cc_jax $type $slices" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "${flags[@]}"
}

setup() {
  local archive
  archive="$(mktemp -d)"
  # One after another also where `keep` asks whether it went well.
  tar --exclude-vcs --exclude=./.venv* --exclude=./runs --exclude=__pycache__ \
    -czf "$archive/cc_jax.tgz" . &&
    queued scp "$archive/cc_jax.tgz" "$1:" --node=all --worker=all &&
    rm -r "$archive" &&
    on_hosts "$1" all "mkdir -p cc_jax && tar -xzf cc_jax.tgz -C cc_jax \
&& bash cc_jax/launch/on_host.sh install"
}

run() {
  local name=$1 found
  shift
  [ $# -gt 0 ] || die "run $name: no command"
  found="$(described "$name")" || return 1
  on_hosts "$name" all "CC_JAX_CACHE=$(quote "${CC_JAX_CACHE:-}") \
cc_jax/launch/on_host.sh start $found $(quote "$@")"
}

# How a command stands on host 0, which speaks for all; or "away".
job() {
  local name=$1
  shift
  on_hosts "$name" 0 "cc_jax/launch/on_host.sh status $(quote "$@") \
2>/dev/null || echo none" 2>/dev/null | tail -n 1 || echo away
}

keep() {
  local name=$1 type=$2 flags=() now failures=0 silent=0 seen=""
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    flags+=("$1")
    shift
  done
  [ $# -gt 1 ] || die "keep $name: no command; expected -- COMMAND"
  shift
  while :; do
    if now="$(state "$name")"; then
      silent=0
    else
      silent=$((silent + 1))
      [ "$silent" -lt 10 ] || die "gcloud does not say how $name is"
    fi
    [ "$now" != ACTIVE ] || now="ACTIVE, the command $(job "$name" "$@")"
    [ "$now" = "$seen" ] || echo "$(date -u +%H:%M:%S) $name: $now"
    seen="$now"
    case "$now" in
      NONE) create "$name" "$type" "${flags[@]}" ;;
      SUSPENDED | FAILED) queued delete "$name" --quiet --force ;;
      *" finished") return ;;
      *" none" | *" installed" | *" preempted" | *" failed"*)
        case "$now" in
          *failed*) failures=$((failures + 1)) ;;
          *preempted*) failures=0 ;;
        esac
        [ "$failures" -lt "$TRIES" ] ||
          die "$name: the command failed $failures times; tpu.sh logs $name"
        # A host that was given anew has nothing on it.
        if [[ "$now" = *" none" ]] && ! setup "$name"; then
          echo "$name: setup failed; once more" >&2
        elif ! on_hosts "$name" all "cc_jax/launch/on_host.sh stop" ||
          ! run "$name" "$@"; then
          echo "$name: the command did not start; once more" >&2
        fi
        ;;
    esac
    sleep "$POLL"
  done
}

verb="${1:-help}"
case "$verb" in
  help | -h | --help)
    usage
    exit
    ;;
  create | keep) least=3 ;;
  setup | run | logs | status | stop | delete) least=2 ;;
  *) die "unknown verb $verb; tpu.sh help lists them" ;;
esac
[ $# -ge "$least" ] || die "$verb: too few arguments; tpu.sh help"
command -v gcloud >/dev/null ||
  die "gcloud is not here: https://cloud.google.com/sdk/docs/install, or use \
Cloud Shell"
name=$2
case "$verb" in
  create | run | keep | setup) "$verb" "${@:2}" ;;
  logs)
    on_hosts "$name" "${3:-0}" "cc_jax/launch/on_host.sh log"
    ;;
  status)
    now="$(state "$name")"
    echo "$name: $now"
    [ "$now" != ACTIVE ] ||
      on_hosts "$name" all \
        "echo \"\$(hostname): \$(cc_jax/launch/on_host.sh status)\""
    ;;
  stop) on_hosts "$name" all "cc_jax/launch/on_host.sh stop" ;;
  delete) queued delete "$name" --quiet --force ;;
esac
