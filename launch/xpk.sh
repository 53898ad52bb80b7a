#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs commands on TPU slices of a GKE cluster, with Google's xpk.
#
#   xpk.sh create CLUSTER TYPE [--slices=N] [--spot | --reservation=ID] [--FLAG…]
#   xpk.sh image  IMAGE             builds launch/Dockerfile and pushes it
#   xpk.sh run    CLUSTER NAME TYPE IMAGE [--slices=N] [--FLAG…] -- COMMAND…
#   xpk.sh logs   CLUSTER NAME      of host 0
#   xpk.sh status CLUSTER
#   xpk.sh stop   CLUSTER NAME
#   xpk.sh delete CLUSTER
#
# Kubernetes runs a command again that a preemption ended, RESTARTS times; it
# goes on. TYPE is v4-128 and the like, IMAGE as REGION-docker.pkg.dev/PROJECT/
# REPOSITORY/cc_jax. ZONE and PROJECT are gcloud's own unless set; other flags go
# to xpk. CC_JAX_CACHE=gs://BUCKET/compiled keeps compiled programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RESTARTS="${RESTARTS:-100}"

die() {
  echo "xpk.sh: $*" >&2
  exit 1
}

needs() {
  command -v "$1" >/dev/null || die "$1 is not here: $2"
}

where=()
[ -z "${ZONE:-}" ] || where+=("--zone=$ZONE")
[ -z "${PROJECT:-}" ] || where+=("--project=$PROJECT")

# Sets `slices`, `flags` and `words` from --slices=N, other flags, and what is
# behind --.
slices=1 flags=() words=()
options() {
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case "$1" in
      --slices=*) slices="${1#*=}" ;;
      -*) flags+=("$1") ;;
      *) die "$1: expected a flag" ;;
    esac
    shift
  done
  [ $# -eq 0 ] || words=("${@:2}")
}

verb="${1:-help}"
case "$verb" in
  help | -h | --help)
    sed -n '/^# Runs/,/^set -e/p' launch/xpk.sh | sed '$d; s/^# \{0,1\}//'
    exit
    ;;
  run) least=7 ;;
  create | logs | stop) least=3 ;;
  image | status | delete) least=2 ;;
  *) die "unknown verb $verb; xpk.sh help lists them" ;;
esac
[ $# -ge "$least" ] || die "$verb: too few arguments; xpk.sh help"
case "$verb" in
  image) needs docker "https://docs.docker.com/engine/install" ;;
  logs) needs kubectl "gcloud components install kubectl" ;;
  *) needs xpk "pip install xpk" ;;
esac

cluster=$2
case "$verb" in
  create)
    options "${@:4}"
    xpk cluster create "--cluster=$cluster" "--tpu-type=${3/v5e-/v5litepod-}" \
      "--num-slices=$slices" "${where[@]}" "${flags[@]}"
    ;;
  image)
    docker build --file launch/Dockerfile --tag "$2" .
    docker push "$2"
    ;;
  run)
    options "${@:6}"
    [ ${#words[@]} -gt 0 ] || die "run $3: no command; expected -- COMMAND"
    printf -v command '%q ' launch/on_host.sh exec "$4" "$slices" "${words[@]}"
    xpk workload create "--cluster=$cluster" "--workload=$3" \
      "--tpu-type=${4/v5e-/v5litepod-}" "--num-slices=$slices" \
      "--docker-image=$5" "--max-restarts=$RESTARTS" \
      "--env=CC_JAX_CACHE=${CC_JAX_CACHE:-}" "--command=${command% }" \
      "${where[@]}" "${flags[@]}"
    ;;
  logs)
    name="jobset.sigs.k8s.io/jobset-name=$3"
    kubectl logs --follow --tail=100 \
      "--selector=$name,batch.kubernetes.io/job-completion-index=0"
    ;;
  status) xpk workload list "--cluster=$cluster" "${where[@]}" ;;
  stop)
    xpk workload delete "--cluster=$cluster" "--workload=$3" "${where[@]}"
    ;;
  delete) xpk cluster delete "--cluster=$cluster" "${where[@]}" ;;
esac
