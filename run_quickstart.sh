#!/usr/bin/env bash
# From raw data to a trained generative recommender, its Recall@K beside baselines, and recommendations on the screen.
#
#   bash run_quickstart.sh                                   the built-in demo data, offline, two minutes on 2 cores
#   bash run_quickstart.sh ml-100k                           MovieLens-100K, downloaded; ten minutes on 2 cores
#   bash run_quickstart.sh ml-100k --raw_dir DIR             the same from files you have
#   bash run_quickstart.sh ml-1m [--raw_dir DIR]             MovieLens-1M; hours on 2 cores
#   bash run_quickstart.sh amazon-beauty [--raw_dir DIR]     Amazon reviews of 2014, Beauty, 5-core; hours on 2 cores
#   bash run_quickstart.sh own --interactions FILE --items FILE    your CSV or Parquet: user_id, item_id, timestamp; item_id, title
#
# --run_dir DIR (default outputs/DATASET) says where everything goes. Run it again and finished stages are skipped; kill it and run
# it again and it goes on where it was.
set -euo pipefail

usage() { sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dataset=demo
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then dataset=$1; shift; fi
run_dir=""
data_flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --run_dir | --raw_dir | --interactions | --items)
      if [ $# -lt 2 ]; then echo "error: $1 needs a path after it." >&2; exit 2; fi
      path=$(realpath -m -- "$2") # the stages run from the repository's root
      if [ "$1" = --run_dir ]; then run_dir=$path; else data_flags+=("$1" "$path"); fi
      shift 2 ;;
    *) echo "error: unknown argument $1; see bash run_quickstart.sh --help." >&2; exit 2 ;;
  esac
done
cd "$root"
for stage in data tokenizer sft rl; do
  if [ ! -f "configs/$stage/$dataset.yaml" ]; then
    echo "error: unknown data set $dataset (no configs/$stage/$dataset.yaml); known are demo, ml-100k, ml-1m, amazon-beauty and own." >&2
    exit 2
  fi
done
run_dir=${run_dir:-$root/outputs/$dataset}

source ./install.sh
run() { # one stage: say it, run it, pass its exit code on
  echo
  echo "── $1"
  shift
  "$@" || exit $?
}

run "1  data: read, filter, split (seconds)" \
  python -m sidrec.data.prepare --config "configs/data/$dataset.yaml" --run_dir "$run_dir" ${data_flags[@]+"${data_flags[@]}"}

run "2  tokenizer: item vectors, then one semantic ID an item (seconds)" \
  bash run_tokenizer.sh --config "configs/tokenizer/$dataset.yaml" --run_dir "$run_dir"

# with one process, `accelerate launch sft/train.py` is this very command; called directly, its exit code is its own
run "3  sft: a language model learns to write the next item's semantic ID (most of the time)" \
  python sft/train.py --config "configs/sft/$dataset.yaml" --run_dir "$run_dir"

run "4  rl: GRPO with recall rewards (minutes)" \
  python rl/grpo.py --config "configs/rl/$dataset.yaml" --run_dir "$run_dir"

run "5  evaluation: Recall@K beside the baselines (minutes)" \
  python -m sidrec.evaluation.evaluate --config "configs/evaluation/default.yaml" --run_dir "$run_dir"

user=$(python -c 'import sys; from pathlib import Path; from sidrec.data.dataset import Dataset
print(Dataset.load(Path(sys.argv[1])).interactions["user_id"][0])' "$run_dir")
run "6  what would user $user take next?" \
  python -m sidrec.serving.recommend --run_dir "$run_dir" --user "$user"
