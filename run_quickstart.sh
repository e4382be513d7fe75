#!/usr/bin/env bash
# From raw data to a trained generative recommender, its Recall@K beside baselines, and recommendations on the screen.
#
#   bash run_quickstart.sh                                   the built-in demo data, offline, three minutes on 2 cores
#   bash run_quickstart.sh ml-100k                           MovieLens-100K, downloaded; ten minutes on 2 cores
#   bash run_quickstart.sh ml-100k --raw_dir DIR             the same from files you have
#   bash run_quickstart.sh ml-1m [--raw_dir DIR]             MovieLens-1M; hours on 2 cores
#   bash run_quickstart.sh amazon-beauty [--raw_dir DIR]     Amazon reviews of 2014, Beauty, 5-core; hours on 2 cores
#   bash run_quickstart.sh own --interactions FILE --items FILE    your CSV or Parquet: user_id, item_id, timestamp; item_id, title
#
# --run_dir DIR (default outputs/DATASET) says where everything goes. Further flags go to the stages that have them (--k_user 2,
# --num_train_epochs 4); --sft.learning_rate 0.001 goes to one stage only. Run it again and finished stages are skipped; kill it and
# run it again and it goes on where it was.
set -euo pipefail

usage() { sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --run_dir | --raw_dir | --interactions | --items)
      if [ $# -lt 2 ]; then echo "error: $1 needs a path after it." >&2; exit 2; fi
      arguments+=("$1" "$(realpath -m -- "$2")") # the stages run from the repository's root
      shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
cd "$root"
source ./install.sh
exec .venv/bin/python -m sidrec.quickstart ${arguments[@]+"${arguments[@]}"}
