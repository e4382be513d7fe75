#!/usr/bin/env bash
# From a prepared data set to semantic IDs, in two steps, seconds to minutes on a CPU; the same as `sidrec tokenize`:
#   1. tokenizer/embed.py      item text and users' histories -> item vectors        <run_dir>/embeddings/
#   2. tokenizer/quantize.py   item vectors -> codes, codebooks and a report         <run_dir>/sid/
# A step that is finished is skipped; an interrupted one is made again.
#
#   bash run_tokenizer.sh                                              the last settings of outputs/demo, or its data set's
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
  if [ "$argument" = "--help" ] || [ "$argument" = "-h" ]; then sed -n '2,11s/^# \{0,1\}//p' "$root/run_tokenizer.sh"; fi
done
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then set -- --config "$@"; fi
exec "$python" -m sidrec tokenize "$@"
