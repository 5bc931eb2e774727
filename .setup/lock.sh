#!/usr/bin/env bash
# Writes the locks by uv (pip install uv): every package with the hashes of its files, for Python 3.11 and newer.
#   requirements.lock   everything but what no_deps.lock has
#   no_deps.lock        what is installed without its dependencies
set -euo pipefail
cd "$(dirname "$0")"
command -v uv >/dev/null || { echo "there is no uv; install it: pip install uv" >&2; exit 1; }
lock() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command .setup/lock.sh "$@"; }
lock --constraint constraints.txt --output-file requirements.lock \
  model.txt training.txt view.txt dev.txt arrays.txt ros_wheels.txt quantization.txt
{ grep -o 'sam2==[0-9.]*' venv.sh; cat openvino.txt; } | lock --no-deps --output-file no_deps.lock -
