#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# CommonCanvas from catalogue to export on a Cloud TPU, command by command.
#
#   common_canvas.sh show MODEL TYPE BUCKET [PART]   prints the commands
#   common_canvas.sh plan MODEL TYPE BUCKET [PART]   the same, planned first
#   common_canvas.sh run  MODEL TYPE BUCKET [PART]   runs them by tpu.sh keep
#
# MODEL is sd2 (CommonCanvas-S), common_canvas_l or sdxl; TYPE v4-8 to v4-512;
# BUCKET a gs:// folder for all that is made; PART of CommonCatalog by (the
# default), by-sa, by-nc or by-nc-sa. Beside each training stand the days and
# dollars that `cc-jax plan` found, once it was asked (`plan` compiles each step
# for the slice: it needs libtpu and 18 GB of memory, and takes minutes).
#
# `run` asks for the slice named NAME (cc-jax), with FLAGS (--spot, say), keeps it
# from step to step and deletes it in the end. What was done is skipped, so the
# same command goes on. MICRO is how many images a chip takes at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME="${NAME:-cc-jax}"
PLANS="${PLANS:-runs/plans}"
TPU="${TPU:-launch/tpu.sh}"
read -ra flags <<<"${FLAGS:-}"

die() {
  echo "common_canvas.sh: $*" >&2
  exit 1
}

if [ $# -lt 4 ]; then
  sed -n '/^# CommonCanvas/,/^set -e/p' launch/common_canvas.sh |
    sed '$d; s/^# \{0,1\}//'
  [ $# -eq 0 ] && exit 0 || exit 2
fi
verb=$1 model=$2 type=$3 bucket="${4%/}" part="${5:-by}"
case "$verb" in
  show | plan | run) ;;
  *) die "unknown verb $verb; expected show, plan or run" ;;
esac
# Sizes in pixels, batch of each, and images that a chip takes at a time.
case "$model" in
  sd2) sizes=(256 512) batches=(2048 2048) micros=(64 16) ;;
  common_canvas_l) sizes=(256 512) batches=(2048 2048) micros=(32 8) ;;
  sdxl) sizes=(256 512 1024) batches=(2048 2048 512) micros=(32 8 2) ;;
  *) die "unknown model $model; expected sd2, common_canvas_l or sdxl" ;;
esac
case "$type" in
  v4-8 | v4-16 | v4-32 | v4-64 | v4-128 | v4-256 | v4-512) ;;
  *) die "unknown type $type; expected v4-8, -16, -32, -64, -128, -256 or -512" ;;
esac
case "$part" in
  by | by-sa | by-nc | by-nc-sa) ;;
  *) die "unknown part $part; expected by, by-sa, by-nc or by-nc-sa" ;;
esac
[[ "$bucket" = gs://* ]] || die "$bucket: expected gs://BUCKET/FOLDER"
chips=$((${type#v4-} / 2))
data="$bucket/$part"
catalog="configs/common_catalog.py:$part"

# Prints days and dollars of a plan; "-" for each if there is none yet.
figures() {
  python3 - "$1" <<'PYTHON'
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
plan = json.loads(path.read_text()) if path.exists() else {}
days, dollars = plan.get("days"), plan.get("dollars")
fits = plan.get("fits", True)
print("does not fit" if not fits else "-" if days is None else f"{days:.1f} days",
      "-" if dollars is None else f"${dollars:,.0f}", sep="\t")
PYTHON
}

# A step: its name, where its plan is (or ""), and its words.
step() {
  local title=$1 plan=$2 line days="-" dollars="-" found
  shift 2
  printf -v line '%q ' "$@"
  line="${line% }"
  if [ -n "$plan" ]; then
    found="$(figures "$plan/plan.json")"
    if [ "$verb" = plan ] && [[ "$found" = -* ]]; then
      planned "$plan" "$@" || die "no plan of $title"
      found="$(figures "$plan/plan.json")"
    fi
    IFS=$'\t' read -r days dollars <<<"$found"
  fi
  printf '# %-16s %12s %12s\n%s\n' "$title" "$days" "$dollars" "$line"
  if [ "$verb" = run ]; then
    "$TPU" keep "$NAME" "$type" "${flags[@]}" -- "$@"
  fi
}

# `cc-jax plan` with the config of a step, and what the step sets of it.
planned() {
  local workdir=$1 words=() word
  shift 3
  for word in "$@"; do
    case "$word" in
      --workdir=* | --config.train.init=*) ;;
      --config.caption.captioner=*) words+=("$word" --config.plan.of=caption) ;;
      *) words+=("$word") ;;
    esac
  done
  cc-jax plan "--workdir=$workdir" "--config.slice=$type" "${words[@]}" >&2
}

plans="$PLANS/$type/$model"
step catalogue "" cc-jax catalogue "--config=$catalog" "--workdir=$data"
step caption "$PLANS/$type/caption" cc-jax caption "--config=$catalog" \
  "--workdir=$data" --config.caption.captioner=blip2 \
  --config.caption.name=blip2 --config.caption.middle=512
before=""
for i in "${!sizes[@]}"; do
  size="${sizes[i]}"
  config="configs/$model.py:$size"
  workdir="$bucket/$model-$part-$size"
  share=$((batches[i] / chips))
  micro="${MICRO:-${micros[i]}}"
  accumulate=$(((share + micro - 1) / micro))
  # A number of parts must divide the batch.
  while [ $((share % accumulate)) -ne 0 ]; do
    accumulate=$((accumulate + 1))
  done
  train=("--config.train.accumulate=$accumulate")
  [ -z "$before" ] || train+=("--config.train.init=$before/export")
  step "encode $size" "" cc-jax encode "--config=$config" \
    "--workdir=$workdir" "--config.encode.images=$data/catalogue" \
    "--config.encode.captions=$data/captions" \
    --config.encode.caption=caption_blip2
  step "train $size" "$plans-$size" cc-jax train "--config=$config" \
    "--workdir=$workdir" "${train[@]}"
  step "export $size" "" cc-jax export "--config=$config" "--workdir=$workdir"
  before="$workdir"
done
step sample "" cc-jax sample "--config=$config" "--workdir=$workdir"
if [ "$verb" = run ]; then
  "$TPU" delete "$NAME"
  echo "the model is in $workdir/export"
fi
