#!/usr/bin/env bash
# From a prepared data set to semantic IDs, in two steps, seconds to minutes on a CPU:
#   1. sidrec.tokenizer.embed      item text and users' histories -> item vectors        <run_dir>/embeddings/
#   2. sidrec.tokenizer.quantize   item vectors -> codes, codebooks and a report         <run_dir>/sid/
# A step that is finished is skipped; an interrupted one is made again.
#
#   bash run_tokenizer.sh                                              the demo: configs/tokenizer/demo.yaml
#   bash run_tokenizer.sh configs/tokenizer/ml-100k.yaml               the same as --config configs/tokenizer/ml-100k.yaml
#   bash run_tokenizer.sh configs/tokenizer/own.yaml --run_dir outputs/mine --level_sizes 64 64 64
#
# All flags go to both steps; paths are relative to where you call it from.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="$root/.venv/bin/python"
if [ ! -x "$python" ]; then python="$(command -v python3 || command -v python)"; fi
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"

for argument in "$@"; do
  if [ "$argument" = "--help" ] || [ "$argument" = "-h" ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$root/run_tokenizer.sh"
    exec "$python" -m sidrec.tokenizer.embed --help
  fi
done
if [ $# -eq 0 ]; then set -- --config "$root/configs/tokenizer/demo.yaml"; fi
if [ "${1#-}" = "$1" ]; then set -- --config "$@"; fi

"$python" -m sidrec.tokenizer.embed "$@"
exec "$python" -m sidrec.tokenizer.quantize "$@"
