#!/usr/bin/env bash
# Make or reuse .venv and run all checks: lint, types, tests (one process a core). Extra arguments go to pytest.
#   bash run_tests.sh
#   bash run_tests.sh tests/decoding/test_trie.py -k children
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./install.sh

.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet . || { echo "error: run '.venv/bin/ruff format .' first." >&2; exit 1; }
.venv/bin/mypy
export OMP_NUM_THREADS=1  # a test process has one core
exec .venv/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
